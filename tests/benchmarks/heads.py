"""Heads on two domains that `lite` has not seen: what they gain there, what they cost elsewhere, how long they take.

One index holds the pictures of both domains and, without any words, half of Tux Paint's stamps; the other half, which
is in no index, asks what is general. And an index of a million made-up vectors moves to other heads and back.
"""

import csv
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmsearch.encoders.heads import TrainedHeads
from mmsearch.index import Index
from mmsearch.store.metadata import Store
from mmsearch.store.records import KINDS
from mmsearch.store.vectors import VectorIndex
from tests.benchmarks import domains
from tests.benchmarks.crossmodal import Workload
from tests.benchmarks.filled import fill_with
from tests.benchmarks.measure import Row

DRAWN = {"symbols": domains.symbols, "icons": domains.icons}


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    """quick: a tenth of the million, and the smaller domain alone."""
    yield from learned(folder, ("icons",) if quick else ("symbols", "icons"))
    yield from moved(folder, 100_000 if quick else 1_000_000)


def learned(folder: Path, names: tuple[str, ...]) -> Iterator[Row]:
    """What heads gain on each domain by itself, and how long all pairs together take."""
    packages = domains.fetched(folder / "packages")
    tables = {}
    for name in names:
        (folder / name).mkdir(exist_ok=True)
        tables[name] = DRAWN[name](packages, folder / name)
    rest, general = _stamps(packages, folder)
    with Index(folder / "index", model="lite") as index:
        index.add(*(folder / name for name in names), rest)
        for name in names:
            # Without what is nearly the same as a picture of the test, by another name or in another font
            (folder / f"{name}.csv").write_text(index.prepare_pairs(tables[name]).table(), encoding="utf-8")
            tables[name] = folder / f"{name}.csv"
        for name, table in tables.items():
            report = index.train_heads(table, name=name, use=True)
            assert report.before is not None and report.after is not None
            before, after = report.before.recall[10], report.after.recall[10]
            found = index.evaluate(general, against="off")
            assert found.against is not None
            old = found.against.figures["text to image"].recall[10]
            new = found.figures["text to image"].recall[10]
            values = {"before": before.value, "after": after.value, "general_before": old.value, "general": new.value}
            yield Row(
                f"recall@10 of `lite` on {name}, {report.after.queries:,} held-out texts: own heads / trained "
                f"on {report.learned_from:,} pairs",
                f"{before} / {after}",
                values,
            )
            yield Row(
                f"the same heads on general sentences ({found.texts:,}), which they have not seen",
                f"{old} / {new}",
                values,
            )
        index.use_heads(None)
        index.train_heads(*tables.values(), name="all", use=False)  # whatever was not encoded yet
        started = time.perf_counter()
        report = index.train_heads(*tables.values(), name="all", use=False)
        seconds = time.perf_counter() - started
        yield Row(
            f"`train heads` on {report.pairs:,} pairs with features known, {report.epochs} epochs, all in all",
            f"{seconds:.1f} s",
            {"seconds": seconds, "pairs": report.pairs},
        )


def moved(folder: Path, count: int) -> Iterator[Row]:
    """The time that an index of `count` x 512 takes to other heads, and back."""
    workload = Workload(count)
    fill_with(folder / "moved", workload)
    random = np.random.default_rng(0)
    dim = 512
    weights = {f"image.{name}": random.standard_normal(shape).astype(np.float32) / 100 for name, shape in _MLP.items()}
    heads = TrainedHeads.of("new", weights)
    store = Store(folder / "moved")
    with store.write() as writer, writer.transaction():
        writer.connection.execute("UPDATE vectors SET feature = vector")  # as wide as those of CLIP
        writer.put_heads(heads.name, heads.hash, heads.to_bytes(), "{}")
    asked = workload.text_queries(300)[0]
    seconds = {}
    with store.write() as writer:
        started = time.perf_counter()
        with writer.transaction():
            writer.use_heads(heads.hash, heads.project)
        seconds["projected"] = time.perf_counter() - started
        started = time.perf_counter()
        for kind in KINDS:
            VectorIndex(store).build(writer, kind, lambda: heads.project("text", asked, asked))
        seconds["built"] = time.perf_counter() - started
        started = time.perf_counter()
        with writer.transaction():
            writer.use_heads(None, None)
        seconds["back"] = time.perf_counter() - started
    yield Row(
        f"{count:,} x {dim} to other heads (hidden layer of 256) / their vector index / back, without it",
        f"{seconds['projected']:.1f} s / {seconds['built']:.1f} s / {seconds['back']:.1f} s",
        {"count": count, **seconds},
    )


_MLP = {"hidden.weight": (512, 256), "hidden.bias": (256,), "out.weight": (256, 512), "out.bias": (512,)}


def _stamps(packages: Path, folder: Path) -> tuple[Path, Path]:
    """A folder with every other stamp, and a table of the rest with their sentences."""
    rest, table = folder / "rest", folder / "general.csv"
    rest.mkdir(exist_ok=True)
    asked = []
    for place, (picture, text) in enumerate(zip(*domains.stamps(packages), strict=True)):
        if place % 2:
            asked.append((str(picture), text))
        elif not (rest / f"{place}.png").exists():
            shutil.copy(picture, rest / f"{place}.png")
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "caption"), *asked])
    return rest, table
