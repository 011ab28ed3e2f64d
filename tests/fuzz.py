"""Mutants of every format through the decoding workers of an index, with the compiled part, without it, and sanitized.

`python -m tests.fuzz --mutants 20000` prints a table of what became of them. It ends with 1 where the compiled part
crashes or gives something else than Pillow, where a mutant takes longer than the limit, or where this process grows.
A crash of a library that Pillow brings is counted, and costs only the one file, as in an index.
"""

import argparse
import contextlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmsearch.decoding import DecodePool, Skip
from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.facts import Decoded
from mmsearch.machine import DECODE_LIMIT
from tests.mutants import mutants, originals

ROOT = Path(__file__).parents[1]
SPEC = PixelSpec(8, 8)  # small, so that JPEGs are decoded at an eighth
AT_ONCE = 500
DECODE_MB = 800
MOST_GROWTH_MB = 150.0  # of this process, in a whole run
REASONS = (  # (what it is counted as, how a reason begins)
    ("cut short", "is cut short"),
    ("broken", "cannot be decoded"),
    ("not known", ("keeps its ", "holds a ", "is compressed ")),
    ("too large", ("needs", "is ", "has no")),
    ("crashed", ("crashes", "makes the decoder")),
    ("too slow", "took longer"),
)

# Imported by every Python that is started with its folder in PYTHONPATH: a worker has no other setting for these
WITHOUT = """
import sys
sys.modules["_mmsearch"] = None
"""
SANITIZED = """
import importlib.util, sys
if "mmsearch.decoding" in sys.orig_argv:
    import resource
    resource.setrlimit = lambda kind, limits: None  # the sanitizer keeps notes on all addresses
    spec = importlib.util.spec_from_file_location("_mmsearch", {path!r})
    sys.modules["_mmsearch"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["_mmsearch"])
"""

Outcome = Decoded | Skip


@dataclass
class Tally:
    """What became of the mutants of one way of decoding."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)  # by format
    differing: list[str] = field(default_factory=list)  # from the first way: another outcome, or other pixels
    crashed: set[str] = field(default_factory=set)
    slow: list[str] = field(default_factory=list)

    def add(self, format_: str, name: str, outcome: Outcome) -> None:
        """Count one."""
        what = _what(outcome)
        self.outcomes.setdefault(format_, Counter())[what] += 1
        if what == "crashed":
            self.crashed.add(name)
        if what == "too slow":
            self.slow.append(name)


def _what(outcome: Outcome) -> str:
    if isinstance(outcome, Decoded):
        return "read"
    return next((what for what, start in REASONS if outcome.reason.startswith(start)), "other")


def _same(one: Outcome, other: Outcome) -> bool:
    if isinstance(one, Decoded) and isinstance(other, Decoded):
        return one.facts == other.facts and np.array_equal(one.pixels, other.pixels)
    return isinstance(one, Skip) and isinstance(other, Skip)  # the reason may be that there is less memory


def sanitized(folder: Path, plain: bool = False) -> dict[str, str] | None:
    """Compile the compiled part with sanitizers into a folder; the environment that a process needs to load it.

    None where there is no gcc with sanitizers. plain: as on processors other than Intel's and AMD's.
    """
    compiler = shutil.which("gcc")
    if compiler is None:
        return None
    sources = [str(file) for file in (ROOT / "native").glob("*.c")]
    flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-shared", "-fPIC"]
    flags += ["-DSOURCES=0", f"-I{sysconfig.get_paths()['include']}", *(["-DMMSEARCH_PLAIN"] if plain else [])]
    command = [compiler, *flags, *sources, "-o", str(folder / "_mmsearch.so"), "-lm"]
    if subprocess.run(command, capture_output=True).returncode:
        return None
    libraries = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return {"PYTHONMALLOC": "malloc", "ASAN_OPTIONS": "detect_leaks=0", "LD_PRELOAD": " ".join(libraries)}


@contextlib.contextmanager
def environment(changes: dict[str, str]) -> Iterator[None]:
    """For the processes that are started meanwhile."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _ways(folder: Path) -> dict[str, dict[str, str]]:
    """By a name, what is to be in the environment of its workers."""
    ways: dict[str, dict[str, str]] = {"compiled": {}}
    for name, code in (("Pillow alone", WITHOUT), ("sanitized", SANITIZED)):
        place = folder / name.replace(" ", "-")
        place.mkdir()
        needed: dict[str, str] | None = {}
        if name == "sanitized":
            needed = sanitized(place)
            if needed is None:
                continue
            code = code.format(path=str(place / "_mmsearch.so"))
            needed["ASAN_OPTIONS"] += f":log_path={place}/report:allocator_may_return_null=1"
            needed["UBSAN_OPTIONS"] = f"log_path={place}/report"
        (place / "sitecustomize.py").write_text(code)
        path = os.pathsep.join(filter(None, (str(place), os.environ.get("PYTHONPATH", ""))))
        ways[name] = {"PYTHONPATH": path, **(needed or {})}
    return ways


