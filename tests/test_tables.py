"""Promises about caption tables: every row is read or counted with its reason, whatever stands around it."""

import csv
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch.sources import BadRow, Caption, read_captions
from mmsearch.sources.pairs import Pair, read_pairs

Said = list[tuple[str, str]]  # file name, caption

letters = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
captions = st.text(letters | st.sampled_from("\",;\t\n'[]{}"), min_size=1, max_size=12).filter(
    lambda text: bool(text.strip()) and not text.startswith("[")
)
rows = st.lists(st.tuples(st.integers(0, 999).map("{}.jpg".format), captions), max_size=8)


def read(data: bytes, suffix: str) -> tuple[Said, list[BadRow]]:
    """What a table gives: captions with the names of their images, and the rows that were left out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"t{suffix}")
        path.write_bytes(data)
        found = list(read_captions(path))
    said = [(os.path.basename(one.path), one.text) for one in found if isinstance(one, Caption)]
    return said, [one for one in found if isinstance(one, BadRow)]


def as_csv(rows: Sequence[Sequence[str]], **dialect: object) -> str:
    file = io.StringIO()
    csv.writer(file, **dialect).writerows([("path", "text"), *rows])  # type: ignore[arg-type]
    return file.getvalue()


def stripped(rows: Said) -> Said:
    return [(name, text.strip()) for name, text in rows]


ends = st.sampled_from(("\n", "\r\n"))
quotings = st.sampled_from((csv.QUOTE_ALL, csv.QUOTE_MINIMAL))


@given(rows, st.sampled_from(",;\t"), quotings, ends, st.sampled_from(("utf-8", "utf-8-sig")))
@settings(deadline=None)
def test_a_csv_is_read_as_it_was_written(rows: Said, delimiter: str, quoting: int, end: str, encoding: str) -> None:
    data = as_csv(rows, delimiter=delimiter, quoting=quoting, lineterminator=end).encode(encoding)
    assert read(data, ".csv") == (stripped(rows), [])


# Rows that are wrong, each in its own way, and how many lines they take
WRONG = (
    'x.jpg,"12 inch pizza', '"x.jpg,never closed', 'x.jpg,"', '"', "x.jpg", "x.jpg,a,b", ",text", "x.jpg,",
    'x.jpg,"a" b,c', "https://x.org/a.jpg,text", "x.jpg,nul \0",
)  # fmt: skip
single = st.lists(
    st.tuples(st.integers(0, 999).map("{}.jpg".format), captions.filter(lambda text: not {*text} & {*"\n\r"})),
    max_size=8,
)


@given(single, single, st.sampled_from(WRONG), st.sampled_from((csv.QUOTE_ALL, csv.QUOTE_MINIMAL)))
@settings(deadline=None)
def test_a_wrong_row_of_a_csv_costs_itself_alone(before: Said, after: Said, wrong: str, quoting: int) -> None:
    head = as_csv(before, quoting=quoting, lineterminator="\n")
    tail = as_csv(after, quoting=quoting, lineterminator="\n").split("\n", 1)[1]
    said, bad = read(f"{head}{wrong}\n{tail}".encode(), ".csv")
    assert said == stripped(before + after)
    assert [row.row for row in bad] == [len(before) + 2]


@given(rows, rows, st.integers(1, 4))
@settings(deadline=None)
def test_no_row_after_open_quotes_is_lost(before: Said, after: Said, count: int) -> None:
    head = as_csv(before, lineterminator="\n")
    tail = as_csv(after, lineterminator="\n").split("\n", 1)[1]
    said, bad = read((head + 'x.jpg,"open\n' * count + tail).encode(), ".csv")
    assert said[: len(before)] == stripped(before)
    assert len(bad) >= count
    if not any({*text} & {*"\n\r"} for _, text in after):
        assert said == stripped(before + after) and len(bad) == count
    else:  # what goes on over lines may be taken for the end of what was open, but never without a word
        assert {name for name, _ in after} <= {name for name, _ in said} | {"x.jpg"} or len(bad) > count


@given(single)
@settings(deadline=None)
def test_a_tsv_is_read_line_by_line(rows: Said) -> None:
    rows = [(name, text.replace("\t", " ")) for name, text in rows]
    rows = [(name, text) for name, text in rows if not text.startswith('"') and text.strip()]
    data = "path\ttext\n" + "".join(f"{name}\t{text}\n" for name, text in rows)
    assert read(data.encode(), ".tsv") == (stripped(rows), [])


@given(rows, st.lists(st.sampled_from(({"id": 1}, {"path": "x.jpg"}, {"text": "late"}, {})), max_size=3), st.booleans())
@settings(deadline=None)
def test_the_columns_of_a_jsonl_are_those_of_all_its_rows(
    rows: Said, poor: list[dict[str, object]], first: bool
) -> None:
    rich = [{"text": text, "path": name} for name, text in rows]
    lines = [*poor, *rich] if first else [*rich, *poor]
    if not rich and not ({"path", "text"} <= {key for row in poor for key in row}):
        return  # there are no such columns
    said, bad = read("\n".join(map(json.dumps, lines)).encode(), ".jsonl")
    assert said == stripped(rows) and len(bad) == len(poor)


@given(rows)
@settings(deadline=None, max_examples=40)
def test_a_parquet_is_read_as_it_was_written(rows: Said) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = io.BytesIO()
    columns = {"path": [name for name, _ in rows], "text": [[text, "and more"] for _, text in rows]}
    types = pyarrow.schema([("path", pyarrow.string()), ("text", pyarrow.list_(pyarrow.string()))])
    parquet.write_table(pyarrow.table(columns, types), file)
    said, bad = read(file.getvalue(), ".parquet")
    assert said[::2] == stripped(rows) and not bad


def test_a_quote_that_closes_by_chance_takes_no_row_with_it() -> None:
    table = 'path,text\na.jpg,"12 inch pizza\nb.jpg,good\nc.jpg,a TV of 50"\nd.jpg,good\n'
    said, bad = read(table.encode(), ".csv")
    assert said == [("b.jpg", "good"), ("c.jpg", 'a TV of 50"'), ("d.jpg", "good")]
    assert [(row.row, row.reason) for row in bad] == [(2, "begins a quote that is not closed")]


def test_a_quote_that_does_not_go_round_a_field_is_a_letter() -> None:
    table = 'path,text\na.jpg,"Hi" he said\nb.jpg,5" disk\nc.jpg,say ""hi""\nd.jpg,"""hi"""\n'
    assert [text for _, text in read(table.encode(), ".csv")[0]] == ['"Hi" he said', '5" disk', 'say ""hi""', '"hi"']


def test_cells_that_a_spreadsheet_leaves_out_or_puts_in_are_no_fault() -> None:
    said, bad = read(b"path,text,width\na.jpg,one\nb.jpg,two,9,,\n,,\n\n", ".csv")
    assert said == [("a.jpg", "one"), ("b.jpg", "two")] and not bad


def test_lines_that_end_as_on_old_macs_are_lines() -> None:
    for suffix, comma in ((".csv", ","), (".tsv", "\t")):
        assert read(f"path{comma}text\ra.jpg{comma}one\rb.jpg{comma}two\r".encode(), suffix)[0] == [
            ("a.jpg", "one"),
            ("b.jpg", "two"),
        ]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "mixed"])
def test_a_caption_in_another_encoding_is_counted(encoding: str) -> None:
    other = "utf-8" if encoding == "mixed" else encoding
    said, bad = read(
        b"path,text\na.jpg,plain\nb.jpg,"
        + "größer".encode("latin-1" if encoding == "mixed" else encoding)
        + b"\nc.jpg,"
        + "größer".encode(other)
        + b"\n",
        ".csv",
    )
    assert len(said) + len(bad) == 3 and len(bad) == {"latin-1": 2, "utf-8": 0, "mixed": 1}[encoding]
    assert all(row.reason == "its caption is not UTF-8" for row in bad)


def test_a_text_of_a_parquet_that_is_not_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = pyarrow.array([b"one", b"\xff", b"three"]).view(pyarrow.binary())
    table = pyarrow.table(
        {"path": ["a.jpg"] * 3, "text": pyarrow.Array.from_buffers(pyarrow.string(), 3, texts.buffers())}
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    first, bad, last = read_captions(tmp_path / "t.parquet")
    assert isinstance(first, Caption) and isinstance(last, Caption)
    assert isinstance(bad, BadRow) and (bad.row, bad.reason) == (2, "its caption is not UTF-8")


def test_of_two_columns_of_one_name_the_first_is_read_and_that_is_said(tmp_path: Path) -> None:
    said, bad = read(b"path,text,text\na.jpg,one,two\n", ".csv")
    assert said == [("a.jpg", "one")] and [row.reason for row in bad] == ["names 2 columns 'text'; the first is read"]
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_arrays(
        [pyarrow.array([each]) for each in ("a.jpg", "one", "two")], ["path", "text", "text"]
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    bad_row, caption = read_captions(tmp_path / "t.parquet")
    assert isinstance(caption, Caption) and caption.text == "one" and isinstance(bad_row, BadRow)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "is not JSON: Expecting property name enclosed in double quotes (character 2)"),
        ('{"path": "a.jpg",, }', "is not JSON: Expecting property name enclosed in double quotes (character 18)"),
        ("[" * 100_000, "is JSON that is nested too deeply"),
        ('{"a":' * 100_000, "is JSON that is nested too deeply"),
        (f'{{"text": {"9" * 5000}}}', "has a number of more than 4,300 digits"),
        ("[]", "is not a JSON object"),
    ],
    ids=["cut short", "comma", "lists", "objects", "digits", "list"],
)
def test_what_is_wrong_with_a_line_of_json_is_said_in_plain_words(line: str, reason: str) -> None:
    said, bad = read(f'{{"path": "a.jpg", "text": "a"}}\n{line}\n'.encode(), ".jsonl")
    assert said == [("a.jpg", "a")]
    assert [(row.row, row.reason) for row in bad] == [(2, reason)]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_table_without_rows_has_none(suffix: str) -> None:
    data = {".csv": b"path,text\n", ".tsv": b"path\ttext", ".jsonl": b"\n \n"}.get(suffix)
    if data is None:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        file = io.BytesIO()
        parquet.write_table(
            pyarrow.table({"path": pyarrow.array([], "string"), "text": pyarrow.array([], "string")}), file
        )
        data = file.getvalue()
    assert read(data, suffix) == ([], [])


def test_open_quotes_cost_no_more_than_lines() -> None:
    started = time.process_time()
    for line in ('a.jpg,"12 inch\n', 'a",b,"c\n', '"""\n', 'a.jpg,"\n', ',""",\n'):
        said, bad = read(("path,text\n" + line * 20_000).encode(), ".csv")
        assert len(said) + len(bad) > 9_000
    assert time.process_time() - started < 30  # about 2 here


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.skipif(sys.platform != "linux", reason="reads what it took from /proc")
def test_a_million_rows_take_seconds_and_little_memory(tmp_path: Path, suffix: str) -> None:
    from tests.test_hostile_sources import READ, measured

    table = tmp_path / f"t{suffix}"
    rows = ((f"images/{each:07}.jpg", f"a caption, of some words, number {each}") for each in range(1_000_000))
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        paths, texts = zip(*rows, strict=True)
        parquet.write_table(pyarrow.table({"path": paths, "text": texts}), table)
    else:
        with table.open("w", newline="") as file:
            if suffix == ".jsonl":
                file.writelines(json.dumps({"path": path, "text": text}) + "\n" for path, text in rows)
            else:
                delimiter = "," if suffix == ".csv" else "\t"
                csv.writer(file, delimiter=delimiter).writerows(chain([("path", "text")], rows))
    quiet = READ.replace("import read_pairs", "import Pair, read_pairs")
    quiet = quiet.replace("print(type", "type(pair) is Pair or print(type")
    said, seconds, memory = measured(table, quiet)
    assert not said.strip()
    assert seconds < 120 and memory < 400 << 20  # about 7 s and 30 to 170 MB here


