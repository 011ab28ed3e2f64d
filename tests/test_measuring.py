"""`evaluate`: what is counted, against tables that are worked out by hand and against clip_benchmark's formula."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mmsearch.encoders.heads import unit_rows
from mmsearch.errors import SourceError, TrainingError, UsageError
from mmsearch.evaluate import difference, measured, paired_p, reciprocal_rank
from mmsearch.index import Index
from mmsearch.measuring import Evaluation, evaluate_model, evaluation
from mmsearch.train.residual import HeadSettings
from mmsearch.train.rows import Rows
from mmsearch.training import Gathered
from tests.colours import COLOURS, ColourEncoder, swatch
from tests.dialect import DialectEncoder, draw


def gathered(pictures: np.ndarray, texts: np.ndarray, pairs: list[tuple[int, int]]) -> Gathered:
    return Gathered(
        Rows(pictures, pictures),
        Rows(texts, texts),
        [f"text {number}" for number in range(len(texts))],
        [f"picture {number}" for number in range(len(pictures))],
        [str(number) for number in range(len(pictures))],
        [None] * len(pictures),
        [None] * len(pictures),
        [(picture, text, 1.0) for picture, text in pairs],
        [],
        0,
        (),
    )


def random_rows(count: int, seed: int, dim: int = 16) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32))


def test_several_captions_and_identical_ones_are_counted_right() -> None:
    # Two pictures; "a" belongs to both, "b" and "c" to the second
    pictures = np.array([[1, 0], [0, 1]], np.float32)
    texts = unit_rows(np.array([[0.1, 1.0], [1.0, 0.2], [0.5, 0.6]], np.float32))
    found = evaluation("test", gathered(pictures, texts, [(0, 0), (1, 0), (1, 1), (1, 2)]), None)
    assert found.ranked.text_to_image.tolist() == [1, 2, 1]  # "a" finds the second, which is right for it
    # The first picture: b, c, a; only a is right. The second: a, c, b; all are
    assert found.ranked.image_to_text.tolist() == [3, 1]
    assert found.figures["text to image"].recall[1].value == pytest.approx(2 / 3)
    assert found.figures["image to text"].median_rank.value == 2


def test_recall_is_clip_benchmarks_to_the_last_digit() -> None:
    """clip_benchmark/metrics/zeroshot_retrieval.py, `evaluate` and `recall_at_k`, on the same embeddings."""
    captions = 5
    images = random_rows(300, 0)
    near = images.repeat(captions, axis=0) + 0.9 * random_rows(300 * captions, 1)
    texts = unit_rows(near.astype(np.float32))
    pairs = [(number // captions, number) for number in range(len(texts))]
    found = evaluation("test", gathered(images, texts, pairs), None)
    scores = torch.from_numpy(texts) @ torch.from_numpy(images).T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), torch.arange(len(scores)) // captions] = True
    for k in (1, 5, 10):
        image_recall = (_recall_at_k(scores, positive, k) > 0).float().mean().item()
        text_recall = (_recall_at_k(scores.T, positive.T, k) > 0).float().mean().item()
        assert found.figures["text to image"].recall[k].value == pytest.approx(image_recall, abs=5e-4)
        assert found.figures["image to text"].recall[k].value == pytest.approx(text_recall, abs=5e-4)


def _recall_at_k(scores: torch.Tensor, positive_pairs: torch.Tensor, k: int) -> torch.Tensor:
    """As clip_benchmark has it."""
    nb_texts, nb_images = scores.shape
    topk_indices = torch.topk(scores, k, dim=1)[1]
    nb_positive = positive_pairs.sum(dim=1)
    topk_indices_onehot = torch.nn.functional.one_hot(topk_indices, num_classes=nb_images)
    positive_pairs_reshaped = positive_pairs.view(nb_texts, 1, nb_images)
    nb_true_positive = (topk_indices_onehot * positive_pairs_reshaped).sum(dim=(1, 2))
    return nb_true_positive / nb_positive


def test_figures_by_hand() -> None:
    ranks = np.array([1, 2, 4, 20])
    assert reciprocal_rank(ranks) == pytest.approx((1 + 0.5 + 0.25 + 0.05) / 4)
    figures = measured(ranks, 30)
    assert (figures.queries, figures.answers, figures.median_rank.value, figures.finds) == (4, 30, 3, 0.75)
    assert figures.recall[1].low <= 0.25 <= figures.recall[1].high


def test_the_paired_test_sees_a_change_and_does_not_see_what_is_none() -> None:
    random = np.random.default_rng(0)
    before = random.random(200)
    assert paired_p(before, before) == 1.0
    assert paired_p(before, before + 0.1) < 0.001
    noise = random.permutation(before)
    assert paired_p(before, noise) > 0.05
    gain = difference(before, before + 0.1)
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.1, 0.1, 0.1))
    # 3 up, none down: of 8 ways to flip the signs 2 are as large
    assert paired_p(np.zeros(3), np.ones(3)) == pytest.approx(0.25, abs=0.03)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return draw(tmp_path / "dialect", each=4)


@pytest.fixture
def index(tmp_path: Path, pairs: Path) -> Iterator[Index]:
    with Index(tmp_path / "index", encoder=DialectEncoder()) as index:
        index.add(pairs.parent)
        yield index


def test_new_heads_are_measured_against_the_old_on_the_same_pairs(index: Index, pairs: Path) -> None:
    settings = HeadSettings(epochs=15, batch=64, hidden=32, learning_rate=5e-3)
    index.train_heads(pairs, settings=settings, use=True)
    found = index.evaluate(pairs, against="off")
    assert found.against is not None
    assert (found.name, found.against.name) == ("trained", "own heads")
    gain = found.against.gain["text to image"]
    both = found.figures["text to image"].finds - found.against.figures["text to image"].finds
    assert gain.value == pytest.approx(both, abs=1e-6)
    assert gain.low > 0 and found.against.p["text to image"] < 0.01
    assert index.evaluate(pairs, heads="off").figures == found.against.figures
    said = json.loads(found.to_json())
    assert set(said["figures"]["text to image"]["recall"]) == {"1", "5", "10"}


def test_a_model_alone_agrees_with_the_index_that_it_made(index: Index, pairs: Path) -> None:
    alone = evaluate_model(DialectEncoder(), [pairs])
    within = index.evaluate(pairs)
    assert alone.figures["text to image"].finds == pytest.approx(within.figures["text to image"].finds, abs=0.02)


def test_where_a_column_says_so_only_the_test_is_measured(index: Index, pairs: Path, tmp_path: Path) -> None:
    with pairs.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = tmp_path / "split.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "caption", "split"))
        for place, row in enumerate(rows):
            writer.writerow((str(pairs.parent / row["path"]), row["caption"], "test" if place % 4 == 0 else "train"))
    assert index.evaluate(table).pictures == len(rows) / 4


def test_what_cannot_be_measured_is_said(index: Index, pairs: Path) -> None:
    with pytest.raises(TrainingError, match="No pair"):
        index.evaluate()  # there are no captions
    with pytest.raises(UsageError, match="no heads 'nonsense'"):
        index.evaluate(pairs, heads="nonsense")
    with pytest.raises(UsageError, match="measured on pairs"):
        evaluate_model(DialectEncoder(), [])


def test_zero_shot_accuracy_on_folders_of_classes(tmp_path: Path) -> None:
    for colour in COLOURS:
        (tmp_path / "flowers" / colour).mkdir(parents=True)
        for number in range(3):
            swatch(colour, number).save(tmp_path / "flowers" / colour / f"{number}.png")
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add_images([swatch("red", 0)])
        found = index.evaluate_classes(tmp_path / "flowers")
        assert (found.pictures, found.classes) == (18, 6)
        assert found.top1.value == 1.0
        assert found.by_class == dict.fromkeys(sorted(COLOURS), 1.0)
        with pytest.raises(SourceError, match="two folders"):
            index.evaluate_classes(tmp_path / "flowers" / "red")


def test_plots_and_the_page_of_failures(index: Index, pairs: Path, tmp_path: Path) -> None:
    from mmsearch.cli.printing import thumbnails_of
    from mmsearch.plots import evaluation_plots
    from mmsearch.report_page import worst_page

    found = index.evaluate(pairs)
    paths = evaluation_plots(found, tmp_path / "plots")
    assert {path.name for path in paths} == {"recall.png", "ranks.png", "scores.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert found.worst[0].rank == max(found.ranked.text_to_image)
    shown = [path for failure in found.worst[:2] for path in (*failure.right, *failure.instead)]
    page = worst_page(found, thumbnails_of(shown, size_px=64))
    assert found.worst[0].text in page and "data:image/jpeg" in page
    assert "script" not in page


def test_recall_is_told_by_group_and_the_least_found_come_first(tmp_path: Path) -> None:
    # Six classes of six pictures; the names of two classes are exchanged, so that their texts find the others
    names = list(COLOURS)
    told = dict(zip(names, [names[1], names[0], *names[2:]], strict=True))
    rows = []
    for number, name in enumerate(names):
        for each in range(6):
            path = tmp_path / f"{name}-{each}.png"
            swatch(name, each).save(path)
            rows.append((path.name, f"{told[name]} {each}", f"${name}$" if number == 0 else name))
    table = tmp_path / "labelled.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "caption", "class"), *rows])
    found = evaluate_model(ColourEncoder(), [table])
    assert {group.name for group in found.groups[:2]} == {f"${names[0]}$", names[1]}
    assert [group.queries for group in found.groups] == [6] * len(names)
    assert found.groups[0].recall.value < 0.5 < found.groups[-1].recall.value
    from mmsearch.plots import evaluation_plots

    assert "groups.png" in {path.name for path in evaluation_plots(found, tmp_path / "plots")}
    assert json.loads(found.to_json())["groups"][0]["queries"] == 6


def test_a_hostile_caption_stays_text_on_the_page() -> None:
    from mmsearch.report_page import worst_page

    pictures, texts = random_rows(20, 0), random_rows(20, 1)
    pairs = gathered(pictures, texts, [(number, number) for number in range(20)])
    pairs.said[:] = ["<img src=x onerror=alert(1)>"] * 20
    found: Evaluation = evaluation("test", pairs, None)
    assert "<img src=x" not in worst_page(found, {})
