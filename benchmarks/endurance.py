"""Kills, full disks and many processes on one index, with nothing lost.

    python -m benchmarks.endurance kills --count 1000
    python -m benchmarks.endurance disk
    python -m benchmarks.endurance sharing --minutes 10

`kills` ends every writing command at random moments by SIGKILL, runs it again, and compares the index with one whose
run was never killed. `disk` repeats a run on disks that are full after every 64 KB more. `sharing` has four processes
write to one index while eight read from it. Each prints a table and exits with 1 where something was lost.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: F401  # once, and not by each run of `train heads`

import mmsearch
from mmsearch.cli import cli
from mmsearch.errors import UsageError
from tests import pictures
from tests.indexes.make import HERE as OLD_INDEXES
from tests.indexes.make import GridEncoder

DISK_STEP = 64 * 1024
VECTOR_TOLERANCE = 2e-3  # of float16 numbers of unit vectors; a batch of another size rounds otherwise


class LossError(Exception):
    """Something was lost, or is not as it should be."""


# What is in an index, whatever the ids, times and batches


@dataclass(frozen=True)
class Content:
    """All that an index holds: by key, a description to be equal and a vector to be close."""

    facts: dict[str, Any]
    vectors: dict[str, np.ndarray[Any, Any]]

    @classmethod
    def of(cls, folder: Path) -> "Content":
        """Read index.db without mmsearch. Raises LossError where SQLite finds it damaged."""
        if not (folder / "index.db").exists():
            return cls({}, {})
        with contextlib.closing(sqlite3.connect(folder / "index.db")) as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'items'").fetchone():
                return cls({}, {})
            (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
            if verdict != "ok" or database.execute("PRAGMA foreign_key_check").fetchone():
                raise LossError(f"index.db is damaged: {verdict}")
            facts: dict[str, Any] = {}
            vectors: dict[str, np.ndarray[Any, Any]] = {}
            rows = database.execute(
                """SELECT i.kind, ifnull(i.name, ''), ifnull(f.path, ''), ifnull(o.name, ''), ifnull(p.path, ''),
                          ifnull(i.text, ''), ifnull(i.line, 0), i.width, i.height, i.format, i.taken_at, i.facts,
                          v.vector, h.vector
                   FROM items i LEFT JOIN files f ON f.id = i.file_id LEFT JOIN items o ON o.id = i.caption_of
                   LEFT JOIN files p ON p.id = o.file_id LEFT JOIN vectors v ON v.item_id = i.id
                   LEFT JOIN projected h ON h.id = v.id"""
            )
            for *key, width, height, format_, taken_at, own, vector, projected in rows:
                name = json.dumps(key)
                if name in facts:
                    raise LossError(f"the index holds twice: {name}")
                if vector is None:
                    raise LossError(f"without a vector: {name}")
                facts[name] = [width, height, format_, taken_at, own]
                vectors[name] = np.frombuffer(vector, np.float16).astype(np.float32)
                if projected is not None:
                    vectors[name + " projected"] = np.frombuffer(projected, np.float16).astype(np.float32)
            facts["files"] = sorted(database.execute("SELECT path, kind, size_bytes, skipped FROM files").fetchall())
            facts["roots"] = sorted(database.execute("SELECT path, options FROM roots").fetchall())
            facts["heads"] = sorted(database.execute("SELECT name, hash FROM heads").fetchall())
            facts["in use"] = database.execute("SELECT value FROM settings WHERE key = 'heads'").fetchall()
            facts["feedback"] = sorted(
                database.execute(
                    "SELECT query, path, match FROM feedback JOIN items ON items.id = item_id "
                    "JOIN files ON files.id = file_id"
                ).fetchall()
            )
            facts["keywords"] = database.execute("SELECT count(*) FROM keywords").fetchone()[0]
        return cls(facts, vectors)

    def difference(self, other: "Content") -> str | None:
        """What of this is not in the other, or None where they are the same."""
        for key in sorted({*self.facts, *other.facts}):
            if self.facts.get(key) != other.facts.get(key):
                return f"{key}: {self.facts.get(key)!r} is {other.facts.get(key)!r}"[:500]
        for key in sorted({*self.vectors, *other.vectors}):
            mine, others = self.vectors.get(key), other.vectors.get(key)
            if mine is None or others is None or not np.allclose(mine, others, atol=VECTOR_TOLERANCE):
                return f"the vector of {key}"
        return None


# The commands


@dataclass(frozen=True)
class Command:
    """A writing command: how the index and the files are before it, and its arguments.

    is_atomic: after a kill, the index is as before the command or as after it, never in between.
    """

    name: str
    arguments: tuple[str, ...]
    state: str  # a folder of the workplace to begin with
    is_atomic: bool = False
    codes: tuple[int, ...] = (0,)  # of the run after the kill
    library: Callable[[Path], None] | None = None


@dataclass
class Workplace:
    """Files to index, and copies of the index in each state that a command begins with."""

    folder: Path
    files: Path = field(init=False)

    def __post_init__(self) -> None:
        self.files = self.folder / "files"

    def make(self) -> None:
        """Draw the files and an index in each state that a command begins with."""
        self.files.mkdir(parents=True)
        draw_files(self.files)
        self.make_state("none", [])
        self.make_state("first", [["index", str(self.files)]])
        pairs = self.folder / "pairs.csv"
        names = sorted(path.name for path in self.files.glob("*.png"))
        pairs.write_text("file,caption\n" + "".join(f"files/{name},thing number {name[:-4]}\n" for name in names))
        train = ["train", "heads", str(pairs), "--set", "epochs=2", "--name", "a"]
        for name, use in (("heads", "--no-use"), ("heads in use", "--use")):
            self.make_state(name, [["index", str(self.files)], [*train, use]])
        with tarfile.open(OLD_INDEXES / "version-3.tar.gz") as archive:
            archive.extractall(self.folder / "states", filter="data")
        changed = self.folder / "changed"
        shutil.copytree(self.files, changed)
        self.make_state("changed", [["index", str(changed)]])
        change_files(changed)

    def make_state(self, name: str, runs: Sequence[Sequence[str]]) -> None:
        """An index that some commands were run on."""
        index = self.folder / "states" / name
        index.mkdir(parents=True)
        for arguments in runs:
            model = ("--model", "lite") if arguments[0] == "index" else ()
            subprocess.run(
                [sys.executable, "-m", "mmsearch", *arguments, *model, "-i", str(index)],
                check=True,
                capture_output=True,
            )

    def index_in(self, state: str) -> Path:
        """A new copy of the index in a state."""
        index = self.folder / "index"
        shutil.rmtree(index, ignore_errors=True)
        shutil.copytree(self.folder / "states" / state, index)
        return index


def draw_files(folder: Path) -> None:
    """Images, some with captions beside them, texts, and a broken image."""
    for number in range(36):
        pictures.scene((64, 48), number).save(folder / f"{number:02}.png")
        if number % 3 == 0:
            (folder / f"{number:02}.txt").write_text(f"the caption of scene {number}")
    (folder / "below").mkdir()
    for number in range(12):
        pictures.scene((48, 64), 100 + number).save(folder / "below" / f"{number:02}.jpg")
    for number in range(6):
        (folder / f"text {number}.md").write_text(f"Passage {number} tells of scenes.\n\nIt has a second part.\n")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")


def change_files(folder: Path) -> None:
    """New, changed, moved and deleted files, and a corrected caption."""
    for number in range(6):
        pictures.scene((50, 50), 200 + number).save(folder / f"new {number}.png")
        pictures.scene((64, 48), 300 + number).save(folder / f"{number:02}.png")
    for number in range(12, 18):
        (folder / f"{number:02}.png").rename(folder / "below" / f"moved {number}.png")
    for number in range(20, 24):
        (folder / f"{number:02}.png").unlink()
    (folder / "27.txt").write_text("another caption")
    (folder / "text 1.md").write_text("Quite another passage.\n")


def _add_items(index: Path) -> None:
    with mmsearch.Index(index) as opened:
        images = [pictures.scene((40, 40), 400 + number) for number in range(12)]
        names = [f"item {number}" for number in range(12)]
        opened.add_images(images, ids=names, captions=[f"caption of {name}" for name in names])


def _migrate(index: Path) -> None:
    with mmsearch.Index(index, encoder=GridEncoder()) as opened:
        opened.add_texts(["the first text after an upgrade"], ids=["upgrade"])


def commands(workplace: Workplace) -> list[Command]:
    """Every command that writes."""
    files = str(workplace.files)
    captions = str(workplace.folder / "pairs.csv")
    return [
        Command("index, first run", ("index", files, "--model", "lite"), "none"),
        Command("index --captions", ("index", files, "--captions", captions), "first"),
        Command("index --exclude", ("index", files, "--exclude", "below/"), "first"),
        Command("index, changed files", ("index", str(workplace.folder / "changed")), "changed"),
        Command("remove", ("remove", str(workplace.files / "below")), "first", True, (0, 1)),
        Command("heads use", ("heads", "use", "a"), "heads", True),
        Command("heads off", ("heads", "off"), "heads in use", True),
        Command("heads remove", ("heads", "remove", "a"), "heads", True, (0, 2)),
        Command(
            "train heads", ("train", "heads", captions, "--set", "epochs=2", "--name", "a", "--use"), "first", True
        ),
        Command("feedback add", ("feedback", "add", "a scene", "--like", "mm-1"), "first", True),
        Command("Index.add_images", (), "first", True, library=_add_items),
        Command("migration", (), "version-3", True, library=_migrate),
    ]


# Kills


def _run_in_fork(work: Callable[[], int], kill_after_s: float | None, *, with_workers: bool = False) -> int | None:
    """Run in a child process; -> its exit code, or None where it was killed."""
    child = os.fork()
    if child == 0:
        os.setsid()
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silent, stream)
        code = 99
        with contextlib.suppress(BaseException):
            code = work()
        os._exit(code)
    started = time.monotonic()
    while kill_after_s is None or time.monotonic() - started < kill_after_s:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if with_workers else os.kill)(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _work(command: Command, index: Path) -> Callable[[], int]:
    def work() -> int:
        if command.library is not None:
            command.library(index)
            return 0
        try:
            return int(cli.main([*command.arguments, "-i", str(index)], standalone_mode=False) or 0)
        except SystemExit as error:
            return int(error.code or 0)
        except UsageError:
            return 2
        except mmsearch.Error:
            return 1

    return work


def kills(folder: Path, count: int, seed: int) -> list[tuple[str, ...]]:
    """A row for each command: kills, how many hit before the end, and what was lost."""
    workplace = Workplace(folder)
    workplace.make()
    draw = random.Random(seed)
    every = commands(workplace)
    rows = []
    for number, command in enumerate(every):
        share = count // len(every) + (number < count % len(every))
        rows.append(_kill_one(workplace, command, share, draw))
        print("  ".join(rows[-1]), flush=True)
    return rows


def _kill_one(workplace: Workplace, command: Command, count: int, draw: random.Random) -> tuple[str, ...]:
    index = workplace.index_in(command.state)
    before = Content.of(index)
    started = time.monotonic()
    code = _run_in_fork(_work(command, index), None)
    takes_s = time.monotonic() - started
    if code != 0:
        raise LossError(f"{command.name} ends with {code} without any kill")
    after = Content.of(index)
    if before.difference(after) is None:
        raise LossError(f"{command.name} changes nothing, so that no kill can show a loss")
    seen: Counter[str] = Counter()
    losses = []
    for number in range(count):
        index = workplace.index_in(command.state)
        killed = _run_in_fork(_work(command, index), draw.uniform(0, 1.05 * takes_s), with_workers=bool(number % 2))
        seen["killed" if killed is None else "ended before"] += 1
        try:
            content = Content.of(index)
            if command.is_atomic and before.difference(content) and after.difference(content):
                raise LossError(f"neither as before nor as after: {after.difference(content)}")
            code = _run_in_fork(_work(command, index), None)
            if code not in command.codes:
                raise LossError(f"run again, it ends with {code}")
            if difference := after.difference(Content.of(index)):
                raise LossError(difference)
        except LossError as loss:
            losses.append(str(loss))
            kept = workplace.folder / f"lost-{command.name.replace(' ', '-')}-{number}"
            shutil.copytree(index, kept, dirs_exist_ok=True)
    for loss in losses[:5]:
        print(f"    {command.name}: {loss}", file=sys.stderr)
    return command.name, f"{seen['killed']} killed", f"{seen['ended before']} ended before", f"{len(losses)} lost"


# Full disks


@contextlib.contextmanager
def disk_of(size_bytes: int, folder: Path) -> Iterator[Path]:
    """A disk in memory of a given size."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def disk(folder: Path, step: int = DISK_STEP) -> list[tuple[str, ...]]:
    """Index on disks of every size in steps of so many bytes, give each more room, and index again."""
    files = folder / "files"
    files.mkdir(parents=True)
    draw_files(files)
    run = [sys.executable, "-m", "mmsearch"]
    whole = folder / "whole"
    subprocess.run([*run, "index", str(files), "--model", "lite", "-i", str(whole)], check=True, capture_output=True)
    expected = Content.of(whole)
    seen: Counter[str] = Counter()
    losses = []
    size = step
    while seen["had room"] < 3:  # until the disk is clearly large enough
        with disk_of(size, folder / "disk") as small:
            arguments = ["index", str(files), "--model", "lite", "-i", str(small / "index")]
            first = subprocess.run([*run, *arguments], capture_output=True, text=True, timeout=120)
            seen["had room" if first.returncode == 0 else "was full"] += 1
            try:
                if first.returncode not in (0, 1) or "Traceback" in first.stderr:
                    raise LossError(f"exit code {first.returncode}: {first.stderr.strip()[-300:]}")
                if first.returncode == 1 and len(first.stderr.strip().splitlines()) > 3:
                    raise LossError(f"more than a sentence: {first.stderr.strip()[:300]}")
                searched = subprocess.run(
                    [*run, "search", "a scene", "-i", str(small / "index")], capture_output=True, text=True, timeout=120
                )
                if searched.returncode not in (0, 1) or "Traceback" in searched.stderr:
                    raise LossError(f"a search ends with {searched.returncode}: {searched.stderr.strip()[-300:]}")
                subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
                again = subprocess.run([*run, *arguments], capture_output=True, text=True, timeout=120)
                if again.returncode != 0:
                    raise LossError(f"with more room, it ends with {again.returncode}: {again.stderr.strip()[-300:]}")
                if difference := expected.difference(Content.of(small / "index")):
                    raise LossError(difference)
            except LossError as loss:
                losses.append(f"{size // 1024} KB: {loss}")
        size += step
    for loss in losses[:10]:
        print(f"    {loss}", file=sys.stderr)
    steps = f"{seen.total()} sizes, {step // 1024} to {(size - step) // 1024} KB"
    return [("disk full", steps, f"{seen['was full']} full", f"{len(losses)} lost")]


