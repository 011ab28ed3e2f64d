"""How much of the machine there is for this process, in a container too."""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from mmsearch.errors import UsageError

DECODE_LIMIT = "MMSEARCH_MAX_DECODE_MB"  # a setting of the environment
DECODE_SHARE = 0.5  # of the memory that is free; the rest is for the model, the index and the other programs
UNKNOWN_DECODE_BYTES = 2_000_000_000  # where the system does not say how much there is
_MEMORY_FACTS = Path("/proc/meminfo")
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # cgroups 2, 1


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_memory_bytes(limits: Iterable[Path] = LIMITS) -> int:
    """Memory of the machine, or of the container if that has less; 0 where the system does not say."""
    try:
        most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0
    for limit in limits:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            most = min(most, int(limit.read_text()))
    return most


def free_memory_bytes(limits: Iterable[Path] = LIMITS) -> int:
    """Memory that programs may still take, of the machine or of the container; all of it where that is not said."""
    free = usable_memory_bytes(limits)
    with contextlib.suppress(OSError, ValueError, IndexError):
        free = min(free, int(_MEMORY_FACTS.read_text().partition("MemAvailable:")[2].split()[0]) * 1024)
    for limit in limits:
        used = limit.with_name({"memory.max": "memory.current"}.get(limit.name, "memory.usage_in_bytes"))
        cached = limit.with_name("memory.stat")
        with contextlib.suppress(OSError, ValueError, IndexError):
            in_use = int(used.read_text()) - int(cached.read_text().partition("inactive_file ")[2].split()[0])
            free = min(free, int(limit.read_text()) - in_use)
    return max(0, free)


def decode_limit_bytes() -> int:
    """The most memory that decoding one image may take: $MMSEARCH_MAX_DECODE_MB, else half of what is free now."""
    return chosen_decode_limit_bytes() or int(DECODE_SHARE * free_memory_bytes()) or UNKNOWN_DECODE_BYTES


def chosen_decode_limit_bytes() -> int | None:
    """What $MMSEARCH_MAX_DECODE_MB says, None where it is not set. Raises UsageError for what is no number."""
    chosen = os.environ.get(DECODE_LIMIT, "").strip()
    if not chosen:
        return None
    if not re.fullmatch("[0-9]{1,9}", chosen) or int(chosen) == 0:
        raise UsageError(
            f"{DECODE_LIMIT} is '{chosen[:40]}'. Give a whole number of megabytes, as in {DECODE_LIMIT}=4000."
        )
    return int(chosen) * 1_000_000
