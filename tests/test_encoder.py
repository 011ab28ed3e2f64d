"""Encoders from the ground up: parts by name, a run that may be cut off, and a model that an index reads at once."""

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from mmsearch import Index, load_encoder
from mmsearch.encoders.joint import describing_of, fused_of
from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.errors import Error, ModelError, TrainingError, UsageError
from mmsearch.judging import judge_of
from mmsearch.sources.pairs import PairColumns, read_pairs
from mmsearch.train import checkpoints
from mmsearch.train.design import EncoderDesign
from mmsearch.train.encoder import EncoderReport, Moment, train_encoder
from mmsearch.train.examples import changed, gather
from mmsearch.train.losses import FIRST_SCALE
from mmsearch.train.model import Model, Shown, _drawn, _preferred
from mmsearch.train.towers import image_tower, text_tower, turned_places
from mmsearch.train.words import words_for
from tests import toys
from tests.conftest import ROOT, Run

TINY = {
    "image_tower": "resnet10t", "image_size": 32, "text_tower": "bilstm", "dim": 32, "text_width": 32,
    "fusion_width": 32, "fusion_layers": 1, "batch": 12, "steps": 6, "interval": 3, "warmup_steps": 2, "max_tokens": 12,
    "learning_rate": 2e-3, "device": "cpu",
}  # fmt: skip


def tiny(**settings: Any) -> EncoderDesign:
    return EncoderDesign.of(TINY | settings)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small steps gain nothing from more, and a loaded machine loses by them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def made(table: Path) -> EncoderReport:
    """A model with everything, a little trained."""
    design = tiny(
        steps=60, interval=30, batch=24, augment=0.3, fusion="cross_attention", ema=0.9, held_out=0.4,
        objective="info_nce,matching,classification,description",
    )  # fmt: skip
    columns = PairColumns(label="feeling")
    report = train_encoder([table], table.parent / "mine", design, columns=columns)
    assert report is not None
    return report


# The result


def test_a_trained_model_is_indexed_and_searched_at_once(made: EncoderReport, table: Path, tmp_path: Path) -> None:
    with Index(tmp_path / "index", model=str(made.folder)) as index:
        index.add_images([toys.shape(colour, "disc", 999) for colour in toys.COLOURS], ids=list(toys.COLOURS))
        assert index.search("a blue disc", k=1)[0].id == "blue"
        assert index.status().model == "mine"


def test_the_card_says_what_was_done(made: EncoderReport) -> None:
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    for said in ("resnet10t", "bilstm", "cross_attention", "1 matching", f"| pairs | {made.pairs} |", "recall@10"):
        assert said in card


def test_recall_on_pairs_held_out_is_above_chance_and_reported(made: EncoderReport) -> None:
    assert made.recall is not None and made.chance is not None
    assert made.recall > 2 * made.chance
    assert [record["step"] for record in made.history] == [30, 60]
    assert made.history[-1]["loss"] < made.history[0]["loss"]


