"""Whatever happens to a derived file, it is ignored or made again: no answer changes, nothing is lost in silence."""

import contextlib
import os
import random
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mmsearch.store import rows, vectors
from mmsearch.store.cells import Cells, DamageError
from mmsearch.store.metadata import Store
from mmsearch.store.vectors import VectorIndex
from tests.benchmarks.crossmodal import Workload
from tests.test_vectors import build, put

COUNT, DIM, ASKED, K = 3_000, 32, 6, 20
WORKLOAD = Workload(COUNT, DIM)
QUERIES = np.concatenate((WORKLOAD.text_queries(ASKED // 2)[0], WORKLOAD.image_queries(ASKED // 2)))
FORMS = ["rows", "cells"]
MEGABYTES = 200  # by which the memory of this process may grow while it answers from damaged files

Answers = list[list[tuple[int, float]]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An index of each form, to be copied."""
    folders = {}
    for form in FORMS:
        folders[form] = tmp_path_factory.mktemp("whole") / form
        with pytest.MonkeyPatch.context() as patch, contextlib.closing(_made(folders[form])) as store:
            patch.setattr(vectors, "CELLS_FROM", 1_000 if form == "cells" else 10**9)
            put(store, next(WORKLOAD.images()))
            build(store, WORKLOAD)
    return folders


def _made(folder: Path) -> Store:
    return Store.create(folder, {"model": "test"})


@pytest.fixture(params=FORMS)
def store(
    request: pytest.FixtureRequest, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    monkeypatch.setattr(vectors, "CELLS_FROM", 1_000 if request.param == "cells" else 10**9)
    monkeypatch.setattr(vectors, "SMALL", 100)
    shutil.copytree(whole[request.param], tmp_path / "index")
    with contextlib.closing(Store(tmp_path / "index")) as store:
        yield store


def files(store: Store) -> list[Path]:
    return sorted((store.folder / vectors.FOLDER).iterdir())


def answers(store: Store, index: VectorIndex | None = None) -> Answers:
    index = index or VectorIndex(store)
    with store.read() as reader:
        found = [index.search(reader, "image", query, K) for query in QUERIES]
    return [list(zip(ids.tolist(), scores.tolist(), strict=True)) for ids, scores in found]


def exact(store: Store) -> Answers:
    """From the store alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "SMALL", 10**9)
        return answers(store)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """One of what happens to files: bits flipped, numbers changed, a part zeroed, moved, lost or put after."""
    body = bytearray(data)
    at, length = draw.randrange(len(body)), draw.randrange(1, len(body) // 3)
    if draw.random() < 0.5:
        at = draw.randrange(min(len(body), 600))  # where lengths stand
    match draw.randrange(7):
        case 0:
            body[at] ^= 1 << draw.randrange(8)
        case 1:
            for _ in range(draw.randrange(1, 50)):
                body[draw.randrange(len(body))] ^= 1 << draw.randrange(8)
        case 2:
            body[at : at + 8] = draw.choice([b"\xff" * 8, bytes(8), draw.randbytes(8), (2**40).to_bytes(8, "little")])
        case 3:
            body[at : at + length] = bytes(len(body[at : at + length]))
        case 4:
            body[at : at + length] = body[-length:]
        case 5:
            del body[draw.randrange(len(body)) :]
        case 6:
            body += draw.randbytes(length)
    return bytes(body)


def assert_answers_hold(store: Store, path: Path, data: bytes, draw: random.Random, before: Answers) -> None:
    path.write_bytes(damaged(data, draw))
    allowed = (before, exact(store))
    for place, answer in enumerate(answers(store)):
        assert answer in [known[place] for known in allowed]


def test_random_damage_to_files_of_vectors_changes_no_answer_and_is_mended(store: Store) -> None:
    before, draw = answers(store), random.Random(1)
    for path in files(store):
        data = path.read_bytes()
        for _ in range(12):
            assert_answers_hold(store, path, data, draw, before)
        build(store, WORKLOAD)
        assert answers(store) == before or path.suffix == ".faiss"
        assert path not in files(store) and not _unsound(store)


@pytest.mark.slow
def test_hundreds_of_damaged_files_of_vectors_change_no_answer_and_take_no_memory(store: Store) -> None:
    before, draw = answers(store), random.Random(2)
    exact(store)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in files(store):
        data = path.read_bytes()
        for _ in range(300):
            assert_answers_hold(store, path, data, draw, before)
        path.write_bytes(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MEGABYTES * 1024


def _unsound(store: Store) -> list[str]:
    with store.read() as reader:
        return [
            segment.file
            for segment in reader.segments("image")
            if not vectors._is_sound(reader, "image", store.folder / vectors.FOLDER / segment.file, segment)
        ]


def test_a_tenth_that_is_zeroed_loses_no_item(store: Store) -> None:
    for path in files(store):
        data = path.read_bytes()
        for part in range(10):
            start, end = part * len(data) // 10, (part + 1) * len(data) // 10
            path.write_bytes(data[:start] + bytes(end - start) + data[end:])
            with store.read() as reader:
                ids, _ = VectorIndex(store).search(reader, "image", QUERIES[0], 2 * COUNT)
            assert sorted(ids.tolist()) == list(range(1, COUNT + 1))
        path.write_bytes(data)


def test_a_file_that_is_cut_short_while_it_is_in_use_is_passed_over(store: Store) -> None:
    index, (path, *_) = VectorIndex(store), files(store)
    before = answers(store, index)
    os.truncate(path, 5_000)  # what is mapped beyond that would kill the process
    assert answers(store, index) in (before, exact(store))


def test_a_file_that_is_overwritten_while_it_is_in_use_is_passed_over(store: Store) -> None:
    index, (path, *_) = VectorIndex(store), files(store)
    before, size = answers(store, index), path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 4)
        file.write(bytes(size // 2))
    for place, answer in enumerate(answers(store, index)):
        assert answer in (before[place], exact(store)[place])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
@pytest.mark.parametrize("other", ["folder", "pipe", "link to nothing", "empty"])
def test_something_else_in_the_place_of_a_file_is_passed_over(store: Store, other: str) -> None:
    known = exact(store)
    for path in files(store):
        path.unlink()
        if other == "folder":
            path.mkdir()
        elif other == "pipe":
            os.mkfifo(path)
        elif other == "link to nothing":
            path.symlink_to("nothing")
        else:
            path.touch()
        assert answers(store) == known or path.suffix == rows.SUFFIX
    build(store, WORKLOAD)
    assert not _unsound(store)


def test_a_file_of_another_index_is_not_taken_for_this_ones(store: Store, tmp_path: Path) -> None:
    known = exact(store)
    with contextlib.closing(_made(tmp_path / "other")) as other:
        put(other, next(Workload(COUNT, DIM, seed=5).images()))
        build(other, WORKLOAD)
        for mine, theirs in zip(files(store), files(other), strict=True):
            shutil.copy(theirs, mine)
    assert answers(store) == known


def test_files_of_an_older_version_are_used_and_written_anew_with_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "SMALL", 100)
    with contextlib.closing(_made(tmp_path / "index")) as store:
        put(store, next(WORKLOAD.images()))
        build(store, WORKLOAD)
        before, old = answers(store), files(store)
        with store.write() as writer, writer.transaction():
            writer.connection.execute("UPDATE segments SET checksum = NULL")
        with store.read() as reader:
            assert VectorIndex(store)._refresh(reader, "image").files, "they are not read from the store"
        assert answers(store) == before
        build(store, WORKLOAD)
        assert files(store) != old and not _unsound(store) and answers(store) == before


def test_every_part_of_a_file_of_cells_is_under_a_checksum(whole: dict[str, Path], tmp_path: Path) -> None:
    with contextlib.closing(Store(whole["cells"])) as store, store.read() as reader:
        (segment,) = reader.segments("image")
    data = (whole["cells"] / vectors.FOLDER / segment.file).read_bytes()
    copy = tmp_path / "copy.faiss"
    for at in random.Random(4).sample(range(len(data)), 150):
        copy.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(DamageError):
            Cells.open(copy, segment.checksum).check()
