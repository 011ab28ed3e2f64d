"""The collector of cycles is put off for large answers, and is afterwards as it was."""

import gc
import threading
from collections.abc import Iterator

import pytest

from mmsearch.garbage import put_off


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_it_is_off_within_and_as_it_was_after() -> None:
    with put_off():
        assert not gc.isenabled()
    assert gc.isenabled()
    with put_off(False):
        assert gc.isenabled()


def test_who_had_it_turned_off_has_it_off_after() -> None:
    gc.disable()
    with put_off():
        pass
    assert not gc.isenabled()


def test_the_last_of_several_threads_turns_it_on_whatever_happens() -> None:
    inside, go = threading.Event(), threading.Event()

    def other() -> None:
        with put_off():
            inside.set()
            go.wait(10)

    thread = threading.Thread(target=other)
    with pytest.raises(ZeroDivisionError), put_off():
        thread.start()
        inside.wait(10)
        raise ZeroDivisionError
    assert not gc.isenabled()
    go.set()
    thread.join()
    assert gc.isenabled()