def with_worth(made: EncoderReport, folder: Path, **figures: float) -> Path:
    """The same model, as if its held-out pairs had given other figures."""
    shutil.copytree(made.folder, folder)
    manifest = json.loads((folder / "preprocess.json").read_text(encoding="utf-8"))
    manifest["extras"]["fusion"]["worth"] |= figures
    (folder / "preprocess.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def test_held_out_pairs_say_what_the_fusion_encoder_is_worth(made: EncoderReport) -> None:
    worth = made.fusion
    assert worth is not None and worth.pairs >= 30 and worth.queries > 0 and worth.ms > 0
    assert worth.auc_fusion > 0.6 and worth.auc_cosine > 0.6  # a coin has 0.5
    fused = fused_of(load_encoder(str(made.folder)))
    assert fused is not None and fused.worth == worth
    assert f"AUC {worth.auc_fusion:.3f}" in (made.folder / "README.md").read_text(encoding="utf-8")
    assert made.facts()["fusion"]["auc_cosine"] == worth.auc_cosine


@pytest.mark.parametrize(
    "fusion",
    [{}, {"matches": True}, {"matches": True, "classes": 3}, {"matches": True, "classes": [], "worth": {"auc": 1}}, 7],
)
def test_a_bundle_that_says_nonsense_of_its_fusion_encoder_is_damaged(
    made: EncoderReport, tmp_path: Path, fusion: object
) -> None:
    shutil.copytree(made.folder, tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / "preprocess.json").read_text(encoding="utf-8"))
    manifest["extras"] |= {"fusion": fusion, "decoder": {"begin": "first"}, "calibration": [1, 2]}
    (tmp_path / "model" / "preprocess.json").write_text(json.dumps(manifest), encoding="utf-8")
    encoder = load_encoder(str(tmp_path / "model"))
    for read in (fused_of, describing_of, lambda bundle: bundle.calibration):
        with pytest.raises(ModelError, match="is damaged"):
            read(encoder)


@pytest.mark.parametrize(
    ("auc", "by"), [(0.91, "fusion encoder"), (0.89, "calibrated cosine"), (0.9, "calibrated cosine")]
)
def test_match_takes_what_was_better_on_held_out_pairs(
    made: EncoderReport, tmp_path: Path, auc: float, by: str
) -> None:
    folder = with_worth(made, tmp_path / "model", auc_fusion=auc, auc_cosine=0.9)
    found = judge_of(load_encoder(str(folder))).match(toys.shape("red", "disc", 7), "a red disc by day")
    assert found.by == by and 0 <= found.probability <= 1


def test_a_fusion_encoder_that_orders_no_better_is_not_reranked_with(made: EncoderReport, tmp_path: Path) -> None:
    folder = with_worth(made, tmp_path / "model", mrr_reranked=0.4, mrr_cosine=0.5)
    with Index(tmp_path / "index", model=str(folder)) as index:
        index.add_images([toys.shape("red", "disc", 7)])
        with pytest.raises(UsageError, match=r"0\.400 against 0\.500"):
            index.search("red", rerank=True)


def test_few_held_out_pairs_leave_the_fusion_encoder_aside(table: Path, tmp_path: Path) -> None:
    design = tiny(fusion="concatenation", objective="info_nce,matching", steps=2, interval=2, held_out=0.1)
    report = train_encoder([table], tmp_path / "few", design)
    assert report is not None and report.fusion is None
    found = judge_of(load_encoder(str(report.folder))).match(toys.shape("red", "disc", 7), "a red disc by day")
    assert found.by == "calibrated cosine"
    with Index(tmp_path / "index", model=str(report.folder)) as index:
        index.add_images([toys.shape("red", "disc", 7)])
        with pytest.raises(UsageError, match="too few held-out pairs"):
            index.search("red", rerank=True)


def test_a_model_with_a_fusion_encoder_and_a_decoder_answers_by_them(made: EncoderReport, tmp_path: Path) -> None:
    with Index(tmp_path / "index", model=str(made.folder)) as index:
        index.add_images([toys.shape("red", "disc", 7)], captions=["a red disc by day"])
        labels = index.classify(toys.shape("red", "disc", 7), text="a red disc by day")
        assert {label.label for label in labels} == {"calm", "odd"} and labels[0].by == "trained head"
        said = index.describe(toys.shape("red", "disc", 7))
        assert said.by == "decoder" and said.text


def test_a_model_that_was_trained_here_has_a_calibration_of_its_own(made: EncoderReport) -> None:
    curve = load_encoder(str(made.folder)).calibration  # type: ignore[attr-defined]
    assert curve is not None and curve.slope > 0


