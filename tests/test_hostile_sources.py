"""Promises about tables and tars that were made to do harm: refused at once with a sentence, in bounded memory."""

import gzip
import io
import struct
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from mmsearch.errors import SourceError
from mmsearch.index import Index
from mmsearch.sources import passages
from mmsearch.sources.pairs import Pair, read_pairs
from mmsearch.sources.tables import BadRow, read_captions
from mmsearch.sources.texts import read_beginning
from tests.colours import plain

SECONDS_MAX = 10  # on a machine that has much else to do; about 0.1 to 1 here
MEMORY_MAX = 500 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads what it took from /proc")


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 512)


def pax(records: bytes) -> bytes:
    return header("x", len(records), tarfile.XHDTYPE) + padded(records)


def png() -> bytes:
    file = io.BytesIO()
    plain("red").save(file, "PNG")
    return file.getvalue()


def good(name: str = "a") -> bytes:
    image = png()
    return header(f"{name}.png", len(image)) + padded(image) + header(f"{name}.txt", 3) + padded(b"red")


ZEROS = gzip.compress(b"\0" * (10 << 20))  # several one after the other are a gzip again
TARS: dict[str, Callable[[], bytes]] = {
    "claim": lambda: header("a.jpg", 1 << 60) + b"\0" * 3,
    "claim after a good one": lambda: good() + header("b.jpg", 1 << 60),
    "claim of a text": lambda: good() + header("b.txt", 1 << 60),
    "claim of what is not read": lambda: good() + header("b.npy", 1 << 60),
    "below zero": lambda: header("a.npy", -512) * 4,
    "cut off": lambda: header("a.jpg", 100_000) + b"\0" * 1000,
    "long name": lambda: header("x", 1 << 40, tarfile.GNUTYPE_LONGNAME) + b"\0" * 2000,
    "pax": lambda: header("x", 1 << 40, tarfile.XHDTYPE) + b"\0" * 2000,
    "long name, packed": lambda: gzip.compress(header("x", 300 << 20, tarfile.GNUTYPE_LONGNAME)) + 30 * ZEROS,
    "pax, packed": lambda: gzip.compress(header("x", 300 << 20, tarfile.XHDTYPE)) + 30 * ZEROS,
    "pax after pax": lambda: gzip.compress(pax(b"12 a=bcdefg\n") * 100_000, 1),
    "pax size below zero": lambda: pax(b"14 size=-1024\n") + header("a.npy", 0),
    "global headers": lambda: gzip.compress(
        b"".join(header("x", 15, tarfile.XGLTYPE) + padded(b"15 k%06d=v\n\n" % each) for each in range(50_000)), 1
    ),
    "sparse map without an end": lambda: (
        pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n26 GNU.sparse.name=a.jpg\n\n")
        + header("a.jpg", 512)
        + b"9" * 512
    ),
    "bomb": lambda: gzip.compress(header("a.npy", 300 << 20)) + 30 * ZEROS,
    "many images": lambda: b"".join(
        gzip.compress(header(f"a.{kind}", 50 << 20)) + 5 * ZEROS for kind in ("jpg", "png", "webp")
    ),
    "damaged header": lambda: good() + header("b.npy", 0).replace(b"b.npy", b"c.npy") + good("c"),
    "no tar": lambda: b"hello" * 1000,
    "no gzip": lambda: b"\x1f\x8b\x08\0\0\0\0\0\0\3" + b"x" * 1000,
}


AFTER_A_GOOD_ONE = ("claim after a good one", "claim of a text", "claim of what is not read", "damaged header")


def measured(path: Path, code: str) -> tuple[str, float, int]:
    """What a program prints that reads a source, the seconds, and the bytes that it took."""
    started = time.monotonic()
    made = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr[-2000:]
    said, _, memory = made.stdout.rpartition("\n@")
    return said, time.monotonic() - started, int(memory) << 10


READ = """
import sys
from mmsearch.errors import Error
from mmsearch.sources.pairs import read_pairs
try:
    for pair in read_pairs(sys.argv[1]):
        print(type(pair).__name__, getattr(pair, "reason", ""))
except Error as error:
    print("Error", error)
most = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]  # ru_maxrss counts the parent's too
print("\\n@", most[0].split()[1], sep="")
"""


