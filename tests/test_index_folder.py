"""What lies in an index's folder when a write has ended, and what is said where that folder is not what it was."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mmsearch.encoders.heads import TrainedHeads
from mmsearch.errors import Error, IndexDamagedError, IndexWriteError, ModelMismatchError
from mmsearch.index import Index
from mmsearch.store import metadata
from mmsearch.store.files import check_database
from mmsearch.store.metadata import Store
from mmsearch.store.queries import QueryCache
from mmsearch.store.records import NewItem
from mmsearch.thumbnails import Thumbnails
from tests.colours import COLOURS, ColourEncoder, plain
from tests.conftest import ROOT
from tests.test_robust import as_ordinary_user, linux_only, small_disk

PRECIOUS = b"what the user wrote"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures of one colour each, one with a caption."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for colour in COLOURS:
        plain(colour).save(folder / f"{colour}.png")
    (folder / "red.txt").write_text("a wall in the evening")
    return folder


@pytest.fixture
def index(tmp_path: Path, folder: Path) -> Iterator[Index]:
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add(folder)
        yield index


def told(folder: Path) -> dict[str, object]:
    """What an index answers, without where it lies."""
    with Index(folder, encoder=ColourEncoder()) as index:
        status = index.status()
        hits = index.search("red and white", k=1000)
        return {
            "counts": (status.images, status.passages, status.captions, status.heads, status.updated_at, status.roots),
            "hits": [(hit.id, hit.score, hit.text) for hit in hits],
            "heads": index.heads(),
            "feedback": index.feedback(),
        }


def told_by_database_alone(index: Index, into: Path) -> dict[str, object]:
    into.mkdir()
    shutil.copy(index.folder / "index.db", into)
    return told(into)


def in_a_process(script: str, *arguments: object, timeout_s: float = 60) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# A copy of index.db alone


WRITES: dict[str, Callable[[Index, Path], object]] = {
    "add": lambda index, folder: index.add(folder),
    "add_images": lambda index, folder: index.add_images([plain("red")], ids=["mine"], captions=["a wall"]),
    "add_texts": lambda index, folder: index.add_texts(["red words"], facts=[{"year": 2020}]),
    "remove": lambda index, folder: index.remove(folder / "green.png"),
    "add_feedback": lambda index, folder: index.add_feedback("red", like=["mm-1"], unlike=["mm-2"]),
    "use_heads": lambda index, folder: (put_heads(index), index.use_heads("warm")),
    "heads off": lambda index, folder: (put_heads(index), index.use_heads("warm"), index.use_heads(None)),
    "remove_heads": lambda index, folder: (put_heads(index), index.remove_heads("warm")),
    "map": lambda index, folder: index.map(),
}


def put_heads(index: Index) -> None:
    """Heads that turn everything a little, as a training would leave them."""
    turned = np.eye(ColourEncoder.dim, k=1, dtype=np.float32)
    heads = TrainedHeads.of("warm", {"image.weight": turned, "text.weight": turned})
    with contextlib.closing(Store(index.folder)) as store, store.write() as writer, writer.transaction():
        writer.put_heads(heads.name, heads.hash, heads.to_bytes(), "{}")


@pytest.mark.parametrize("write", WRITES)
def test_index_db_alone_is_the_index_when_a_write_has_ended(
    tmp_path: Path, folder: Path, index: Index, write: str
) -> None:
    index.search("red")  # so that a reader is open, as in a server
    WRITES[write](index, folder)
    assert told_by_database_alone(index, tmp_path / "copy") == told(index.folder)


def test_index_db_alone_is_the_index_after_a_migration(tmp_path: Path, index: Index) -> None:
    before = told(index.folder)
    index.close()
    shutil.rmtree(index.folder / "vectors")
    with contextlib.closing(sqlite3.connect(index.folder / "index.db")) as database:
        for table in ("heads", "projected", "feedback", "encoded"):
            database.execute(f"DROP TABLE {table}")
        database.execute("DROP TRIGGER projected_deleted")
        database.execute("DELETE FROM _sqlite_migrations WHERE name = 'make_room_for_training'")
        database.execute("PRAGMA user_version = 2")
        database.commit()
    with Index(index.folder, encoder=ColourEncoder()) as old:
        assert old.search("red")  # a reader holds the old tables meanwhile
        old.add_feedback("red", like=["mm-1"])
        assert told_by_database_alone(old, tmp_path / "copy") == told(index.folder) != before


def test_many_small_writes_are_in_index_db_soon_after_the_last(tmp_path: Path, index: Index) -> None:
    started = time.monotonic()
    written = 0
    while time.monotonic() - started < 0.1 + 2 * metadata.CHECKPOINTS_S or written < 50:
        index.add_texts([f"red {written}"])
        written += 1
    wait_for(lambda: (index.folder / "index.db-wal").stat().st_size == 0, seconds=5)
    assert told_by_database_alone(index, tmp_path / "copy") == told(index.folder)


def test_a_script_that_never_closes_its_index_leaves_all_in_index_db(tmp_path: Path) -> None:
    script = (
        "import sys; from mmsearch.index import Index; from mmsearch.store import metadata\n"
        "from tests.colours import ColourEncoder\n"
        "index = Index(sys.argv[1], encoder=ColourEncoder())\n"
        "for n in range(100): index.add_texts([f'red {n}'])"
    )
    in_a_process(script, tmp_path / "index")
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "index" / "index.db", tmp_path / "copy")
    with Index(tmp_path / "copy", encoder=ColourEncoder()) as copy:
        assert copy.status().passages == 100


def test_a_reader_that_was_in_the_way_of_the_checkpoint_makes_it(tmp_path: Path, index: Index) -> None:
    store = Store(index.folder)
    with store.read() as reader:
        before = reader.counts()
        started = time.monotonic()
        index.add_texts(["red words"])
        assert time.monotonic() - started < 5  # nobody waits for long
        assert reader.counts() == before
        assert (index.folder / "index.db-wal").stat().st_size > 0
    assert told_by_database_alone(index, tmp_path / "copy") == told(index.folder)
    store.close()


def test_the_last_to_close_makes_the_checkpoint_that_a_killed_writer_left(tmp_path: Path, index: Index) -> None:
    index.close()
    killed_while_it_writes(index.folder)
    assert (index.folder / "index.db-wal").stat().st_size > 0
    with Index(index.folder, encoder=ColourEncoder()) as again:
        assert again.search("words of a killed run", kind="text")
    assert (index.folder / "index.db-wal").stat().st_size == 0
    assert told_by_database_alone(index, tmp_path / "copy") == told(index.folder)


def killed_while_it_writes(folder: Path) -> None:
    """A run that was killed when it had written a text."""
    script = (
        "import os, sys; from mmsearch.index import Index; from tests.colours import ColourEncoder\n"
        "from mmsearch.store.metadata import Store; from pathlib import Path\n"
        "from mmsearch.store.records import NewItem\n"
        "encoder = ColourEncoder(); row = encoder.encode_texts(['red'])[0]\n"
        "with Store(Path(sys.argv[1])).write() as writer:\n"
        "    with writer.transaction():\n"
        "        writer.put_items([NewItem('text', row, text='words of a killed run')], None)\n"
        "    os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == -9, done.stderr


def wait_for(happens: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.02)


# Where nothing can be written


@linux_only
@pytest.mark.parametrize("has_shm", [True, False])
def test_a_read_only_folder_with_a_log_is_answered_from_both(index: Index, has_shm: bool) -> None:
    index.close()
    killed_while_it_writes(index.folder)
    if not has_shm:
        (index.folder / "index.db-shm").unlink()
    log = (index.folder / "index.db-wal").read_bytes()
    with read_only(index.folder):
        said = as_ordinary_user(
            "import sys; from mmsearch.index import Index; from tests.colours import ColourEncoder\n"
            "index = Index(sys.argv[1], encoder=ColourEncoder())\n"
            "print(index.status().passages, index.search('words of a killed run', kind='text')[0].text)\n"
            "print(index.status().passages)",
            str(index.folder),
        )
    assert said == "1 words of a killed run\n1\n"
    assert (index.folder / "index.db-wal").read_bytes() == log


@linux_only
def test_a_read_only_disk_with_a_log_is_answered_from_both(tmp_path: Path, folder: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        with Index(disk / "index", encoder=ColourEncoder()) as index:
            index.add(folder)
        killed_while_it_writes(disk / "index")
        (disk / "index" / "index.db-shm").unlink()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with Index(disk / "index", encoder=ColourEncoder()) as index:
            assert index.status().passages == 1
            assert index.search("words of a killed run", kind="text", k=1)[0].text == "words of a killed run"
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


@linux_only
def test_who_may_only_read_sees_what_the_owner_writes_meanwhile(tmp_path: Path, index: Index) -> None:
    index.close()
    for beside in index.folder.glob("index.db-*"):
        beside.unlink()
    script = (
        "import sys; from mmsearch.index import Index; from tests.colours import ColourEncoder\n"
        "index = Index(sys.argv[1], encoder=ColourEncoder())\n"
        "print(index.status().passages, flush=True); input(); print(index.status().passages, flush=True)"
    )
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
    with read_only(index.folder):
        reader = subprocess.Popen(
            [*(drop if os.geteuid() == 0 else []), sys.executable, "-c", script, str(index.folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert reader.stdout is not None
        assert reader.stdout.readline() == "0\n"
    with Index(index.folder, encoder=ColourEncoder()) as owner:
        owner.add_texts(["red words"])
    with read_only(index.folder):
        assert reader.communicate("\n", timeout=30)[0] == "1\n"


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        yield
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


# Backups


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs the sqlite3 command")
def test_a_backup_by_sqlite_while_a_run_writes_is_whole(tmp_path: Path, index: Index) -> None:
    script = (
        "import sys; from mmsearch.index import Index; from tests.colours import ColourEncoder\n"
        "index = Index(sys.argv[1], encoder=ColourEncoder())\n"
        "for n in range(100_000): index.add_texts([f'red {n}', f'green {n}'], wait_s=None)"
    )
    run = subprocess.Popen([sys.executable, "-c", script, str(index.folder)], cwd=ROOT)
    try:
        wait_for(lambda: index.status().passages > 0, seconds=30)
        for number in range(3):
            copy = tmp_path / f"backup{number}"
            copy.mkdir()
            command = ["sqlite3", index.folder / "index.db", ".timeout 10000", f".backup '{copy / 'index.db'}'"]
            subprocess.run(command, check=True, timeout=60)
            with contextlib.closing(sqlite3.connect(copy / "index.db")) as database:
                assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            with Index(copy, encoder=ColourEncoder()) as backup:
                passages = backup.status().passages
                assert passages > 0 and passages % 2 == 0
                assert len(backup.search("red", kind="text", k=100_000)) == passages
    finally:
        run.kill()
        run.wait()


def test_what_a_message_says_of_a_backup_restored_beside_another_log_helps(tmp_path: Path, index: Index) -> None:
    backup = (index.folder / "index.db").read_bytes()
    before = told(index.folder)
    index.add_texts([f"red {number} " * 50 for number in range(300)])
    index.close()
    killed_while_it_writes(index.folder)
    (index.folder / "index.db").write_bytes(backup)
    with (
        pytest.raises(IndexDamagedError, match=r"first delete index\.db-wal and index\.db-shm"),
        Index(index.folder, encoder=ColourEncoder()) as broken,
    ):
        broken.search("red", k=1000)
    (index.folder / "index.db").write_bytes(backup)
    for name in ("index.db-wal", "index.db-shm"):
        (index.folder / name).unlink(missing_ok=True)
    assert told(index.folder) == before


# A folder that goes, or becomes another, while the index is open


def deleted(index: Path) -> None:
    shutil.rmtree(index)


def moved(index: Path) -> None:
    index.rename(index.with_name("elsewhere"))


def replaced(index: Path) -> None:
    index.rename(index.with_name("elsewhere"))
    shutil.copytree(index.with_name("elsewhere"), index)


def emptied(index: Path) -> None:
    (index / "index.db").unlink()


MOVES = [deleted, moved, replaced, emptied]
SAID = {"replaced": "was replaced while it was open"}
WRITING: dict[str, Callable[[Index, Path], object]] = {
    "add": lambda index, folder: index.add(folder),
    "add_images": lambda index, folder: index.add_images([plain("red")]),
    "add_texts": lambda index, folder: index.add_texts(["red words"]),
    "remove": lambda index, folder: index.remove(folder / "green.png"),
    "add_feedback": lambda index, folder: index.add_feedback("red", like=["mm-1"]),
    "train_heads": lambda index, folder: index.train_heads(),
    "use_heads": lambda index, folder: index.use_heads("warm"),
    "remove_heads": lambda index, folder: index.remove_heads("warm"),
}
READING: dict[str, Callable[[Index, Path], object]] = {
    "search": lambda index, folder: index.search("red"),
    "lookup": lambda index, folder: index.lookup(folder / "red.png"),
    "item": lambda index, folder: index.item("mm-1"),
    "encode": lambda index, folder: index.encode("red"),
    "match": lambda index, folder: index.match(folder / "red.png", "red"),
    "classify": lambda index, folder: index.classify(folder / "red.png", ["red", "blue"]),
    "describe": lambda index, folder: index.describe(folder / "red.png"),
    "duplicates": lambda index, folder: index.duplicates(),
    "status": lambda index, folder: index.status(),
    "map": lambda index, folder: index.map(),
    "kept_map": lambda index, folder: index.kept_map(),
    "heads": lambda index, folder: index.heads(),
    "feedback": lambda index, folder: index.feedback(),
    "evaluate": lambda index, folder: index.evaluate(),
}


@pytest.mark.skipif(os.name == "nt", reason="Windows moves no folder that is in use")
@pytest.mark.parametrize("move", MOVES)
def test_an_index_whose_folder_went_says_so_whatever_is_asked(
    index: Index, folder: Path, move: Callable[..., None]
) -> None:
    put_heads(index)
    for name in ("search", "lookup", "status", "map"):  # which keep what they have read
        READING[name](index, folder)
    move(index.folder)
    left = files_below(index.folder)
    for name, act in (WRITING | READING).items():
        with pytest.raises(IndexWriteError, match=SAID.get(move.__name__, "was moved or deleted while it was open")):
            act(index, folder)
            pytest.fail(f"{name} has said nothing")
    assert files_below(index.folder) == left  # nothing is made where the index was


@pytest.mark.skipif(os.name == "nt", reason="Windows moves no folder that is in use")
@pytest.mark.parametrize("move", MOVES)
def test_what_is_written_while_its_folder_goes_is_not_said_to_be_kept(index: Index, move: Callable[..., None]) -> None:
    def texts() -> Iterator[str]:
        yield "red words"

    store = Store(index.folder)
    row = ColourEncoder().encode_texts(["red"])[0]
    with pytest.raises(IndexWriteError, match="while it was open"), store.write() as writer:
        with writer.transaction():
            writer.put_items([NewItem("text", row, text=next(texts()))], None)
        move(index.folder)
    store.close()


def test_an_index_that_was_closed_is_opened_as_what_is_there_now(tmp_path: Path, index: Index) -> None:
    index.close()
    shutil.rmtree(index.folder)
    assert not index.exists
    with Index(index.folder, encoder=ColourEncoder()) as other:
        other.add_texts(["blue words"])
    assert [hit.text for hit in index.search("blue")] == ["blue words"]

    class Other(ColourEncoder):
        name = "other colours"

    index.close()
    shutil.rmtree(index.folder)
    with Index(index.folder, encoder=Other()) as other:
        other.add_texts(["blue words"])
    with pytest.raises(ModelMismatchError):
        index.add_texts(["red words"])


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Links in a stranger's index

# Everything that is written below an index's folder
WRITTEN = [
    "write.lock",
    "write.lock.json",
    "index.db",
    "index.db-wal",
    "index.db-shm",
    "index.db-journal",
    "map.npz",
    "queries.db",
    "queries.db-journal",
    "thumbnails.db",
    "thumbnails.db-wal",
    "thumbnails.db-shm",
    "thumbnails.db-journal",
    "vectors",
]


def super_journal(victim: Path, pages: int) -> bytes:
    """A journal without pages, which tells SQLite to delete a file when it has put them back."""
    magic, name = bytes.fromhex("d9d505f920a163d7"), os.fsencode(victim)
    header = magic + np.array([0, 0, pages, 512, 4096], ">u4").tobytes()
    told = np.array([len(name), sum(name)], ">u4").tobytes()
    return header.ljust(512, b"\0") + np.array([2**30 // 4096 + 1], ">u4").tobytes() + name + told + magic


def put_link(at: Path, victim: Path, how: str) -> None:
    if at.is_dir():
        shutil.rmtree(at)
    at.parent.mkdir(exist_ok=True)
    at.unlink(missing_ok=True)
    if how == "link":
        at.symlink_to(victim)
    elif how == "link to nothing yet":
        at.symlink_to(victim.with_name("new"))
    elif how == "hard link":
        os.link(victim, at)
    elif how == "pipe":
        os.mkfifo(at)
    else:
        pages = at.with_name(at.name.removesuffix("-journal")).stat().st_size // 4096
        at.write_bytes(super_journal(victim, pages))


def use(index: Path, folder: Path) -> None:
    """Everything that writes, as a person would who was given the index; what is refused is said in a sentence."""
    acts = [act for name, act in (WRITING | READING).items() if name in USED]
    with contextlib.suppress(Error), Index(index, encoder=ColourEncoder()) as given:
        for act in acts:
            with contextlib.suppress(Error):
                act(given, folder)
    if index.name.startswith("queries"):
        with contextlib.closing(QueryCache(index)) as cache:
            cache.put("space", {"red": np.ones(3, np.float32)})
        with contextlib.closing(QueryCache(index)) as cache:
            cache.get("space", ["blue"], 3)
    if index.name.startswith("thumbnails"):
        with contextlib.closing(Thumbnails(index)) as thumbnails:
            assert thumbnails.get(str(folder / "red.png"), 16)


USED = ("add", "add_texts", "add_feedback", "use_heads", "search", "map", "status")
LINKS = ("link", "link to nothing yet", "hard link", "pipe", "journal")


@linux_only
@pytest.mark.parametrize("how", LINKS)
def test_nothing_that_an_index_writes_goes_through_a_link(tmp_path: Path, index: Index, folder: Path, how: str) -> None:
    put_heads(index)
    index.close()
    with (
        contextlib.closing(QueryCache(index.folder)) as cache,
        contextlib.closing(Thumbnails(index.folder)) as thumbnails,
    ):
        cache.put("space", {"blue": np.ones(3, np.float32)})
        thumbnails.get(str(folder / "blue.png"), 16)
    names = [name for name in WRITTEN if name.endswith("-journal") == (how == "journal")]
    if how == "hard link":
        names.remove("vectors")  # of a folder there is none
    before = {}
    for name in names:
        given, home = tmp_path / "given" / name, tmp_path / "home" / name
        shutil.copytree(index.folder, given)
        home.mkdir(parents=True)
        victim = home / "thesis"
        if name == "vectors" and how == "link":
            victim.mkdir()
            (victim / "mine.faiss").write_bytes(PRECIOUS)
        elif name.endswith(".db"):  # one that SQLite would take for its own
            with contextlib.closing(sqlite3.connect(victim)) as database:
                database.execute("CREATE TABLE notes (text TEXT)")
        else:
            victim.write_bytes(PRECIOUS)
        before[name] = files_below(home)
        put_link(given / name, victim, how)
    in_a_process(  # since it could wait for ever
        "import sys; from pathlib import Path; from tests.test_index_folder import use\n"
        "for name in sys.argv[3:]: use(Path(sys.argv[1]) / name, Path(sys.argv[2]))",
        tmp_path / "given",
        folder,
        *names,
    )
    assert {name: files_below(tmp_path / "home" / name) for name in names} == before


@linux_only
@pytest.mark.parametrize("name", ["write.lock", "index.db", "index.db-wal", "index.db-shm", "index.db-journal"])
def test_a_link_where_an_index_writes_is_said_by_name(tmp_path: Path, index: Index, name: str) -> None:
    index.close()
    put_link(index.folder / name, tmp_path / "any", "link")
    with pytest.raises(IndexWriteError, match=rf"{name} is a link.* follows none"):
        Index(index.folder, encoder=ColourEncoder()).add_texts(["red"])


def test_the_whole_folder_may_be_a_link(tmp_path: Path, index: Index) -> None:
    (tmp_path / "link").symlink_to(index.folder)
    with Index(tmp_path / "link", encoder=ColourEncoder()) as linked:
        linked.add_texts(["red words"])
    assert index.status().passages == 1


def test_a_journal_that_names_another_file_would_have_sqlite_delete_it(tmp_path: Path) -> None:
    """The danger is real: without the check, SQLite does it."""
    victim = tmp_path / "thesis"
    victim.write_bytes(PRECIOUS)
    with contextlib.closing(sqlite3.connect(tmp_path / "some.db")) as database:
        database.execute("CREATE TABLE notes (text TEXT)")
    (tmp_path / "some.db-journal").write_bytes(super_journal(victim, 2))
    with pytest.raises(IndexWriteError, match="names another file to delete"):
        check_database(tmp_path / "some.db", is_written=False)
    with contextlib.closing(sqlite3.connect(tmp_path / "some.db")) as database:
        assert database.execute("SELECT * FROM notes").fetchall() == []
    assert not victim.exists()


@linux_only
def test_an_index_with_a_backup_of_hard_links_is_searched_and_not_written(index: Index, folder: Path) -> None:
    """As `cp -al` makes one: what is written to one name would be written to the other."""
    before = told(index.folder)
    index.close()
    assert (index.folder / "index.db-shm").exists()
    backup = index.folder.with_name("backup")
    shutil.copytree(index.folder, backup, copy_function=os.link)
    assert told(index.folder) == told(backup) == before
    (folder / "red.png").unlink()
    with Index(index.folder, encoder=ColourEncoder()) as linked, pytest.raises(IndexWriteError, match="cp -r"):
        linked.add(folder)
    copy = index.folder.with_name("copy")
    shutil.copytree(index.folder, copy)
    with Index(copy, encoder=ColourEncoder()) as written:
        assert written.add(folder).removed == 1
    assert told(backup) == before