def test_reranking_orders_the_first_hits_by_the_fusion_encoder(made: EncoderReport, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for colour in toys.COLOURS:
        toys.shape(colour, "disc", 5).save(files / f"{colour}.png")
    folder = with_worth(made, tmp_path / "model", auc_fusion=1, auc_cosine=0.9, mrr_reranked=1, mrr_cosine=0.9)
    with Index(tmp_path / "index", model=str(folder)) as index:
        index.add(files)
        plain = index.search("a yellow disc by day")
        moved = index.search("a yellow disc by day", rerank=True)
        assert {hit.id for hit in moved} == {hit.id for hit in plain}
        likely = [index.match(hit.path, "a yellow disc by day").probability for hit in moved]  # type: ignore[arg-type]
        assert likely == sorted(likely, reverse=True)
        assert [hit.rank for hit in moved] == [1, 2, 3, 4]
        assert len(index.search("a yellow disc by day", k=2, rerank=True)) == 2
        with pytest.raises(UsageError, match="none"):
            index.search(files / "red.png", rerank=True)


def test_reranking_without_a_fusion_encoder_says_what_to_do(tmp_path: Path) -> None:
    with Index(tmp_path / "index", model="lite") as index:
        index.add_texts(["a cat"])
        with pytest.raises(UsageError, match="--fusion cross_attention"):
            index.search("cat", rerank=True)


def test_tensorboard_reads_the_log_and_the_curves_are_a_picture(made: EncoderReport) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(os.fspath(made.training / "log"))
    log.Reload()
    assert {"loss", "info_nce", "matching", "classification", "description", "recall@10"} <= {*log.Tags()["scalars"]}
    assert len(log.Scalars("loss")) == 60
    assert Image.open(made.training / "curves.png").width > 600


# A run that is cut off, and one of several processes


def until(step: int) -> Callable[[Moment], None]:
    """Ctrl-C after a step and its checkpoint; after the last one, what is left out is writing the model."""

    def stop(moment: Moment) -> None:
        if moment.step >= step:
            raise KeyboardInterrupt

    return stop


def losses(report: EncoderReport | None) -> list[float]:
    assert report is not None
    return [record["loss"] for record in report.history]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_that_was_cut_off_draws_the_curve_of_one_that_was_not(
    optimizer: str, table: Path, tmp_path: Path
) -> None:
    design = tiny(optimizer=optimizer, ema=0.9, steps=4, interval=1, accumulate=2, batch=6, fusion="concatenation",
                  objective="sigmoid,matching=0.5")  # fmt: skip

    def run(name: str, step: int, *, resume: bool = False) -> None:
        with pytest.raises(KeyboardInterrupt):
            train_encoder([table], tmp_path / name, design, tell=until(step), resume=resume)

    run("whole", 4)
    run("cut", 2)
    with pytest.raises(TrainingError, match="--resume"):
        train_encoder([table], tmp_path / "cut", design)
    run("cut", 4, resume=True)
    one, other = (checkpoints.latest(tmp_path / f"{name}.training") for name in ("whole", "cut"))
    assert one is not None and other is not None
    assert checkpoints.read(one) == checkpoints.read(other)
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (one / file).read_bytes() == (other / file).read_bytes()
    assert len(list(one.parent.glob("step-*"))) == checkpoints.KEPT


@pytest.mark.slow
def test_two_processes_draw_the_curve_of_one(table: Path, tmp_path: Path) -> None:
    # A tower without batch norm, whose statistics are each process's own on a CPU
    settings = {**TINY, "image_tower": "vit_tiny_patch16_224", "dropout": 0.0, "interval": 1, "steps": 4}
    config = tmp_path / "config.toml"
    config.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items()))
    one = train_encoder([table], tmp_path / "one", EncoderDesign.of(settings))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "cli.py")]
    arguments = ["train", "encoder", str(table), "-o", str(tmp_path / "two"), "--config", str(config), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command, *arguments], capture_output=True, text=True, env=environment,
                          timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = [record["loss"] for record in json.loads(done.stdout)["history"]]
    assert two == pytest.approx(losses(one), rel=2e-4)
    assert two[0] != two[-1]