# Many processes

WRITER = """
import json, random, sys, time
import mmsearch
from tests import pictures
from tests.indexes.make import HERE as OLD_INDEXES
from tests.indexes.make import GridEncoder

folder, number, until = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
draw = random.Random(number)
ledger = {}
with mmsearch.Index(folder) as index:
    while time.time() < until:
        name = f"w{number}-{draw.randrange(60)}"
        act = draw.random()
        if name in ledger and act < 0.3:
            index.remove(ids=[name], wait_s=None)
            del ledger[name]
        elif act < 0.6:
            index.add_texts([f"text of {name} {act}"], ids=[name], wait_s=None)
            ledger[name] = f"text of {name} {act}"
        elif act < 0.95:
            image = pictures.scene((32, 32), draw.randrange(10**6))
            index.add_images([image], ids=[name], captions=[f"image of {name} {act}"], wait_s=None)
            ledger[name] = f"image of {name} {act}"
        else:
            index.add(options=mmsearch.IngestOptions(wait_s=None))
json.dump(ledger, sys.stdout)
"""

READER = """
import random, sys, time
import mmsearch

folder, number, until = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
draw = random.Random(number)
count = 0
while time.time() < until:
    with mmsearch.Index(folder) as index:
        for _ in range(draw.randrange(1, 40)):
            hits = index.search(draw.choice(["a scene", "text of w1", "blue", "the caption of scene 3"]), k=20)
            assert len(hits) == 20, len(hits)
            assert [hit.rank for hit in hits] == list(range(1, 21))
            assert len({hit.id for hit in hits}) == 20
            assert index.status().images >= 48
            count += 1
print(count)
"""


