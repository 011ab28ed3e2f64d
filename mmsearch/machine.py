"""How much of the machine there is for this process, in a container too."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

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