# The parts


TEXT_TOWERS = ["bilstm", "bert", "roberta", "distilbert", "minilm", "gpt2", "open_clip"]


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_what_fills_a_row_up_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    tower = text_tower(tiny(text_tower=name, text_layers=2), 50).eval()
    short = torch.tensor([[2, 5, 6, 3], [2, 9, 3, 0]])
    long = torch.nn.functional.pad(short, (0, 4))
    with torch.inference_mode():
        one, other = tower(short), tower(long)
    assert torch.allclose(one.features, other.features, atol=1e-5)
    assert one.features.shape == (2, tower.width)
    assert not torch.allclose(one.features[0], one.features[1], atol=1e-3)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "mobilenetv3_small_050", "convnext_atto",
                                  "vit_tiny_patch16_224", "open_clip:ViT-S-32-alt"])  # fmt: skip
def test_image_towers_by_name_give_features_and_tokens(name: str) -> None:
    tower = image_tower(tiny(image_tower=name, image_size=64)).eval()
    with torch.inference_mode():
        read = tower(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    assert read.features.shape == (2, tower.width)
    assert read.tokens.shape[0] == 2 and read.tokens.shape[2] == tower.token_width


def test_a_row_is_turned_round_within_its_own_length() -> None:
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert turned_places(mask).tolist() == [[2, 1, 0, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize("fusion", ["concatenation", "bilstm", "cross_attention", "transformer"])
def test_every_fusion_learns_and_does_not_see_what_fills_up(fusion: str, table: Path) -> None:
    design = tiny(fusion=fusion, objective="info_nce,matching,classification", dropout=0.0)
    torch.manual_seed(0)
    model = Model(design, 40, classes=3)
    image, text = torch.randn(2, 4, model.image.token_width), torch.randn(2, 5, 32)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    assert model.fusion is not None
    model.eval()
    nn.init.normal_(model.fusion.match.weight)  # it begins at 0, so that the cosine alone decides
    cosine = torch.tensor([0.5, -0.5])
    match, classes = model.fusion(image, text, mask, cosine)
    hidden = text.masked_fill(~mask[..., None], 7.0)
    assert torch.allclose(model.fusion(image, hidden, mask, cosine)[0], match, atol=1e-4)
    assert classes.shape == (2, 3)
    model.train()
    batch = Shown(
        torch.randint(0, 255, (4, 32, 32, 3), dtype=torch.uint8), torch.randint(4, 40, (4, 6)), torch.arange(4),
        torch.arange(4), torch.tensor([0, 1, 2, -1]),
    )  # fmt: skip
    parts = model(batch)
    parts["loss"].backward()
    assert parts["loss"].item() == pytest.approx(sum(parts[name].item() for name in design.objective), rel=1e-5)
    assert all(parameter.grad is not None for parameter in model.fusion.parameters())


@pytest.mark.parametrize("fusion", ["concatenation", "bilstm", "cross_attention", "transformer"])
def test_a_fusion_encoder_begins_as_the_cosine(fusion: str) -> None:
    model = Model(tiny(fusion=fusion, objective="info_nce,matching"), 40).eval()
    assert model.fusion is not None
    cosine = torch.linspace(-1, 1, 5)
    image, text = torch.randn(5, 4, model.image.token_width), torch.randn(5, 3, 32)
    match, _ = model.fusion(image, text, torch.ones(5, 3, dtype=torch.bool), cosine)
    assert torch.allclose(match - match.mean(), FIRST_SCALE * cosine, atol=1e-4)


def test_wrong_answers_are_drawn_half_at_random_and_half_by_their_scores() -> None:
    scores = torch.tensor([[9.0, math.log(3.0), 0.0, 5.0]])
    wrong = torch.tensor([[False, True, True, False]])
    # By the softmax 3/4 and 1/4, at random 1/2 each; a right one as it would be drawn beside them
    preferred = _preferred(scores, wrong)[0]
    assert preferred[1:3].tolist() == pytest.approx([0.5 + 0.5 * 3 / 2, 0.5 + 0.5 * 1 / 2])
    assert preferred[0].item() == pytest.approx(0.5 + 0.5 * math.exp(9) / 2)
    assert {_drawn(preferred[None], wrong).item() for _ in range(50)} == {1, 2}


def test_objectives_are_summed_by_their_weights() -> None:
    design = tiny(objective="info_nce=2,triplet=0.5")
    torch.manual_seed(0)
    model = Model(design, 40).eval()
    ids = torch.randint(4, 40, (4, 6))
    pixels = torch.randint(0, 255, (4, 32, 32, 3), dtype=torch.uint8)
    parts = model(Shown(pixels, ids, torch.arange(4), torch.arange(4), torch.full((4,), -1)))
    assert parts["loss"].item() == pytest.approx(2 * parts["info_nce"].item() + 0.5 * parts["triplet"].item(), rel=1e-5)


def test_texts_that_say_the_same_are_no_wrong_answers() -> None:
    torch.manual_seed(0)
    model = Model(tiny(), 40).eval()
    ids, pixels = torch.randint(4, 40, (2, 6)), torch.randint(0, 255, (2, 32, 32, 3), dtype=torch.uint8)
    same = model(Shown(pixels, ids, torch.zeros(2, dtype=torch.long), torch.arange(2), torch.full((2,), -1)))
    assert same["info_nce"].item() == pytest.approx(0, abs=1e-6)


def test_a_picture_that_is_not_to_be_changed_is_not() -> None:
    pixels = torch.randint(0, 255, (3, 16, 16, 3), dtype=torch.uint8)
    assert (changed(pixels, torch.zeros(3, 10)).int() - pixels.int()).abs().max() <= 1
    assert not torch.equal(changed(pixels, torch.rand(3, 10)), pixels)


def test_a_tokenizer_is_learned_from_the_pairs_and_knows_words_it_has_not_seen() -> None:
    texts = ["a red disc", "a blue square", "Red squares"]
    whole, pieces = words_for(tiny(), texts), words_for(tiny(text_tower="bert"), texts)
    assert whole.rows(["A RED disc"]).tolist() == whole.rows(["a red disc"]).tolist()
    assert whole.rows(["unheard"])[0, 1] == whole.id("[UNK]")
    assert whole.rows(["red", "a red disc"]).shape == (2, 5)
    assert whole.rows(["red " * 50]).shape[1] == 12 and whole.rows(["red " * 50])[0, -1] == whole.id("[SEP]")
    assert len(pieces) > 20


# What is refused, each with a sentence


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"objective": "info_nce,matching"}, "choose a fusion"),
        ({"objective": "matching", "fusion": "bilstm"}, "searched by its two towers"),
        ({"fusion": "transformer"}, "would learn nothing"),
        ({"objective": "info_nce=-1"}, "weights are numbers above 0"),
        ({"objective": "guessing"}, "no objective 'guessing'"),
        ({"optimizer": "lion"}, "no optimizer 'lion'"),
        ({"batch": 1}, "no wrong answer"),
        ({"text_tower": "bert", "text_width": 30}, "multiple of text_heads"),
        ({"learning_rate": float("nan")}, "above 0"),
        ({"steps": "many"}, "whole number"),
        ({"towers": 2}, "no setting 'towers'"),
        ({"precision": "int4"}, "one of auto"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        tiny(**settings)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"image_tower": "resnet81"}, "did you mean"),
        ({"image_tower": "open_clip:RN50"}, "no vision transformer"),
        ({"text_tower": "brt"}, "did you mean bert"),
        ({"image_tower": "inception_v3", "image_size": 32}, "32 x 32"),
    ],
)
def test_towers_that_there_are_none_of_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Model(tiny(**settings), 40)