# ---- webdatasets

IMAGE = b"GIF89a"  # read later


def tar(tmp_path: Path, *names: str) -> list[Pair | BadRow]:
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name in names:
            member = tarfile.TarInfo(name)
            data = IMAGE if name.endswith(("jpg", "png")) else name.encode()
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return list(read_pairs(tmp_path / "a.tar"))


@pytest.mark.parametrize(
    ("names", "texts", "reasons"),
    [
        (["22.05.jpg", "22.05.txt"], ["22.05.txt"], []),
        (["22.05.jpg", "22.05.txt", "22.06.jpg", "22.06.txt"], ["22.05.txt", "22.06.txt"], []),
        (["a/22.05.jpg", "a/22.05.txt", "b/22.05.txt"], ["a/22.05.txt"], ["'22.05' has no picture"]),
        (["22.05.jpg", "22.06.jpg", "22.06.txt"], ["22.06.txt"], ["'22.05' has no text"]),
        (["22.jpg", "22.seg.png", "22.txt"], ["22.txt"], []),  # a field of the sample, as webdataset has it
        (["22.jpg", "22.en.txt"], [], ["has no text"]),
        (["22.jpg", "22.png", "22.txt"], ["22.txt"], ["has a second image, '22.png'"]),
        (["22.npy", "23.jpg", "23.txt"], ["23.txt"], ["has no picture and no text"]),
        (["README", "._22.jpg", ".DS_Store", "22.JPG", "22.TXT"], ["22.TXT"], ["has no picture and no text"]),
        (["v1.0/22.jpg", "v1.0/22.txt"], ["v1.0/22.txt"], []),
    ],
)
def test_a_sample_is_read_or_counted(tmp_path: Path, names: list[str], texts: list[str], reasons: list[str]) -> None:
    found = tar(tmp_path, *names)
    assert [one.text for one in found if isinstance(one, Pair)] == texts
    assert [one.reason for one in found if isinstance(one, BadRow)] == reasons


def test_an_image_without_a_text_beside_captioned_ones_is_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(IMAGE)
    (tmp_path / "a.txt").write_text("one")
    pair, bad = read_pairs(tmp_path)
    assert isinstance(pair, Pair) and isinstance(bad, BadRow) and bad.reason == "has no text beside it"
