"""Every tower, fusion and objective that `train encoder --list` names is trained, written, loaded and asked.

The product of all is some 2,500 trainings; these cover every two choices of different kinds together at least once
(pairwise, as most faults of combination are of two). Of the text towers that are BERTs by another name, each is there
once: what is written of them is the same.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mmsearch import load_encoder
from mmsearch.encoders.joint import describing_of, fused_of
from mmsearch.errors import ModelError, UsageError
from mmsearch.sources.pairs import PairColumns
from mmsearch.train.design import FUSIONS, TEXT_KINDS, TWO_TOWER, EncoderDesign
from mmsearch.train.encoder import train_encoder
from mmsearch.train.recurrent import Lstm, lstm
from mmsearch.train.towers import as_timm, given_folder, image_tower
from tests import toys

IMAGES = ("resnet10t", "efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto")
BESIDE = ("", "matching", "classification", "description", "matching,classification,description")
CHOICES: tuple[Sequence[str], ...] = (IMAGES, TEXT_KINDS, FUSIONS, TWO_TOWER, BESIDE)


def makes_sense(image: str, text: str, fusion: str, towers: str, beside: str) -> bool:
    joint = "matching" in beside or "classification" in beside
    return joint == (fusion != "none")


LIKE_BERT = ("roberta", "distilbert", "minilm")


def two_of(row: tuple[str, ...]) -> set[tuple[int, int, str, str]]:
    """Every two choices of a row; of a tower like BERT that it is there."""
    places = itertools.combinations(range(len(row)), 2)
    return {(1, 1, row[1], "") if row[1] in LIKE_BERT and 1 in (a, b) else (a, b, row[a], row[b]) for a, b in places}


def pairwise() -> list[tuple[str, ...]]:
    """Few rows in which every two choices that may meet do, greedily."""
    every = [row for row in itertools.product(*CHOICES) if makes_sense(*row)]
    left = set().union(*map(two_of, every))
    rows = []
    while left:
        best = max(every, key=lambda row: len(two_of(row) & left))
        left -= two_of(best)
        rows.append(best)
    return rows


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.pairs(tmp_path_factory.mktemp("pairs"), 24)


def design(image: str, text: str, fusion: str, objective: str) -> EncoderDesign:
    return EncoderDesign.of(
        {
            "image_tower": image, "image_size": 32, "text_tower": text, "dim": 16,
            "text_width": 16, "text_layers": 1, "text_heads": 2, "fusion": fusion, "fusion_width": 16,
            "fusion_layers": 1, "objective": objective, "batch": 4, "steps": 2, "interval": 2, "warmup_steps": 1,
            "max_tokens": 12, "device": "cpu", "augment": 0.0, "held_out": 0.2,
        }
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("image", "text", "fusion", "towers", "beside"), pairwise())
def test_what_is_listed_is_trained_written_loaded_and_asked(
    image: str, text: str, fusion: str, towers: str, beside: str, table: Path, tmp_path: Path
) -> None:
    objective = ",".join(filter(None, (towers, beside)))
    report = train_encoder(
        [table], tmp_path / "mine", design(image, text, fusion, objective), columns=PairColumns(label="feeling")
    )
    assert report is not None
    bundle = load_encoder(str(report.folder))
    for texts in (["red"], ["a red disc by night", "blue", "a green disc by day and by night and by day again"]):
        rows = bundle.encode_texts(texts)
        assert rows.shape == (len(texts), 16) and np.isfinite(rows).all()
    pixels = np.zeros((2, bundle.pixels.height, bundle.pixels.width, 3), np.uint8)
    assert np.isfinite(bundle.project_images(bundle.image_features(pixels))).all()
    fused, describing = fused_of(bundle), describing_of(bundle)
    assert (fused is None) == (fusion == "none") and (describing is None) == ("description" not in beside)
    if fused is not None:
        short, long = (fused.logits(pixels, [text, "red"]) for text in ("blue", "blue by night and by day and by noon"))
        assert np.isfinite(short).all() and np.isfinite(long).all()
        np.testing.assert_allclose(short[1], long[1], atol=0.05)  # what fills a row up changes nothing
    if describing is not None:
        assert isinstance(describing.describe(pixels[0]), str)


def test_rows_cover_every_two_choices_that_may_meet() -> None:
    every = [row for row in itertools.product(*CHOICES) if makes_sense(*row)]
    assert set().union(*map(two_of, pairwise())) == set().union(*map(two_of, every))
    assert {row[1] for row in pairwise()} == {*TEXT_KINDS} and len(pairwise()) < 40


class Unwritable(torch.nn.Module):
    """What ONNX has no operator for."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(tokens @ tokens.transpose(1, 2)).real


def test_what_cannot_be_written_is_found_before_the_training(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmsearch.train import fusion

    def made(width: int, layers: int, dropout: float) -> torch.nn.Module:
        class Fused(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.within = Unwritable()

            def forward(self, image: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                return text.mean(dim=1) + self.within(image).mean()

        return Fused()

    monkeypatch.setitem(fusion.FUSED, "concatenation", made)
    moments: list[object] = []
    with pytest.raises(ModelError, match="torch cannot write it as ONNX"):
        train_encoder(
            [table],
            tmp_path / "mine",
            design("resnet10t", "bilstm", "concatenation", "info_nce,matching"),
            tell=moments.append,
        )
    assert not moments


def test_the_lstm_that_is_written_is_torchs() -> None:
    layer = Lstm(8, 6).eval()
    tokens = torch.randn(3, 5, 8)
    with torch.inference_mode():
        written = lstm(tokens, layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)
        torch.testing.assert_close(written, layer(tokens)[0])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("vgg16", 224), ("resnet50", 64), ("inception_v3", 128)])
def test_weights_of_torchvision_give_torchvisions_features(name: str, size: int) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    extra = {"aux_logits": True, "init_weights": False} if name == "inception_v3" else {}
    theirs = torchvision.models.get_model(name, weights=None, **extra).eval()
    tower = image_tower(EncoderDesign.of({"image_tower": name, "image_size": size})).eval()
    own = tower.trunk.state_dict()
    given = as_timm(theirs.state_dict(), own)
    assert all(given[key].shape == own[key].shape for key in own if not key.endswith("num_batches_tracked"))
    tower.trunk.load_state_dict({key: given[key] for key in own if key in given}, strict=False)
    if name == "vgg16":
        theirs.classifier[6] = torch.nn.Identity()
    else:
        theirs.fc = torch.nn.Identity()
    normal = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        due = theirs(normal)
        torch.testing.assert_close(tower.read(normal).features, due, atol=1e-4 * float(due.abs().max()), rtol=1e-3)


def test_a_name_of_the_hub_says_how_to_get_there_without_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"cannot be reached.*hf download no-such/model --local-dir FOLDER"):
        given_folder("no-such/model")
    with pytest.raises(UsageError, match="There is no text tower 'brt'; did you mean bert"):
        given_folder("brt")
