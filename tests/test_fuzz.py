"""The fuzz run itself: it finds nothing, and it would."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmsearch.decoding import Skip
from mmsearch.facts import Decoded, ImageFacts
from tests import fuzz
from tests.mutants import STRUCTURES, mutants, originals


def decoded(grey: int) -> Decoded:
    return Decoded(np.full((8, 8, 3), grey, np.uint8), ImageFacts("a", 8, 8, "PNG", None, None, None, None))


def test_a_run_says_what_was_wrong() -> None:
    tallies = {"compiled": fuzz.Tally(), "Pillow alone": fuzz.Tally()}
    tallies["compiled"].add("PNG", "a", Skip("a", "crashes the decoder (signal SIGSEGV)"))
    tallies["compiled"].add("PNG", "b", Skip("b", "took longer than 3 s to decode"))
    tallies["compiled"].add("HEIC", "d", Skip("d", "crashes the decoder (signal SIGSEGV)"))
    tallies["Pillow alone"].add("HEIC", "d", Skip("d", "crashes the decoder (signal SIGSEGV)"))
    tallies["Pillow alone"].differing.append("c")
    assert fuzz._wrong(tallies, [], [100.0, 300.0]) == [
        "b takes longer than the limit (compiled).",
        "a crashes the compiled part (compiled).",
        "c is another image for Pillow alone than for the compiled part.",
        "This process grew by 200 MB.",
    ]
    assert not fuzz._same(decoded(1), decoded(2))
    assert not fuzz._same(decoded(1), Skip("a", "is cut short"))
    assert fuzz._same(decoded(1), decoded(1))


def test_mutants_are_of_every_format_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    files = originals(tmp_path)
    assert set(files) == set(STRUCTURES)
    some = [next(stream) for stream in [mutants(files, 7)] for _ in range(500)]
    assert some == [next(stream) for stream in [mutants(files, 7)] for _ in range(500)]
    assert Counter(format_ for format_, _ in some) == dict.fromkeys(files, 50)
    assert sum(data in files[format_] for format_, data in some) < 50


@pytest.mark.slow
def test_mutants_of_every_format_cost_no_more_than_themselves() -> None:
    table, wrong = fuzz.fuzz(1000, seed=1, timeout_s=60.0)
    assert wrong == [], table
