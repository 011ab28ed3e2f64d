"""Judging a picture: probabilities that mean something, shares that sum to 1, and an answer to who said so."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmsearch import Index, load_encoder
from mmsearch.encoders.calibration import Calibration
from mmsearch.errors import MediaError, UsageError
from mmsearch.judging import Judge, described, judge_of, standing
from mmsearch.store.queries import QueryCache
from tests.colours import ColourEncoder, plain
from tests.conftest import ROOT, Run

CAT, CASTLE = ROOT / "photos/pets/chelsea.jpg", ROOT / "photos/travel/palace.jpg"


@pytest.fixture(scope="module")
def judge() -> Judge:
    return judge_of(load_encoder("lite"))


def test_a_right_text_is_probable_and_a_wrong_one_is_not(judge: Judge) -> None:
    right, wrong = judge.match(CAT, "a cat"), judge.match(CAT, "a steam train")
    assert right.probability > 0.8 > 0.3 > wrong.probability
    assert right.by == "calibrated cosine"


@pytest.mark.parametrize("text", ["asdfghjkl qwerty", "zxcvb nmlkj", "blorf gnarx", "qzxv", "%%%%", "猫", "\U0001f9ff"])
def test_a_text_without_a_word_is_not_likely_and_that_is_said(judge: Judge, text: str) -> None:
    pictures = [*(ROOT / "photos").rglob("*.jpg"), *(ROOT / "photos").rglob("*.png")]
    for found in (judge.match(picture, text) for picture in pictures[:6]):
        assert not found.understood and found.probability < 0.15


@pytest.mark.parametrize("text", ["a cat", "cappuccino", "Eiffel Tower", "IKEA", "ukulele", "the quarterly report"])
def test_a_text_with_a_word_is_understood(judge: Judge, text: str) -> None:
    assert judge.match(CAT, text).understood


def test_a_picture_is_classified_by_labels_of_the_moment(judge: Judge) -> None:
    found = judge.classify(CAT, ["castle", "cat", "bus"])
    assert found[0].label == "cat"
    assert sum(label.probability for label in found) == pytest.approx(1)


def test_the_text_beside_a_picture_counts(judge: Judge) -> None:
    labels = ["cat", "dog"]
    alone, said = judge.classify(CAT, labels), judge.classify(CAT, labels, text="a dog")
    assert alone[0].label == "cat"
    share = {label.label: label.probability for label in said}
    assert share["dog"] > {label.label: label.probability for label in alone}["dog"]


def test_tags_are_words_that_fit(judge: Judge) -> None:
    tags = judge.tags(CASTLE)
    assert "a castle" in tags
    assert all(0.5 < probability <= 1 for probability in tags.values())
    assert described((), tags).text == ", ".join(tags)


def test_standing_is_measured_in_deviations_of_everyday_texts() -> None:
    picture = np.array([1.0, 0.0], np.float32)
    everyday = np.array([[0.1, 0], [0.3, 0]], np.float32)  # mean 0.2, deviation 0.1
    assert standing(picture, np.array([[0.5, 0.2]], np.float32), everyday) == pytest.approx([3.0], rel=1e-5)


def test_a_curve_is_fitted_to_where_both_kinds_are_as_frequent() -> None:
    random = np.random.default_rng(0)  # of N(3, 1) and N(0, 1), log odds are 3 x - 4.5 by Bayes
    curve = Calibration.fitted(random.normal(3, 1, 4000), random.normal(0, 1, 40_000))
    assert curve.slope == pytest.approx(3, abs=0.3)
    assert curve.intercept == pytest.approx(-4.5, abs=0.4)


def test_pairs_that_are_told_apart_without_a_mistake_give_a_finite_curve() -> None:
    curve = Calibration.fitted(np.full(10, 9.0), np.full(10, -9.0))
    assert np.isfinite([curve.slope, curve.intercept]).all()
    with pytest.raises(ValueError, match="both kinds"):
        Calibration.fitted(np.ones(3), np.ones(0))


@pytest.mark.parametrize(
    ("labels", "templates", "why"),
    [(["cat"], ["{}"], "two or more"), (["a", "a"], ["{}"], "different"), (["a", "b"], ["a photo"], "template has {}")],
)
def test_labels_that_leave_nothing_to_choose_are_refused(
    judge: Judge, labels: list[str], templates: list[str], why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        judge.classify(CAT, labels, templates=templates)


def test_a_picture_that_cannot_be_read_is_named(judge: Judge, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"broken\.jpg cannot be read"):
        judge.match(broken, "a cat")
    with pytest.raises(UsageError, match="needs a text"):
        judge.match(CAT, "  ")


def test_an_index_describes_by_its_captions_and_says_so(tmp_path: Path) -> None:
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        colours = ["red", "green", "blue", "yellow"]
        index.add_images([plain(colour) for colour in colours], captions=[f"a {colour} thing" for colour in colours])
        found = index.describe(plain("blue"))
        assert (found.text, found.by) == ("a blue thing", "nearest captions")
        assert found.captions[0].text == "a blue thing"
        assert index.match(plain("blue"), "blue").cosine > index.match(plain("blue"), "red").cosine
        assert index.classify(plain("red"), ["blue", "red"])[0].label == "red"


def test_what_judging_asks_is_not_taken_for_queries(tmp_path: Path) -> None:
    with Index(tmp_path / "index", model="lite") as index:
        index.add_images([CAT])
        index.classify(CAT, ["cat", "dog"])
        fingerprint = load_encoder("lite").fingerprint
        assert QueryCache(tmp_path / "index").latest(fingerprint, 10, index.encoder.dim) == []
        encoded = index.texts_encoded[0]
        index.classify(CAT, ["cat", "dog"])
        assert index.texts_encoded[0] == encoded  # but it is remembered


def test_the_commands_print_what_the_library_says(mmsearch: Run) -> None:
    match = json.loads(mmsearch("match", str(CAT), "a", "cat", "--model", "lite", "--json").stdout)
    assert match["probability"] > 0.8 and match["by"] == "calibrated cosine"
    shown = mmsearch("classify", str(CAT), "--labels", "cat, dog", "--model", "lite")
    assert shown.stdout.splitlines()[1].endswith("cat") and "zero-shot" in shown.stderr
    described = json.loads(mmsearch("describe", str(CASTLE), "--model", "lite", "--json").stdout)
    assert described["by"] == "tags" and "a castle" in described["text"]
    refused = mmsearch("classify", str(CAT), "--labels", "cat", "--model", "lite")
    assert refused.returncode == 2 and refused.stderr.startswith("Error: classify needs two or more")