def test_weights_of_another_tower_and_pickles_are_refused(tmp_path: Path) -> None:
    design = tiny()
    good, other, pickled = (tmp_path / name for name in ("good.safetensors", "other.safetensors", "weights.bin"))
    save_file(image_tower(design).trunk.state_dict(), good)
    save_file({"conv1.weight": torch.zeros(3)}, other)
    torch.save({"weights": 1}, pickled)
    image_tower(replace(design, image_weights=str(good)))
    with pytest.raises(ModelError, match="not a checkpoint of resnet10t"):
        image_tower(replace(design, image_weights=str(other)))
    with pytest.raises(ModelError, match="is a pickle"):
        image_tower(replace(design, image_weights=str(pickled)))
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ModelError, match="a pickle can run anything"):
        text_tower(replace(design, text_tower=str(folder)), 40)


def test_given_weights_of_hugging_face_are_used(tmp_path: Path) -> None:
    design = tiny(text_tower="bert")
    words = words_for(design, ["a red disc", "a blue square"])
    tower: Any = text_tower(design, len(words))
    tower.model.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer.json").write_text(words.json)
    given = replace(design, text_tower=str(tmp_path / "bert"))
    ids = torch.from_numpy(words_for(given, []).rows(["a red disc"]))
    with torch.inference_mode():
        assert torch.allclose(text_tower(given, 0).eval()(ids).features, tower.eval()(ids).features, atol=1e-5)