@pytest.mark.parametrize("name", TARS)
def test_a_hostile_tar_is_refused_at_once_with_a_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(TARS[name]())
    said, seconds, memory = measured(path, READ)
    assert "Error" in said and "cannot be read as a tar beyond sample" in said
    assert seconds < SECONDS_MAX and memory < MEMORY_MAX
    assert ("Pair" in said) == (
        name in ("claim after a good one", "claim of a text", "claim of what is not read", "damaged header")
    )


def test_links_and_sparse_members_are_counted(tmp_path: Path) -> None:
    link = tarfile.TarInfo("b.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    sparse = bytearray(header("c.jpg", 512, tarfile.GNUTYPE_SPARSE))
    sparse[386:410] = b"00000000000\x0000000001000\0"[:24]
    sparse[483:495] = b"00000001000\0"
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    (tmp_path / "a.tar").write_bytes(good() + link.tobuf() + bytes(sparse) + b"\0" * 512 + b"\0" * 1024)
    first, *others = read_pairs(tmp_path / "a.tar")
    assert isinstance(first, Pair)
    assert [getattr(other, "reason", None) for other in others] == [
        "'b.jpg' is a link, not a file",
        "'c.jpg' is sparse",
    ]


def test_a_broken_tar_of_several_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(TARS["claim"]())
    (tmp_path / "b.tar").write_bytes(good() + b"\0" * 1024)
    bad, pair = read_pairs(tmp_path)
    assert isinstance(pair, Pair) and isinstance(bad, BadRow) and "cannot be read as a tar" in bad.reason


@pytest.mark.parametrize("data", ["[" * 100_000, '{"caption": ' * 100_000, "9" * 100_000, '"' * 7, "\ud83d"])
def test_hostile_json_is_counted_wherever_it_lies(tmp_path: Path, data: str) -> None:
    said = data.encode("utf-8", "surrogatepass")
    image = png()
    member = header("b.png", len(image)) + padded(image) + header("b.json", len(said)) + padded(said)
    (tmp_path / "a.tar").write_bytes(member + good() + b"\0" * 1024)
    bad, pair = read_pairs(tmp_path / "a.tar")
    assert isinstance(bad, BadRow) and isinstance(pair, Pair)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").write_bytes(image)
    (folder / "a.json").write_bytes(said)
    (folder / "b.png").write_bytes(image)
    (folder / "b.txt").write_text("red")
    bad, pair = read_pairs(folder)
    assert isinstance(bad, BadRow) and isinstance(pair, Pair)
    (tmp_path / "a.jsonl").write_bytes(b'{"path": "a.png", "text": "red"}\n' + said + b"\n")
    pair, bad = read_pairs(tmp_path / "a.jsonl")
    assert isinstance(bad, BadRow) and isinstance(pair, Pair)


# ---- parquet

PARQUETS = ("texts", "texts as a dictionary", "one list", "shared beginnings", "images", "nothing a billion times")


def write_parquet(name: str, path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    count = 900_000 if name != "images" else 3000
    numbers = pyarrow.array([0] * count, pyarrow.int32())

    def equal(value: str | bytes) -> pyarrow.DictionaryArray:
        return pyarrow.DictionaryArray.from_arrays(numbers, pyarrow.array([value]))

    columns = {"path": equal("a.jpg"), "text": equal("x" * 100_000)}
    options = {"compression": "zstd", "store_schema": name == "texts as a dictionary"}
    if name == "one list":
        columns = {"path": ["a.jpg"], "text": pyarrow.ListArray.from_arrays([0, count], equal("x" * 100_000))}
    elif name == "images":
        columns = {"image": equal(b"\0" * 8_000_000), "text": equal("x")}
    elif name == "nothing a billion times":
        columns = {
            "path": pyarrow.nulls(30_000_000, pyarrow.string()),
            "text": pyarrow.nulls(30_000_000, pyarrow.string()),
        }
    elif name == "shared beginnings":
        columns = {"path": ["a.jpg"] * 1500, "text": ["x" * 100_000] * 1500}
        options |= {"use_dictionary": False, "column_encoding": {"path": "PLAIN", "text": "DELTA_BYTE_ARRAY"}}
    parquet.write_table(pyarrow.table(columns), path, **options)


@pytest.mark.parametrize("name", PARQUETS)
def test_a_parquet_that_stands_for_gigabytes_is_refused_at_once(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    write_parquet(name, tmp_path / "a.parquet")
    said, seconds, memory = measured(tmp_path / "a.parquet", READ)
    assert "Error" in said and "a.parquet cannot be read as parquet" in said
    assert seconds < SECONDS_MAX and memory < MEMORY_MAX


@pytest.mark.parametrize("cut", [10, 200, -1, -9])
def test_a_parquet_with_a_wrong_footer_is_a_sentence(tmp_path: Path, cut: int) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"path": ["a.jpg"] * 99, "text": ["red"] * 99}), tmp_path / "a.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[-8:-4] = struct.pack("<I", len(data) - 12 + cut if cut > 0 else 1 << 31) if cut < 100 else data[-8:-4]
    (tmp_path / "a.parquet").write_bytes(data[:cut] if cut < 0 or cut > 100 else data)
    with pytest.raises(SourceError, match=r"a\.parquet cannot be read as parquet: [^\n]{1,250}\.$"):
        list(read_captions(tmp_path / "a.parquet"))


def test_damaged_parquets_are_a_sentence_or_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import random

    from pyarrow import parquet

    columns = {"path": ["a.jpg"] * 50, "text": [f"red {each}" for each in range(50)], "split": ["train"] * 50}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    draw = random.Random(0)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.choice((1, 1, 3))):
            data[draw.randrange(4, len(data))] = draw.randrange(256)
        (tmp_path / "b.parquet").write_bytes(data)
        try:
            for pair in read_pairs(tmp_path / "b.parquet"):
                assert isinstance(pair, Pair | BadRow)
        except SourceError as error:
            assert len(str(error)) < 600


