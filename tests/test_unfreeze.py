"""`train heads --unfreeze`: the last blocks learn and nothing before them, and the result is a model that searches."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmsearch import Index, load_encoder
from mmsearch.errors import TrainingError, UsageError
from mmsearch.train.unfreeze import UnfreezeSettings, unfreeze, unfrozen
from tests.conftest import Run, command
from tests.dialect import draw
from tests.test_openclip import save_model

FAST = {"epochs": 6, "batch": 32, "learning_rate": 0.004, "augment": 0.0, "held_out": 0.3}


@dataclass(frozen=True)
class Trained:
    """A model of random weights, and what `train heads --unfreeze 1` made of it."""

    base: Path
    pairs: Path
    model: Path
    facts: dict[str, Any]
    notes: str


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("dialect"), each=6)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base") / "vit", "vit")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, base: Path, pairs: Path) -> Trained:
    folder = tmp_path_factory.mktemp("unfreeze")
    index, model = folder / "index", folder / "mine"
    environment = os.environ | {"MMSEARCH_CACHE": str(folder / "cache"), "HOME": str(folder)}
    settings = [part for name, value in FAST.items() for part in ("--set", f"{name}={value}")]
    train = ["train", "heads", str(pairs), "-i", str(index), "--unfreeze", "1", "-o", str(model), *settings, "--json"]
    first = pairs.parent / "red-red-0.png"
    for arguments in (["index", str(first), "-i", str(index), "--model", f"local-dir:{base}"], train):
        done = subprocess.run(command(*arguments), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return Trained(base, pairs, model, json.loads(done.stdout), done.stderr)


@pytest.mark.slow
def test_the_last_blocks_learn_and_the_result_searches(trained: Trained, tmp_path: Path) -> None:
    facts = trained.facts
    assert facts["folder"] == str(trained.model) and facts["blocks"] == 1 and facts["share"] > 0
    assert facts["after"] > facts["before"] + 0.1
    assert "steps of 32 pairs, some" in trained.notes
    encoder = load_encoder(str(trained.model))
    assert encoder.name == "mine"
    card = (trained.model / "README.md").read_text()
    assert "--unfreeze 1" in card and str(trained.base) in card
    with Index(tmp_path / "index", model=str(trained.model)) as index:
        index.add_images([Image.open(trained.pairs.parent / "red-red-0.png")])
        assert index.search("zorp", k=3)


@pytest.mark.slow
def test_nothing_before_the_last_blocks_changes(trained: Trained) -> None:
    from safetensors.torch import load_file

    old = load_file(trained.base / "model.safetensors")
    new = load_file(f"{trained.model}.training/open_clip/open_clip_model.safetensors")
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    first = {name for name in old if "resblocks.0." in name}
    assert {name for name in changed if "resblocks.1." in name}
    assert first and not changed & first
    assert not [name for name in changed if "embedding" in name or "conv1" in name or "logit_scale" in name]


@pytest.mark.slow
def test_the_weights_are_there_for_open_clip_too(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSEARCH_CACHE", str(tmp_path / "cache"))
    again = load_encoder(f"local-dir:{trained.model}.training/open_clip", precision="fp32")
    mine = load_encoder(str(trained.model))
    np.testing.assert_allclose(again.encode_texts(["zorp"]), mine.encode_texts(["zorp"]), atol=1e-4)


def test_what_belongs_together_is_asked_for(mmsearch: Run, pairs: Path) -> None:
    done = mmsearch("train", "heads", str(pairs), "--unfreeze", "1")
    assert done.returncode == 2 and "belong together" in done.stderr


@pytest.mark.parametrize(("blocks", "says"), [(99, "has 2 blocks"), (0, "1 or more")])
def test_more_blocks_than_there_are_are_refused(
    base: Path, pairs: Path, tmp_path: Path, blocks: int, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        unfreeze(f"local-dir:{base}", [pairs], tmp_path / "other", blocks, UnfreezeSettings())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_folder_that_is_there_is_not_written_to(trained: Trained) -> None:
    with pytest.raises(UsageError, match="is there already"):
        unfreeze(f"local-dir:{trained.base}", [trained.pairs], trained.model, 1, UnfreezeSettings())


def test_a_model_without_torch_weights_is_refused(pairs: Path, tmp_path: Path) -> None:
    with Index(tmp_path / "index", model="lite") as index:
        index.add_texts(["some text"])
        with pytest.raises(UsageError, match="'lite' is none"):
            index.unfreeze(pairs, into=tmp_path / "mine")
    assert not (tmp_path / "mine").exists() and not (tmp_path / "mine.training").exists()


def test_towers_without_blocks_are_refused(tmp_path: Path) -> None:
    import open_clip

    folder = save_model(tmp_path / "resnet", "resnet")
    model = open_clip.create_model(f"local-dir:{folder}")
    with pytest.raises(UsageError, match="The image tower of resnet is not made of blocks"):
        unfrozen(model, 1, "resnet")


def test_too_few_pairs_are_refused(base: Path, pairs: Path, tmp_path: Path) -> None:
    few = pairs.parent / "few.csv"
    rows = pairs.read_text().splitlines(keepends=True)
    few.write_text("".join([rows[0], *rows[1::30]]))
    with pytest.raises(TrainingError, match="held-out pairs tell nothing"):
        unfreeze(f"local-dir:{base}", [few], tmp_path / "mine", 1, UnfreezeSettings(held_out=0.1))
    assert not list(tmp_path.glob("mine*"))


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch": 1}, {"learning_rate": -1.0}, {"held_out": 0.95}, {"epochs": 1.5}, {"seed": True}]
)
def test_settings_that_make_no_sense_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        UnfreezeSettings.of(wrong)
