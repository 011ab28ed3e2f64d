"""A damaged index.db is answered from, or said to be damaged in a sentence; whatever was changed in it."""

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmsearch.encoders.heads import TrainedHeads
from mmsearch.errors import Error, IndexDamagedError
from mmsearch.index import Index
from mmsearch.store.metadata import Store
from mmsearch.store.soundness import COLUMNS, fault
from mmsearch.train.residual import HeadSettings
from tests.colours import COLOURS, ColourEncoder, plain, swatch
from tests.conftest import ROOT

PAGE = 4096
LIMIT_S = 120  # of one method on one copy, with all that is imported for it, on a busy machine

Act = Callable[[Index, Path], object]
QUICK: dict[str, Act] = {
    "search": lambda index, photos: index.search("red wall", k=1000),
    "search filtered": lambda index, photos: index.search(
        "red", under=photos, after="2001", near=(1.0, 1.0, 50.0), where={"year": {">": 3}}
    ),
    "search an image": lambda index, photos: index.search(photos / "red0.png"),
    "lookup": lambda index, photos: index.lookup(photos / "red0.png", k=50),
    "item": lambda index, photos: [index.item(f"mm-{number}") for number in (1, 2, 20, 40)],
    "match": lambda index, photos: index.match(photos / "red0.png", "red"),
    "classify": lambda index, photos: index.classify(photos / "red0.png", ["red", "blue"]),
    "describe": lambda index, photos: index.describe(photos / "red0.png"),
    "encode": lambda index, photos: index.encode("red"),
    "status": lambda index, photos: index.status(),
    "kept_map": lambda index, photos: index.kept_map(),
    "heads": lambda index, photos: index.heads(),
    "feedback": lambda index, photos: index.feedback(),
    "remove": lambda index, photos: index.remove(photos / "blue1.png"),
    "remove ids": lambda index, photos: index.remove(ids=["mm-7"]),
    "add_texts": lambda index, photos: index.add_texts(["red words"], ids=["mine"]),
    "add_images": lambda index, photos: index.add_images([plain("red")], captions=["a wall"]),
    "add_feedback": lambda index, photos: index.add_feedback("red", like=["mm-3"]),
    "use_heads": lambda index, photos: index.use_heads("warm"),
    "use_heads None": lambda index, photos: index.use_heads(None),
    "remove_heads": lambda index, photos: index.remove_heads("warm"),
}
LONG: dict[str, Act] = {
    "add": lambda index, photos: index.add(photos),
    "add what there is": lambda index, photos: index.add(),
    "duplicates": lambda index, photos: index.duplicates(),
    "map": lambda index, photos: index.map(),
    "evaluate": lambda index, photos: index.evaluate(),
    "evaluate_classes": lambda index, photos: index.evaluate_classes(photos.parent / "classes"),
    "prepare_pairs": lambda index, photos: index.prepare_pairs(photos),
    "train_heads": lambda index, photos: index.train_heads(settings=HeadSettings(epochs=2)),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos and two indexes of them: with trained heads in use, and without."""
    made = tmp_path_factory.mktemp("made")
    photos, index_folder = made / "photos", made / "heads on"
    photos.mkdir()
    for colour in COLOURS:
        for seed in range(3):
            swatch(colour, seed).save(photos / f"{colour}{seed}.png")
            (photos / f"{colour}{seed}.txt").write_text(f"a {colour} wall, {seed}")
        (made / "classes" / colour).mkdir(parents=True)
        plain(colour).save(made / "classes" / colour / "one.png")
    (photos / "broken.png").write_bytes(b"no image")
    (photos / "notes.txt").write_text("red apples and green ones\n\nthe blue sky")
    turned = 0.1 * np.eye(ColourEncoder.dim, k=1, dtype=np.float32)
    heads = TrainedHeads.of("warm", {"image.weight": turned, "text.weight": turned})
    with Index(index_folder, encoder=ColourEncoder()) as index:
        index.add(photos)
        index.add_texts([f"red {n}" for n in range(5)], facts=[{"year": n, "who": "me"} for n in range(5)])
        index.add_feedback("red", like=["mm-1"], unlike=["mm-9"])
        index.remove(photos / "red2.png")
        with contextlib.closing(Store(index_folder)) as store, store.write() as writer, writer.transaction():
            writer.put_heads(heads.name, heads.hash, heads.to_bytes(), "{}")
        shutil.copytree(index_folder, made / "heads off")
        index.use_heads("warm")
        index.map()
    return made


def change_bytes(database: Path, draw: random.Random) -> None:
    """Bits or bytes of a page or some, half of them where SQLite keeps how the page is laid out."""
    data = bytearray(database.read_bytes())
    how = draw.random()
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        at = draw.randrange(len(data) // PAGE) * PAGE + draw.randrange(draw.choice([200, PAGE]))
        if how < 0.7:
            data[at] ^= 1 << draw.randrange(8)
        elif how < 0.9:
            data[at] = draw.randrange(256)
        else:
            data[at : at + 16] = draw.choice([bytes(16), draw.randbytes(16)])
    database.write_bytes(bytes(data[: database.stat().st_size]))


# fmt: off
VALUES = (
    None, "", b"", "text", b"\xff\xfe\0", -1, 0, 2**40, 2**62, -(2**62), 1e300, float("inf"), "{", "[1]", "null",
    '{"a": 1e999}', b"\0" * 7, b"\xff" * 26, "x" * 5000, "[" * 3000,
)
# fmt: on


def change_values(database: Path, draw: random.Random) -> None:
    """Values of rows, to others and of other types; SQLite finds nothing wrong with that."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for _ in range(draw.choice([1, 1, 2, 3])):
            table = draw.choice(list(COLUMNS))
            first, *_ = columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            keys = connection.execute(f"SELECT {first} FROM {table}").fetchall()
            value = draw.choice(VALUES)
            bound = "CAST(? AS TEXT)" if isinstance(value, bytes) and draw.random() < 0.5 else "?"
            if keys:
                with contextlib.suppress(sqlite3.IntegrityError):
                    connection.execute(
                        f"UPDATE {table} SET {draw.choice(columns)} = {bound} WHERE {first} = ?",
                        (value, *draw.choice(keys)),
                    )
        for _, sql in triggers:
            connection.execute(sql)


CHANGES = {"bytes": change_bytes, "values": change_values}


def ask(made: Path, how: str, seed: int, acts: dict[str, Act], into: Path) -> None:
    """Each method on a copy of its own with the same damage; anything but an answer or an mmsearch.Error is raised."""
    source = made / ("heads on" if seed % 2 else "heads off")
    for name, act in acts.items():
        shutil.rmtree(into, ignore_errors=True)
        shutil.copytree(source, into)
        CHANGES[how](into / "index.db", random.Random(seed))
        try:
            with Index(into, encoder=ColourEncoder()) as index:
                act(index, made / "photos")
        except Error as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
        except Exception as error:
            raise AssertionError(f"{name}, {how} {seed}: {error!r}") from error


@pytest.mark.parametrize("how", CHANGES)
def test_a_damaged_index_answers_or_is_said_to_be_damaged(tmp_path: Path, made: Path, how: str) -> None:
    for seed in range(3):
        ask(made, how, seed, QUICK, tmp_path / "copy")


@pytest.mark.slow
@pytest.mark.parametrize("how", CHANGES)
def test_many_damaged_indexes_answer_in_time_or_are_said_to_be_damaged(tmp_path: Path, made: Path, how: str) -> None:
    script = (
        "import sys; from pathlib import Path; from tests import test_soundness as tests\n"
        "made, how, first, into = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])\n"
        "for seed in range(first, first + 8):\n"
        "    for name, act in (tests.QUICK | tests.LONG).items():\n"
        "        print(name, how, seed, flush=True)\n"
        "        tests.ask(made, how, seed, {name: act}, into)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script, str(made), how, "1000", str(tmp_path / "copy")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None and run.stderr is not None
    import select

    last = ""
    try:
        while select.select([run.stdout], [], [], LIMIT_S)[0]:
            if not (line := run.stdout.readline()):
                break
            last = line
        else:
            pytest.fail(f"{last.strip()}: no end after {LIMIT_S} s")
        assert run.wait(timeout=60) == 0, run.stderr.read()
    finally:
        run.kill()
        run.wait()


@pytest.mark.parametrize("name", ["heads on", "heads off"])
def test_a_sound_index_has_no_fault(made: Path, name: str) -> None:
    assert fault(made / name) is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE vectors SET vector = x'0000' WHERE id = 3",
        "DROP TRIGGER facts_changed; UPDATE items SET facts = '{' WHERE id = 3",
        "UPDATE items SET text = CAST(x'ff' AS TEXT) WHERE text IS NOT NULL",
        "UPDATE roots SET options = 'none'",
        "UPDATE settings SET value = 'many' WHERE key = 'dim'",
        "UPDATE settings SET value = 'gone' WHERE key = 'heads'",
        "DELETE FROM vectors WHERE id = 3",
        "INSERT INTO dead_vectors VALUES (1152921504606846976, 'image')",
        "DROP TABLE feedback",
    ],
)
def test_what_mmsearch_never_wrote_is_said_to_be_damage(tmp_path: Path, made: Path, statement: str) -> None:
    shutil.copytree(made / "heads on", tmp_path / "copy")
    with contextlib.closing(sqlite3.connect(tmp_path / "copy" / "index.db")) as database:
        database.executescript(statement)
    with (
        pytest.raises(IndexDamagedError, match=r"index\.db is damaged"),
        Index(tmp_path / "copy", encoder=ColourEncoder()) as index,
    ):
        index.search("red", k=1000)
        index.status()
        index.lookup(made / "photos" / "red0.png", k=1000)
        index.use_heads(None)
        index.use_heads("warm")
        index.feedback()


def test_an_error_of_the_caller_s_own_stays_what_it_is(made: Path) -> None:
    def interrupt(progress: object) -> None:
        raise ValueError("mine")

    with Index(made / "heads on", encoder=ColourEncoder()) as index, pytest.raises(ValueError, match="mine"):
        index.duplicates(progress=interrupt)
