"""The built-in model as it is shipped: whole, what its card says, and right about pictures that are easy."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmsearch.encoders.base import FeatureEncoder, FloatArray
from mmsearch.encoders.catalog import LITE_FOLDER, entries, load_encoder
from mmsearch.encoders.heads import project
from mmsearch.evaluate import best_ranks, recall_at_k

PHOTOS = Path(__file__).parent.parent / "photos"


@pytest.fixture(scope="module")
def lite() -> FeatureEncoder:
    return load_encoder("lite")


@pytest.fixture(scope="module")
def photos(lite: FeatureEncoder) -> dict[str, FloatArray]:
    """The vectors of the pictures that come with the checkout."""
    paths = [path for path in sorted(PHOTOS.rglob("*")) if path.suffix in (".jpg", ".png")]
    return dict(
        zip((path.name for path in paths), lite.encode_images([Image.open(path) for path in paths]), strict=True)
    )


def face_of_a_clock() -> Image.Image:
    """Twelve marks, two hands."""
    image = Image.new("RGB", (300, 300), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 20, 280, 280), fill="ivory", outline="black", width=8)
    for hour in range(12):
        x, y = np.sin(hour * np.pi / 6), -np.cos(hour * np.pi / 6)
        draw.line((150 + 100 * x, 150 + 100 * y, 150 + 118 * x, 150 + 118 * y), fill="black", width=6)
    draw.line((150, 150, 150, 70), fill="black", width=7)
    draw.line((150, 150, 205, 170), fill="black", width=9)
    return image


def traffic_light() -> Image.Image:
    image = Image.new("RGB", (300, 300), "lightskyblue")
    draw = ImageDraw.Draw(image)
    draw.rectangle((138, 250, 162, 300), fill="dimgrey")
    draw.rounded_rectangle((100, 20, 200, 260), radius=16, fill="black")
    for y, colour in ((62, "red"), (140, "orange"), (218, "limegreen")):
        draw.ellipse((116, y - 34, 184, y + 34), fill=colour)
    return image


def crossword() -> Image.Image:
    image = Image.new("RGB", (300, 300), "white")
    draw = ImageDraw.Draw(image)
    dark = np.random.default_rng(3).random((12, 12)) < 0.25
    for row, column in np.ndindex(12, 12):
        box = (column * 25, row * 25, column * 25 + 25, row * 25 + 25)
        draw.rectangle(box, fill="black" if dark[row, column] else "white", outline="black", width=2)
    return image


DRAWN = {"a wall clock": face_of_a_clock, "traffic light": traffic_light, "crossword puzzle": crossword}


def test_the_card_bears_the_fingerprint_and_the_licences(lite: FeatureEncoder) -> None:
    card = (LITE_FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"Fingerprint: `{lite.fingerprint}`" in card
    assert "Apache-2.0" in card
    assert "WordNet" in card
    assert "$" not in card  # every figure was filled in


def test_it_is_as_small_as_the_catalog_says() -> None:
    size_mb = sum(path.stat().st_size for path in LITE_FOLDER.iterdir()) / 1e6
    assert size_mb < 60
    assert round(size_mb) == next(entry.size_mb for entry in entries() if entry.name == "lite")


def test_rows_have_length_one(lite: FeatureEncoder) -> None:
    images = lite.encode_images([draw() for draw in DRAWN.values()] + [Image.new("L", (1, 900))])
    texts = lite.encode_texts(["a dog", "", "Ein rotes Fahrrad", "snow " * 2000, "🐈"])
    for rows in (images, texts):
        assert rows.dtype == np.float32
        assert rows.shape[1] == lite.dim == 384
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_a_batch_gives_what_each_one_gives(lite: FeatureEncoder) -> None:
    texts = ["a dog", "a very small brown dog that lies on the grass beside a red ball", ""]
    assert np.allclose(
        lite.encode_texts(texts), np.concatenate([lite.encode_texts([text]) for text in texts]), atol=1e-4
    )
    pictures = [draw() for draw in DRAWN.values()]
    apart = [lite.encode_images([picture]) for picture in pictures]
    assert np.allclose(lite.encode_images(pictures), np.concatenate(apart), atol=1e-4)


def test_stored_features_give_the_same_vectors(lite: FeatureEncoder) -> None:
    pixels = np.stack([np.asarray(draw().resize((260, 260), Image.Resampling.BICUBIC)) for draw in DRAWN.values()])
    stored = lite.image_features(pixels).astype(np.float16)
    assert stored.shape == (3, 2008)
    vectors = lite.encode_images([draw() for draw in DRAWN.values()])
    assert ((lite.project_images(stored.astype(np.float32)) * vectors).sum(axis=1) > 0.999).all()


def test_words_find_what_is_drawn(lite: FeatureEncoder) -> None:
    scores = scores_of(lite, list(DRAWN), [draw() for draw in DRAWN.values()])
    assert scores.argmax(axis=1).tolist() == [0, 1, 2]
    assert scores.argmax(axis=0).tolist() == [0, 1, 2]


def test_near_words_are_near(lite: FeatureEncoder) -> None:
    dog, puppy, lorry = lite.encode_texts(["a dog", "puppies", "a lorry"])
    assert dog @ puppy > dog @ lorry + 0.15  # all texts share a constant, which brings them 9 % nearer


@pytest.mark.parametrize(
    ("words", "right"),
    [
        ("a banana", "banane.png"),
        ("a bicycle", "fahrrad.png"),
        ("a cat", "chelsea.jpg"),
        ("a guitar", "gitarre.png"),
        ("a cup of coffee", "morning.jpg"),
        ("a rocket launch", "launch.jpg"),
        ("a sailing boat", "boot.png"),
    ],
)
def test_words_find_the_picture_in_photos(
    lite: FeatureEncoder, photos: dict[str, FloatArray], words: str, right: str
) -> None:
    scores = np.stack(list(photos.values())) @ lite.encode_texts([words])[0]
    assert list(photos)[scores.argmax()] == right


def test_a_picture_is_the_mean_of_its_likeliest_classes() -> None:
    tensors = {
        "weight": np.eye(3, dtype=np.float32),
        "bias": np.zeros(3, dtype=np.float32),
        "classes": np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float32),
        "temperature": np.array([2], dtype=np.float32),
        "top": np.array([2], dtype=np.float32),
    }
    logits = np.array([[2 * np.log(3), 0, -1], [0, 0, 5]], dtype=np.float32)
    first, second = project("conse", logits, tensors)
    assert np.allclose(first, np.array([3, 1]) / np.sqrt(10), atol=1e-6)  # shares 3 : 1, the third class left out
    assert second[0] < 0


def test_a_crowded_picture_answers_less() -> None:
    tensors = {
        "weight": np.eye(2, dtype=np.float32),
        "bias": np.zeros(2, dtype=np.float32),
        "classes": np.eye(2, 3, dtype=np.float32),
        "temperature": np.ones(1, dtype=np.float32),
        "top": np.ones(1, dtype=np.float32),
        "hidden.weight": np.zeros((2, 1), dtype=np.float32),
        "hidden.bias": np.zeros(1, dtype=np.float32),
        "out.weight": np.zeros((1, 3), dtype=np.float32),
        "out.bias": np.zeros(3, dtype=np.float32),
        "share": np.ones(1, dtype=np.float32),
        "crowd": np.array([[100, 0, 0], [80, 60, 0], [0, 0, 0]], dtype=np.float32),
        "crowd.scale": np.array([0.01], dtype=np.float32),
        "crowd.nearest": np.array([2], dtype=np.float32),
        "crowd.usual": np.array([0.5], dtype=np.float32),
        "crowd.axis": np.array([0, 0, -2], dtype=np.float32),
    }
    pictures = project("uncrowded", np.array([[9, 0], [0, 9]], dtype=np.float32), tensors)
    first, second = [1, 0, -2 * (0.9 - 0.5)], [0, 1, -2 * (0.3 - 0.5)]
    assert np.allclose(pictures, [first / np.linalg.norm(first), second / np.linalg.norm(second)], atol=1e-6)
    text = project("constant", np.array([[3, 3, 0]], dtype=np.float32), {"beside": np.array([0, 0, 0.3], np.float32)})
    assert pictures[0] @ text[0] < pictures[1] @ text[0]  # though it is as near to both


def test_a_crowded_text_answers_less() -> None:
    tensors = {
        "crowd": np.array([[100, 0, 0, 0], [80, 60, 0, 0], [0, 0, 0, 0]], dtype=np.float32),
        "crowd.scale": np.array([0.01], dtype=np.float32),
        "crowd.nearest": np.array([2], dtype=np.float32),
        "crowd.usual": np.array([0.5], dtype=np.float32),
        "crowd.axis": np.array([0, 0, 0, -2], dtype=np.float32),
        "beside": np.array([0, 0, 0.3, 0], dtype=np.float32),
    }
    texts = project("uncrowded_text", np.array([[2, 0, 0, 0], [0, 3, 0, 0]], dtype=np.float32), tensors)
    first, second = [1, 0, 0.3, -2 * (0.9 - 0.5)], [0, 1, 0.3, -2 * (0.3 - 0.5)]
    assert np.allclose(texts, [first / np.linalg.norm(first), second / np.linalg.norm(second)], atol=1e-6)
    picture = np.array([0.7, 0.7, 0, 0.3], np.float32)
    assert texts[0] @ picture < texts[1] @ picture  # though both are as near to it


def test_a_long_text_is_counted_in_full_and_cut(lite: FeatureEncoder) -> None:
    assert lite.max_tokens == 256
    assert lite.count_tokens("a dog") == 4  # with its first and last token
    assert lite.count_tokens("dog " * 1000) == 1002
    assert np.allclose(lite.encode_texts(["dog " * 254]), lite.encode_texts(["dog " * 1000]), atol=1e-5)


def test_torch_is_not_needed() -> None:
    code = """
