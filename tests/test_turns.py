"""Turns for threads that search at once."""

import os
import threading

import pytest

from mmsearch.turns import Turns


def a_turn_of_another_thread(turns: Turns) -> threading.Event:
    """An event that is set once a thread of its own has had a turn."""
    had = threading.Event()

    def take() -> None:
        with turns.taken():
            had.set()

    threading.Thread(target=take, daemon=True).start()
    return had


def test_who_comes_while_all_turns_are_taken_waits_for_one() -> None:
    turns = Turns(1)
    with turns.taken():
        had = a_turn_of_another_thread(turns)
        assert not had.wait(0.1)
    assert had.wait(10)


def test_a_turn_that_is_given_up_is_another_threads() -> None:
    turns = Turns(1)
    with turns.taken():
        with turns.given_up():
            assert a_turn_of_another_thread(turns).wait(10)
        assert not a_turn_of_another_thread(turns).wait(0.1), "it is held again"


def test_who_holds_a_turn_needs_no_other() -> None:
    turns = Turns(1)
    with turns.taken(), turns.taken():
        pass
    with turns.taken():
        assert not a_turn_of_another_thread(turns).wait(0.1)
    with turns.given_up():  # where none is held, none is given up
        assert a_turn_of_another_thread(turns).wait(10)


def test_an_error_ends_the_turn() -> None:
    turns = Turns(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="inside"), turns.taken(), turns.given_up():
            raise ValueError("inside")
    assert a_turn_of_another_thread(turns).wait(10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_forked_process_does_not_wait_for_turns_that_stayed_behind() -> None:
    turns = Turns(1)
    with turns.taken():
        child = os.fork()
        if child == 0:
            threading.Timer(10, os._exit, (1,)).start()
            with turns.taken():
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
