"""How things are measured here: whole commands in processes of their own, their time, and the memory of all of them."""

import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Row:
    """One figure of the table."""

    what: str
    figure: str
    values: dict[str, float]


@dataclass(frozen=True)
class Ran:
    """A command that ran: wall time, and the highest sum of its and its children's proportional set sizes."""

    seconds: float
    peak_mb: float
    output: str


def run(arguments: Sequence[str | bytes], *, watch_memory: bool = False, cwd: Path = ROOT) -> Ran:
    """Run the command line of this checkout. Raises CalledProcessError."""
    command = [sys.executable, "-m", "mmsearch", *arguments]
    return run_command(command, watch_memory=watch_memory, cwd=cwd, environment={"PYTHONPATH": str(ROOT)})


def run_command(
    command: Sequence[str | bytes], *, watch_memory: bool = False, cwd: Path, environment: Mapping[str, str]
) -> Ran:
    """Run any command; environment: beside this process's own. Raises CalledProcessError.

    Python keeps what it compiles, whatever the environment says: pip compiled the peers when it installed them.
    """
    peak = 0.0
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=cwd, env=inherited | {"HF_HUB_OFFLINE": "1"} | environment
    )
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, sum(_memory_mb(pid) for pid in _family(process.pid)))

    watcher = threading.Thread(target=sample)
    if watch_memory:
        watcher.start()
    output = process.communicate()[0]
    seconds = time.perf_counter() - started
    done.set()
    if watch_memory:
        watcher.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return Ran(seconds, peak, output.decode("utf-8", "replace"))


def median_seconds(arguments: Sequence[str], *, times: int = 5, cwd: Path = ROOT) -> float:
    """Of new processes, with files in the page cache: the first run is not counted."""
    run(arguments, cwd=cwd)
    return statistics.median(run(arguments, cwd=cwd).seconds for _ in range(times))


def machine() -> str:
    """One line on what this was measured on."""
    import faiss
    import onnxruntime

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return (
        f"{os.cpu_count()} cores of {name}, Python {platform.python_version()}, "
        f"onnxruntime {onnxruntime.__version__}, faiss {faiss.__version__}"
    )


def _family(pid: int) -> list[int]:
    """A process and its descendants; Linux."""
    family, at = [pid], 0
    while at < len(family):
        try:
            tasks = list(Path(f"/proc/{family[at]}/task").iterdir())
            for task in tasks:
                family += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            pass
        at += 1
    return family


def _memory_mb(pid: int) -> float:
    """Proportional set size: pages that are shared count by their share."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1000
    except OSError:
        pass
    return 0.0
