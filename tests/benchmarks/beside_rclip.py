"""Beside rclip 3.3.0, on the same files with the same weights: indexing, indexing again, and a query in a new process.

The weights are random ones of ViT-B-32-256, since only time is measured. rclip gets them as the two ONNX files that it
otherwise downloads, in float32, exported by torch; mmsearch makes its bundle of the same checkpoint.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mmsearch import Index
from mmsearch.store.metadata import Store
from mmsearch.store.queries import DATABASE
from mmsearch.store.records import KINDS
from mmsearch.store.vectors import VectorIndex
from tests import pictures
from tests.benchmarks.bundle_memory import SAVE_RANDOM_WEIGHTS
from tests.benchmarks.crossmodal import Workload
from tests.benchmarks.environments import environment
from tests.benchmarks.filled import fill
from tests.benchmarks.measure import Ran, Row, run, run_command
from tests.benchmarks.rerun import enter, many_files

ARCHITECTURE = "ViT-B-32-256"
PHOTOGRAPHS = 120
DISTINCT = 24  # that are drawn; the others differ in a comment, since rclip encodes no file twice
ROUNDS = 5
QUERY = "a red bicycle in the snow"
PEER = str(Path(__file__).with_name("peer_rclip.py"))

EXPORT = """
import shutil, sys, os, open_clip, torch
weights, folder = sys.argv[2:]
model = open_clip.create_model(sys.argv[1], weights, weights_only=True).eval()

class Tower(torch.nn.Module):
    def __init__(self, encode):
        super().__init__()
        self.model, self.encode = model, encode
    def forward(self, input):
        return self.encode(input)

onnx = os.path.join(folder, "ViT-B-32-256-datacomp_s34b_b86k")
os.makedirs(onnx); os.makedirs(os.path.join(folder, "tokenizer"))
tokens = open_clip.get_tokenizer(sys.argv[1])(["a dog", "a cat"])
for name, encode, sample in (
    ("visual", model.encode_image, torch.rand(2, 3, 256, 256)), ("textual", model.encode_text, tokens)
):
    torch.onnx.export(
        Tower(encode).eval(), (sample,), os.path.join(onnx, name + ".onnx"), dynamo=True, external_data=False,
        input_names=["input"], output_names=["output"], dynamic_shapes=({0: torch.export.Dim("n")},), opset_version=18,
    )