# ---- texts

MEGABYTE = {
    "full stops": ".", "lines of full stops": ".\n", "quotes": '."', "blanks": " ", "line ends": "\n",
    "one letter": "a", "no blanks": "snow", "Chinese": "\u96ea",
    "marks": "\u0301", "letters with marks": "e\u0301", "a family": "\U0001f469\u200d\U0001f467",
}  # fmt: skip


@pytest.fixture(scope="module")
def byte_pairs() -> Tokenizer:
    """As CLIP's: byte-level, so that a word without an end is as many tokens as it has letters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["snow on a hill ...", "aaaa aa snowsnow"], trainer)
    return tokenizer


@pytest.mark.parametrize("name", MEGABYTE)
def test_a_text_is_cut_in_time_that_grows_with_its_size(byte_pairs: Tokenizer, name: str) -> None:
    part = MEGABYTE[name]
    text = part * (1_000_000 // len(part.encode()))
    started = time.process_time()
    pieces = list(passages(text, lambda piece: len(byte_pairs.encode(piece).ids) <= 77))
    assert time.process_time() - started < 30  # about 0 to 2 here
    assert "".join("".join(piece.text.split()) for piece in pieces) == "".join(text.split())


def test_a_megabyte_of_full_stops_is_indexed_in_seconds(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(".\n" * 500_000)
    started = time.process_time()
    with Index(tmp_path / "index", model="lite") as index:
        report = index.add(tmp_path / "a.txt")
        assert index.status().passages > 1000
    assert not report.skipped
    assert time.process_time() - started < 60  # about 4 here


@pytest.mark.slow
def test_of_a_text_of_100_mb_the_beginning_is_read_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One sentence of some words, and one more.\n" * 2_500_000)
    with Index(tmp_path / "index", model="lite") as index:
        report = index.add(tmp_path / "a.txt")
        assert index.status().passages == 10_000
    [said] = report.skipped
    assert "is read up to line" in said.reason and "10,000 passages and 64 MB" in said.reason
    text, is_whole = read_beginning(str(tmp_path / "a.txt"))
    assert not is_whole and len(text) == 64 << 20


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_character_that_the_limit_cuts_is_left_out(tmp_path: Path, encoding: str) -> None:
    data = ("x" + "\u00e9" * (33 << 20)).encode(encoding)
    (tmp_path / "a.txt").write_bytes(data)
    text, is_whole = read_beginning(str(tmp_path / "a.txt"))
    assert not is_whole and {*text} == {"x", "\u00e9"}
