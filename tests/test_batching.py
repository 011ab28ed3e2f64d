"""Texts of many threads are encoded together, and each thread gets its own."""

import os
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from mmsearch.batching import MOST_AT_ONCE, TextBatcher
from mmsearch.encoders.base import FloatArray


class Recorder:
    """Encodes a text as its length; holds the first batch back until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.started, self.go_on = threading.Event(), threading.Event()

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        self.batches.append(list(texts))
        if len(self.batches) == 1:
            self.started.set()
            self.go_on.wait(10)
        if "bad" in texts:
            raise ValueError("a bad text")
        return np.array([[len(text)] for text in texts], np.float32)


def together(batcher: TextBatcher, encode: Recorder, queries: Sequence[str]) -> dict[str, object]:
    """What comes out for each, where all but the first come while the first is being encoded."""
    answers: dict[str, object] = {}

    def ask(text: str) -> None:
        try:
            answers[text] = batcher([text]).tolist()
        except ValueError as error:
            answers[text] = str(error)

    threads = [threading.Thread(target=ask, args=(text,)) for text in queries]
    threads[0].start()
    encode.started.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(batcher._waiting) < len(queries) - 1:
        pass
    encode.go_on.set()
    for thread in threads:
        thread.join(10)
    return answers


def test_texts_that_come_while_one_is_encoded_are_one_batch() -> None:
    encode = Recorder()
    batcher = TextBatcher(encode)
    queries = ["x" * length for length in range(1, 11)]
    assert together(batcher, encode, queries) == {text: [[float(len(text))]] for text in queries}
    assert [len(batch) for batch in encode.batches] == [1, 9]
    assert (batcher.texts, batcher.batches) == (10, 2)


def test_a_batch_has_an_end() -> None:
    encode = Recorder()
    queries = ["x" * length for length in range(1, MOST_AT_ONCE + 6)]
    together(TextBatcher(encode), encode, queries)
    assert [len(batch) for batch in encode.batches] == [1, MOST_AT_ONCE, 4]


def test_a_text_that_cannot_be_encoded_costs_only_its_own_thread() -> None:
    encode = Recorder()
    answers = together(TextBatcher(encode), encode, ["first", "bad", "good"])
    assert answers == {"first": [[5.0]], "bad": "a bad text", "good": [[4.0]]}


def test_many_threads_at_once_each_get_their_own() -> None:
    batcher = TextBatcher(lambda texts: np.array([[len(text)] for text in texts], np.float32))
    wrong: list[int] = []

    def ask(length: int) -> None:
        wrong.extend(length for _ in range(200) if batcher(["x" * length, "y"]).tolist() != [[length], [1.0]])

    threads = [threading.Thread(target=ask, args=(length,)) for length in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == [] and batcher.texts == 16 * 200 * 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_wait_for_threads_that_stayed_behind() -> None:
    encode = Recorder()
    batcher = TextBatcher(encode)
    thread = threading.Thread(target=lambda: batcher(["held"]))
    thread.start()
    encode.started.wait(10)
    child = os.fork()
    if child == 0:
        os._exit(0 if batcher(["four"]).tolist() == [[4.0]] else 1)
    encode.go_on.set()
    thread.join(10)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