vocabulary = os.path.join(os.path.dirname(open_clip.__file__), "bpe_simple_vocab_16e6.txt.gz")
shutil.copy(vocabulary, os.path.join(folder, "tokenizer"))
"""


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    """Measure in an empty folder."""
    if (python := environment("rclip")) is None:
        print("rclip: not to be had here", file=sys.stderr)
        return
    weights, data = folder / "weights.safetensors", folder / "rclip"
    for script, arguments in ((SAVE_RANDOM_WEIGHTS, (weights,)), (EXPORT, (weights, data))):
        subprocess.run([sys.executable, "-c", script, ARCHITECTURE, *arguments], check=True, capture_output=True)
    os.environ["MMSEARCH_CACHE"] = str(folder / "cache")
    rclip = _Rclip(python, data)
    yield from _indexing(folder, rclip, f"{ARCHITECTURE}@{weights}")
    yield from _queries(folder, rclip, f"{ARCHITECTURE}@{weights}", 20_000 if quick else 200_000)
    yield _again(folder, rclip, 10_000 if quick else 100_000)


class _Rclip:
    """rclip with its data in a folder, as a command."""

    def __init__(self, python: str, data: Path) -> None:
        self._python, self._data = python, data

    def index(self, folder: Path) -> Ran:
        return self._run([self._python, PEER, "index", str(folder)], folder)

    def search(self, folder: Path, *, watch_memory: bool = False) -> Ran:
        command = [self._python, "-m", "rclip", "--no-indexing", "--filepath-only", QUERY]
        return self._run(command, folder, watch_memory=watch_memory)

    def fill(self, folder: Path, vectors: Path) -> None:
        self._run([self._python, PEER, "fill", str(folder), str(vectors)], folder)

    def forget(self) -> None:
        for file in self._data.glob("db.sqlite3*"):
            file.unlink()

    def _run(self, command: Sequence[str], folder: Path, *, watch_memory: bool = False) -> Ran:
        return run_command(
            command, watch_memory=watch_memory, cwd=folder, environment={"RCLIP_DATADIR": str(self._data)}
        )


def _indexing(folder: Path, rclip: _Rclip, model: str) -> Iterator[Row]:
    """The same photographs of twelve megapixels by each in turn."""
    photos = folder / "photos"
    photos.mkdir()
    for number in range(PHOTOGRAPHS):
        path = photos / f"{number:05}.jpg"
        if number < DISTINCT:
            pictures.photo(path, (4000, 3000), number)
        else:
            path.write_bytes((photos / f"{number % DISTINCT:05}.jpg").read_bytes() + f"{number:05}".encode())
    ways = {name: [model, "--precision", name] for name in ("fp32", "int8")} | {"lite": ["lite"]}
    taken: dict[str, list[float]] = {name: [] for name in ("rclip", *ways)}
    for turn in range(ROUNDS + 1):
        rclip.forget()
        taken["rclip"].append(rclip.index(photos).seconds)
        for name, arguments in ways.items():
            index = str(folder / f"index-{name}-{turn}")
            taken[name].append(run(["index", str(photos), "-i", index, "--quiet", "--model", *arguments]).seconds)
    # The first turn also makes the bundle
    rates = {name: [PHOTOGRAPHS / seconds for seconds in every[1:]] for name, every in taken.items()}
    for name, of_name in rates.items():
        rate = statistics.median(of_name)
        ratio = rate / statistics.median(rates["rclip"])
        yield Row(
            f"index {PHOTOGRAPHS} photographs of 12 megapixels: {name}",
            f"{rate:.1f} pictures/s ({min(of_name):.1f}-{max(of_name):.1f}), {ratio:.2f} x rclip",
            {"pictures_per_s": rate, "of_rclip": ratio, "least": min(of_name), "most": max(of_name)},
        )


def _queries(folder: Path, rclip: _Rclip, model: str, many: int) -> Iterator[Row]:
    """Words asked for in a new process, that were not asked for before; both with the same vectors."""
    for count in (PHOTOGRAPHS, many):
        photos, index = folder / "photos", folder / f"index-{count}"
        rows = np.concatenate(list(Workload(count).images()))
        np.save(folder / "rows.npy", rows)
        rclip.forget()
        rclip.fill(photos, folder / "rows.npy")
        with Index(index, model=model, precision="fp32") as made:
            made.add_texts(["so that the index is made"])
        fill(index, iter([rows]), {})
        store = Store(index)
        with store.write() as writer:
            for kind in KINDS:
                VectorIndex(store).build(writer, kind, lambda: Workload(1_000).text_queries(200)[0])
        store.close()
        ours, theirs = [], []
        for _ in range(ROUNDS + 1):
            (index / DATABASE).unlink(missing_ok=True)
            ours.append(run(["search", QUERY, "--paths", "-i", str(index)]).seconds)
            theirs.append(rclip.search(photos).seconds)
        (index / DATABASE).unlink(missing_ok=True)
        own_mb = run(["search", QUERY, "--paths", "-i", str(index)], watch_memory=True).peak_mb
        peer_mb = rclip.search(photos, watch_memory=True).peak_mb
        own, peer = statistics.median(ours[1:]), statistics.median(theirs[1:])
        yield Row(
            f"query in a new process, {count:,} items: mmsearch / rclip",
            f"{own:.2f} s, {own_mb:,.0f} MB / {peer:.2f} s, {peer_mb:,.0f} MB: {peer / own:.1f} times",
            {"seconds": own, "mb": own_mb, "rclip_seconds": peer, "rclip_mb": peer_mb, "times": peer / own},
        )


def _again(folder: Path, rclip: _Rclip, count: int) -> Row:
    """`index` over files that have not changed; rclip does so before each search, unless it is told not to."""
    photos, index = folder / "unchanged", folder / "index-unchanged"
    many_files(photos, count)
    with Index(index, model="lite") as made:
        made.add_texts(["so that the index is made"])
    enter(index, photos, 384)
    np.save(folder / "rows.npy", np.full((count, 512), 512**-0.5, np.float32))
    rclip.forget()
    rclip.fill(photos, folder / "rows.npy")
    ours, theirs = [], []
    for _ in range(4):
        ours.append(run(["index", str(photos), "-i", str(index), "--quiet"]).seconds)
        theirs.append(rclip.index(photos).seconds)
    own, peer = statistics.median(ours[1:]), statistics.median(theirs[1:])
    return Row(
        f"index again, {count:,} unchanged files: mmsearch / rclip",
        f"{own:.2f} s / {peer:.2f} s: {peer / own:.1f} times",
        {"seconds": own, "rclip_seconds": peer, "times": peer / own},
    )