def own_reports(folder: Path) -> list[str]:
    """What the sanitizers said of our own code, not of a library that is not compiled with them."""
    reports = [path.read_text(errors="replace") for path in folder.glob("sanitized/report*")]
    return [report for report in reports if re.search(r"native/\w+\.c|_mmsearch\.so", report)]


def resident_mb() -> float:
    """Memory of this process."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1e3


def fuzz(count: int, seed: int, timeout_s: float, keep: Path | None = None) -> tuple[str, list[str]]:
    """The table, and what was wrong."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, environment({DECODE_LIMIT: str(DECODE_MB)}):
        folder = Path(scratch)
        (folder / "originals").mkdir()
        drawn = itertools.islice(mutants(originals(folder / "originals"), seed), count)
        ways = _ways(folder)
        tallies = {way: Tally() for way in ways}
        pools = {}
        growth: list[float] = []
        with contextlib.ExitStack() as open_pools:
            for way in ways:
                pools[way] = open_pools.enter_context(DecodePool(SPEC, workers=2, timeout_s=timeout_s))
            number = 0
            while batch := list(itertools.islice(drawn, AT_ONCE)):
                (folder / "batch").mkdir()
                paths = {}
                for format_, data in batch:
                    path = folder / "batch" / f"{format_}-{seed}-{number}"
                    path.write_bytes(data)
                    paths[str(path)] = format_
                    number += 1
                first: dict[str, Outcome] = {}
                for way, changes in ways.items():
                    with environment(changes):  # a worker that crashes is started again, with the same
                        got = dict(pools[way].decode(paths))
                    for path_, outcome in got.items():
                        name = Path(path_).name
                        tallies[way].add(paths[path_], name, outcome)
                        if first and not _same(first[path_], outcome):
                            tallies[way].differing.append(name)
                            _keep(path_, keep)
                        if not first and _what(outcome) in ("crashed", "too slow"):
                            _keep(path_, keep)
                    first = first or got
                shutil.rmtree(folder / "batch")
                growth.append(resident_mb())
        wrong = _wrong(tallies, own_reports(folder), growth)
        return _table(tallies, count, growth, time.monotonic() - started), wrong


def _keep(path: str, folder: Path | None) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)


def _wrong(tallies: dict[str, Tally], reports: Sequence[str], growth: Sequence[float]) -> list[str]:
    """What a run may not show, a sentence each."""
    wrong = [f"The compiled part is not sound: {report[:2000]}" for report in reports]
    by_pillow = tallies["Pillow alone"]
    for way, tally in tallies.items():
        wrong += [f"{name} takes longer than the limit ({way})." for name in tally.slow]
        if way != "Pillow alone":
            wrong += [
                f"{name} crashes the compiled part ({way})." for name in sorted(tally.crashed - by_pillow.crashed)
            ]
        wrong += [f"{name} is another image for {way} than for the compiled part." for name in tally.differing]
    if growth and growth[-1] - growth[0] > MOST_GROWTH_MB:
        wrong.append(f"This process grew by {growth[-1] - growth[0]:.0f} MB.")
    return wrong


def _table(tallies: dict[str, Tally], count: int, growth: Sequence[float], seconds: float) -> str:
    columns = ("read", *(what for what, _ in REASONS), "other")
    first = tallies["compiled"]
    lines = [f"{'format':10}{'mutants':>9}" + "".join(f"{name:>11}" for name in columns)]
    for format_, outcomes in first.outcomes.items():
        lines.append(f"{format_:10}{outcomes.total():>9}" + "".join(f"{outcomes[name]:>11}" for name in columns))
    total = sum(first.outcomes.values(), Counter[str]())
    lines.append(f"{'all':10}{total.total():>9}" + "".join(f"{total[name]:>11}" for name in columns))
    lines.append("")
    lines.append(f"{'way':14}{'mutants':>9}{'read':>9}{'crashed':>9}{'too slow':>10}{'differing':>11}")
    for way, tally in tallies.items():
        outcomes = sum(tally.outcomes.values(), Counter[str]())
        lines.append(
            f"{way:14}{outcomes.total():>9}{outcomes['read']:>9}{len(tally.crashed):>9}"
            f"{len(tally.slow):>10}{len(tally.differing):>11}"
        )
    lines.append("")
    if "sanitized" not in tallies:
        lines.append("Not sanitized: there is no gcc with sanitizers here.")
    grown = growth[-1] - growth[0] if growth else 0.0
    lines.append(f"{count} mutants in {seconds:.0f} s; this process went from {growth[0]:.0f} MB by {grown:+.0f} MB.")
    return "\n".join(lines)


def main() -> int:
    """Run it as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--mutants", type=int, default=2000, help="how many [default: 2000]")
    parser.add_argument("--seed", type=int, default=0, help="other mutants for another number [default: 0]")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds that one may take [default: 30]")
    parser.add_argument("--keep", type=Path, help="a folder for mutants that crash, hang or differ")
    asked = parser.parse_args()
    table, wrong = fuzz(asked.mutants, asked.seed, asked.limit, asked.keep)
    sys.stdout.write(table + "\n" + "".join(f"{line}\n" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