def sharing(folder: Path, minutes: float, writers: int = 4, readers: int = 8) -> list[tuple[str, ...]]:
    """Writers and readers on one index, then the index beside what the writers say that they wrote."""
    files = folder / "files"
    files.mkdir(parents=True)
    draw_files(files)
    index = folder / "index"
    run = [sys.executable, "-m", "mmsearch", "index", str(files), "--model", "lite", "-i", str(index)]
    subprocess.run(run, check=True, capture_output=True)
    base = Content.of(index)
    until = str(time.time() + 60 * minutes)

    def start(script: str, number: int) -> "subprocess.Popen[str]":
        arguments = [sys.executable, "-c", script, str(index), str(number), until]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    processes = [start(WRITER, number) for number in range(writers)]
    processes += [start(READER, number) for number in range(readers)]
    outputs = [process.communicate() for process in processes]
    losses = [error.strip()[-400:] for (_, error), one in zip(outputs, processes, strict=True) if one.returncode]
    ledger: dict[str, str] = {}
    for (output, _), process in zip(outputs[:writers], processes[:writers], strict=True):
        ledger |= json.loads(output) if process.returncode == 0 else {}
    searches = sum(int(output or 0) for output, _ in outputs[writers:])
    if not losses:
        losses += _differences(base, Content.of(index), ledger)
    for loss in losses[:5]:
        print(f"    {loss}", file=sys.stderr)
    who = f"{writers} writers and {readers} readers, {minutes:g} minutes"
    return [("sharing", who, f"{searches:,} searches, {len(ledger)} items kept", f"{len(losses)} lost")]


def _differences(base: Content, now: Content, ledger: dict[str, str]) -> list[str]:
    texts = {}
    for name in set(now.facts) - set(base.facts):
        _, own_name, _, owner, _, text, *_ = json.loads(name)
        if text:
            texts[own_name or owner] = text
    if texts != ledger:
        return [f"the index has {len(texts)} items of the writers, who wrote {len(ledger)}"]
    lost = [name for name in base.facts if name.startswith("[") and base.facts[name] != now.facts.get(name)]
    return [f"{len(lost)} items of the files changed: {lost[:3]}"] if lost else []


def main() -> None:
    """Parse the arguments, run, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test", choices=["kills", "disk", "sharing"])
    parser.add_argument("--count", type=int, default=1000, help="how many kills")
    parser.add_argument("--step-kb", type=int, default=64, help="between two sizes of disk")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long processes share an index")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        if arguments.test == "kills":
            rows = kills(folder, arguments.count, arguments.seed)
        elif arguments.test == "disk":
            rows = disk(folder, arguments.step_kb * 1024)
        else:
            rows = sharing(folder, arguments.minutes)
    for row in rows:
        print("  ".join(row))
    lost = [row for row in rows if row[-1] != "0 lost"]
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