import sys
for name in ("torch", "open_clip", "timm", "transformers"):
    sys.modules[name] = None  # importing it fails
from PIL import Image
from mmsearch.encoders.catalog import load_encoder
lite = load_encoder("lite")
print(lite.encode_texts(["a dog"]).shape, lite.encode_images([Image.new("RGB", (9, 9))]).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=os.environ)
    assert re.fullmatch(r"\(1, 384\) \(1, 384\)", done.stdout.strip())


def scores_of(lite: FeatureEncoder, texts: list[str], images: list[Image.Image]) -> FloatArray:
    return lite.encode_texts(texts) @ lite.encode_images(images).T


HELD_OUT = Path(__file__).with_name("held_out")


def test_it_finds_what_no_part_of_its_recipe_has_seen(lite: FeatureEncoder) -> None:
    labels = [line.split("\t") for line in (HELD_OUT / "labels.tsv").read_text(encoding="utf-8").splitlines()]
    shown = lite.encode_images([Image.open(HELD_OUT / name) for name, _ in labels])
    words = list(dict.fromkeys(word for _, word in labels))
    right = np.array([[label == word for _, label in labels] for word in words])
    ranks = best_ranks(lite.encode_texts(words) @ shown.T, right)
    assert len(words) >= 20
    # It reaches 0.60 and 0.84 (before anything was trained for it: 0.64 and 0.80); a word of 25 is 0.04. Without the
    # crowd it was 0.68 and 0.84, although over all 260 words held out the crowd adds 0.027 at the first place.
    assert recall_at_k(ranks, 1) >= 0.56
    assert recall_at_k(ranks, 5) >= 0.76