def test_pairs_that_teach_nothing_are_refused(table: Path, tmp_path: Path) -> None:
    one, same, missing = (tmp_path / f"{name}.csv" for name in ("one", "same", "missing"))
    picture = table.parent / "0.png"
    one.write_text(f"file,caption\n{picture},a disc\n")
    same.write_text("file,caption\n" + "".join(f"{table.parent / f'{n}.png'},a disc\n" for n in range(8)))
    missing.write_text("file,caption\nnowhere.png,a disc\nelsewhere.png,a cross\n")
    for source, why in ((one, "1 usable pair,"), (same, "say the same"), (missing, "0 usable pairs")):
        with pytest.raises(TrainingError, match=why):
            train_encoder([source], tmp_path / "model", tiny(held_out=0.0))
    with pytest.raises(TrainingError, match="needs pairs with two classes"):
        train_encoder([table], tmp_path / "model", tiny(fusion="bilstm", objective="info_nce,classification"))
    assert not (tmp_path / "model").exists()


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(table: Path, tmp_path: Path) -> None:
    design = tiny(steps=40, interval=1, learning_rate=1e18, clip_norm=0.0, warmup_steps=0)
    with pytest.raises(TrainingError, match="no number any more at step"):
        train_encoder([table], tmp_path / "model", design)
    assert checkpoints.latest(tmp_path / "model.training") is not None
    assert not (tmp_path / "model").exists()


