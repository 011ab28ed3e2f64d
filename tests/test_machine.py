"""How much of the machine there is."""

import os
from pathlib import Path

import pytest

from mmsearch.errors import UsageError
from mmsearch.machine import decode_limit_bytes, free_memory_bytes, usable_cores, usable_memory_bytes


def test_a_container_may_have_less_memory_than_the_machine(tmp_path: Path) -> None:
    of_machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    said = tmp_path / "memory.max"
    assert usable_memory_bytes([said]) == of_machine
    for text, usable in (("max\n", of_machine), ("268435456\n", 2**28), (f"{2**63 - 4096}\n", of_machine)):
        said.write_text(text)
        assert usable_memory_bytes([said]) == usable


def test_there_is_a_core() -> None:
    assert usable_cores() >= 1


def test_free_memory_is_what_the_container_has_not_taken_yet(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    assert 0 < free_memory_bytes([limit]) <= usable_memory_bytes([limit])
    limit.write_text("268435456\n")
    assert free_memory_bytes([limit]) == 268435456
    (tmp_path / "memory.current").write_text("200000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 50000000\nactive_file 3\n")  # which is given back
    assert free_memory_bytes([limit]) == 268435456 - 150000000
    (tmp_path / "memory.current").write_text("900000000\n")
    assert free_memory_bytes([limit]) == 0


def test_the_limit_of_a_decoder_is_half_of_what_is_free_or_what_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMSEARCH_MAX_DECODE_MB", raising=False)
    assert 0.3 * free_memory_bytes() < decode_limit_bytes() < 0.7 * free_memory_bytes()
    monkeypatch.setenv("MMSEARCH_MAX_DECODE_MB", " 4000 ")
    assert decode_limit_bytes() == 4_000_000_000
    for nonsense in ("0", "-5", "4 GB", "1e3", "\u0664", "9" * 30):
        monkeypatch.setenv("MMSEARCH_MAX_DECODE_MB", nonsense)
        with pytest.raises(UsageError, match="megabytes"):
            decode_limit_bytes()
