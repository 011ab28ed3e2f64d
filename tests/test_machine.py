"""How much of the machine there is."""

import os
from pathlib import Path

from mmsearch.machine import usable_cores, usable_memory_bytes


def test_a_container_may_have_less_memory_than_the_machine(tmp_path: Path) -> None:
    of_machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    said = tmp_path / "memory.max"
    assert usable_memory_bytes([said]) == of_machine
    for text, usable in (("max\n", of_machine), ("268435456\n", 2**28), (f"{2**63 - 4096}\n", of_machine)):
        said.write_text(text)
        assert usable_memory_bytes([said]) == usable


def test_there_is_a_core() -> None:
    assert usable_cores() >= 1