def test_a_full_disk_ends_the_run_with_a_sentence_and_keeps_what_was_there(table: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=90m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("this user may not mount")
    try:
        with pytest.raises(TrainingError, match="Earlier ones are as they were"):  # a checkpoint has 60 MB
            train_encoder([table], disk / "model", tiny(steps=3, interval=1))
        (kept,) = [path for path in (disk / "model.training").iterdir() if path.name != "log"]
        assert checkpoints.read(kept).step == 1
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_checkpoint_of_another_architecture_is_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_encoder([table], tmp_path / "model", tiny(steps=3), tell=until(3))
    with pytest.raises(TrainingError, match=r"another architecture \(its dim differ\)"):
        train_encoder([table], tmp_path / "model", tiny(dim=16), resume=True)
    step = checkpoints.latest(tmp_path / "model.training")
    assert step is not None
    model = Model(tiny(text_width=16), 40)
    with pytest.raises(TrainingError, match="another architecture: it has no fitting"):
        checkpoints.load(step, model, torch.optim.AdamW(model.parameters()))
    (step / "model.safetensors").write_bytes(pickle.dumps({}))
    with pytest.raises(Error, match="is a pickle"):
        train_encoder([table], tmp_path / "model", tiny(), resume=True)


@pytest.mark.slow
def test_the_command_trains_and_says_what_it_made(mmsearch: Run, table: Path) -> None:
    flags = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]
    done = mmsearch("train", "encoder", str(table), "-o", "mine", *flags, "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert "recall@10 of" in done.stdout and "step 2/2" in done.stderr


def test_the_command_names_its_settings_and_what_is_missing(mmsearch: Run) -> None:
    listed = tomllib.loads(mmsearch("train", "encoder", "--list").stdout)
    assert EncoderDesign.of(listed) == EncoderDesign.of({})
    refused = mmsearch("train", "encoder", "pairs.csv")
    assert refused.returncode == 2 and "-o" in refused.stderr


def test_held_out_pairs_are_those_that_the_table_says(tmp_path: Path) -> None:
    table = toys.pairs(tmp_path / "pairs", 24)
    lines = table.read_text().splitlines()
    rows = [f"{lines[0]},split", *(f"{line},{'test' if n < 6 else 'train'}" for n, line in enumerate(lines[1:]))]
    table.write_text("\n".join(rows))
    said: list[str] = []
    design = tiny(steps=2)
    examples = gather(read_pairs(table), design, PixelSpec(32, 32, "longest", fill=255), tmp_path, said.append)
    assert [example.picture for example in examples.held_out] == [0, 1, 2, 3, 4, 5]
    assert len(examples.learned) == 18 and "24 pictures" in said[0]


@pytest.mark.slow
def test_pairs_are_classified_that_neither_side_decides(tmp_path: Path) -> None:
    table = toys.pairs(tmp_path / "pairs", 480)
    columns = PairColumns(label="feeling")
    # Much change of colours would change what is warm; a sixth of the pictures is held out
    design = tiny(
        fusion="concatenation", objective="info_nce=0.2,classification", steps=160, batch=32, interval=80, augment=0.2,
        held_out=0.17, learning_rate=1e-3, dropout=0.0, text_width=64, fusion_width=64,
    )  # fmt: skip
    report = train_encoder([table], tmp_path / "judge", design, columns=columns)
    assert report is not None
    bundle = load_encoder(str(report.folder))
    fused = fused_of(bundle)
    assert fused is not None
    examples = gather(read_pairs(table, columns), design, bundle.pixels, tmp_path)
    shown = examples.pixels[[example.picture for example in examples.held_out]]
    texts = [example.text for example in examples.held_out]
    right = np.array([fused.classes.index(example.label or "") for example in examples.held_out])

    def accuracy(pixels: np.ndarray, said: list[str]) -> float:
        return float((fused.classify(pixels, said).argmax(axis=1) == right).mean())

    assert accuracy(shown, texts) >= 0.9
    # One side alone: the other is that of another pair, so that it says nothing of the class
    random = np.random.default_rng(0)
    other = random.permutation(len(texts))
    assert accuracy(shown, ["a disc" for _ in texts]) <= 0.65
    assert accuracy(np.full_like(shown, 255), texts) <= 0.65
    assert accuracy(shown[other], texts) <= 0.65


def test_the_advice_on_a_damaged_checkpoint_is_true(tmp_path: Path) -> None:
    for step in (10, 20):
        folder = tmp_path / f"step-{step:06d}"
        folder.mkdir()
        (folder / "state.json").write_text("{")
    with pytest.raises(TrainingError, match=r"step-000020 is damaged: .* Remove it; the one before is used then"):
        checkpoints.read(tmp_path / "step-000020")
    with pytest.raises(TrainingError, match="There is none before it: start anew in another folder"):
        checkpoints.read(tmp_path / "step-000010")
