"""Promises of mmsearch.sources: what a scan finds, how a text is read and cut, what a caption table gives."""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch.errors import Error, MissingRootError, SourceError
from mmsearch.sources import (
    BadRow,
    Caption,
    ScanOptions,
    SourceFile,
    Unread,
    passages,
    read_captions,
    read_text,
    scan,
)

posix_only = pytest.mark.skipif(os.name == "nt", reason="names and files that Windows does not have")


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(root: Path | str, **options: object) -> list[str]:
    """What a scan yields, as "kind path" relative to the root, with the picture of a caption behind an arrow."""
    shown = []
    for source in scan(root, ScanOptions(**options)):  # type: ignore[arg-type]
        assert isinstance(source, SourceFile), source
        owner = f" -> {os.path.relpath(source.caption_of, root)}" if source.caption_of else ""
        shown.append(f"{source.kind} {os.path.relpath(source.path, root)}{owner}".replace(os.sep, "/"))
    return shown


# ---- scan


def test_pictures_and_texts_are_found_in_an_order_that_is_always_the_same(tmp_path: Path) -> None:
    make(tmp_path, "b/2.PNG", "b/1.jpg", "a.md", "z.jpeg", "b/c/x.txt", "skip.docx", "noextension")
    assert found(tmp_path) == ["text a.md", "image z.jpeg", "image b/1.jpg", "image b/2.PNG", "text b/c/x.txt"]
    assert found(tmp_path) == found(tmp_path)


def test_a_scan_tells_size_and_time_without_opening_a_file(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    os.utime(tmp_path / "a.jpg", ns=(5, 1_234_567_890_123_456_700))
    (tmp_path / "a.jpg").chmod(0)
    [source] = scan(tmp_path)
    assert source == SourceFile(str(tmp_path / "a.jpg"), "image", 1, 1_234_567_890_123_456_700)


def test_hidden_files_and_folders_are_left_out_but_a_hidden_root_is_not(tmp_path: Path) -> None:
    make(tmp_path, ".hidden/a.jpg", ".hidden/.cache/b.jpg", ".c.jpg", "._d.jpg")
    assert found(tmp_path) == []
    assert found(tmp_path / ".hidden") == ["image a.jpg"]


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("*.gif", ["a.jpg", "drafts/b.jpg", "x/drafts/c.jpg", "x/drafts/deep/d.jpg"]),
        ("drafts", ["a.jpg", "e.gif"]),
        ("drafts/", ["a.jpg", "e.gif"]),
        ("/drafts", ["a.jpg", "e.gif", "x/drafts/c.jpg", "x/drafts/deep/d.jpg"]),
        ("x/**/d.jpg", ["a.jpg", "e.gif", "drafts/b.jpg", "x/drafts/c.jpg"]),
        ("**/deep", ["a.jpg", "e.gif", "drafts/b.jpg", "x/drafts/c.jpg"]),
        ("?.jpg", ["e.gif"]),
        ("#x", ["a.jpg", "e.gif", "drafts/b.jpg", "x/drafts/c.jpg", "x/drafts/deep/d.jpg"]),
    ],
)
def test_exclude_patterns_mean_what_they_mean_in_a_gitignore(tmp_path: Path, pattern: str, left: list[str]) -> None:
    make(tmp_path, "a.jpg", "e.gif", "drafts/b.jpg", "x/drafts/c.jpg", "x/drafts/deep/d.jpg")
    assert found(tmp_path, exclude=(pattern,)) == [f"image {name}" for name in left]


def test_a_later_pattern_takes_back_an_earlier_one(tmp_path: Path) -> None:
    make(tmp_path, "a.gif", "keep.gif", "#1.gif")
    assert found(tmp_path, exclude=("*.gif", "!keep.gif")) == ["image keep.gif"]
    assert found(tmp_path, exclude=("#*",)) == ["image a.gif", "image keep.gif"]


def test_a_text_beside_a_picture_is_its_caption(tmp_path: Path) -> None:
    make(tmp_path, "dog.jpg", "dog.png", "dog.txt", "cat.JPG", "cat.JPG.txt", "cow.png", "cow.caption", "cow.md")
    assert found(tmp_path) == [
        "image cat.JPG",
        "caption cat.JPG.txt -> cat.JPG",
        "caption cow.caption -> cow.png",
        "text cow.md",
        "image cow.png",
        "image dog.jpg",
        "image dog.png",
        "caption dog.txt -> dog.jpg",
        "caption dog.txt -> dog.png",
    ]


def test_a_text_without_a_picture_is_a_text_and_a_lonely_caption_file_is_nothing(tmp_path: Path) -> None:
    make(tmp_path, "notes.txt", "lonely.caption", "elsewhere/notes.jpg")
    assert found(tmp_path) == ["text notes.txt", "image elsewhere/notes.jpg"]


@pytest.mark.parametrize("name", ["dog.jpg", "dog.txt", "cat.JPG", "cat.JPG.txt", "cat.caption", "notes.txt", "it.md"])
def test_a_file_named_by_itself_is_what_it_is_in_its_folder(tmp_path: Path, name: str) -> None:
    make(tmp_path, "dog.jpg", "dog.png", "dog.txt", "cat.JPG", "cat.JPG.txt", "cat.caption", "notes.txt", "it.md")
    path = str(tmp_path / name)
    in_folder = [source for source in scan(tmp_path) if path in (source.path, getattr(source, "caption_of", None))]
    assert sorted(map(repr, scan(path))) == sorted(map(repr, in_folder))


def test_a_file_of_unknown_kind_named_by_itself_is_an_error_that_says_what_is_read(tmp_path: Path) -> None:
    make(tmp_path, "report.docx")
    with pytest.raises(SourceError, match=r"report\.docx.*\.jpg.*\.png"):
        scan(tmp_path / "report.docx")


def test_a_root_that_is_not_there_is_an_error_at_the_call(tmp_path: Path) -> None:
    with pytest.raises(MissingRootError, match="unplugged"):
        scan(tmp_path / "unplugged")


@posix_only
def test_a_fifo_is_never_a_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "trap.jpg")
    os.mkfifo(tmp_path / "trap.txt")
    make(tmp_path, "a.jpg")
    assert found(tmp_path) == ["image a.jpg"]
    with pytest.raises(SourceError, match="neither a file nor a folder"):
        scan(tmp_path / "trap.jpg")


@posix_only
def test_links_are_followed_only_when_asked(tmp_path: Path) -> None:
    make(tmp_path, "outside/a.jpg", "root/own.jpg")
    (tmp_path / "root/folder").symlink_to(tmp_path / "outside")
    (tmp_path / "root/file.jpg").symlink_to(tmp_path / "outside/a.jpg")
    (tmp_path / "root/broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert found(tmp_path / "root") == ["image own.jpg"]
    assert found(tmp_path / "root", follow_links=True) == ["image file.jpg", "image own.jpg", "image folder/a.jpg"]


@posix_only
def test_loops_of_links_end_and_a_folder_keeps_its_own_path(tmp_path: Path) -> None:
    make(tmp_path, "z/a.jpg")
    (tmp_path / "a-link-to-z").symlink_to("z")
    (tmp_path / "z/up").symlink_to("..")
    (tmp_path / "z/self").symlink_to("self")
    assert [s for s in scan(tmp_path, ScanOptions(follow_links=True)) if isinstance(s, SourceFile)] == list(
        scan(tmp_path)
    )


@posix_only
@pytest.mark.parametrize(
    "name",
    [b"two\nlines.jpg", b'it\'s "quoted".jpg', b"-rf.jpg", "🐕 in 雪.jpg".encode(), b"\xff\xfe bytes.jpg", b" .jpg"],
)
def test_any_name_is_kept_exactly(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    try:
        with open(path, "wb"):
            pass
    except OSError:
        pytest.skip("this file system does not take such a name")
    assert [os.fsencode(source.path) for source in scan(tmp_path)] == [path]
    assert [os.fsencode(source.path) for source in scan(os.fsdecode(path))] == [path]


@posix_only
def test_folders_too_deep_for_a_path_are_reported_and_the_rest_is_found(tmp_path: Path) -> None:
    make(tmp_path, "z/last.jpg")
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):  # 1,500 levels of four characters: beyond PATH_MAX and beyond Python's recursion limit
        os.mkdir("deep", dir_fd=here)
        deeper = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    try:
        sources = list(scan(tmp_path))
    finally:
        _remove_deep(tmp_path)
    assert isinstance(sources[-1], SourceFile) and sources[-1].path.endswith("last.jpg")
    [unread] = sources[:-1]
    assert isinstance(unread, Unread) and unread.is_folder and "too long" in unread.reason


def _remove_deep(root: Path) -> None:
    """pytest's own clearing away of old folders would recurse too deep."""
    top, spare = root / "deep", root / "spare"
    while top.exists():
        if (top / "deep").exists():
            (top / "deep").rename(spare)
        top.rmdir()
        if spare.exists():
            spare.rename(top)


@posix_only
def test_a_folder_without_permission_is_reported() -> None:
    code = """if True:
        import os, sys
        from mmsearch.sources import scan
        if os.geteuid() == 0:  # who may read everything
            os.seteuid(65534)
        print([(source.path, getattr(source, "reason", None)) for source in scan(sys.argv[1])])
    """
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, into which only its owner may look
        make(Path(folder), "closed/a.jpg", "open.jpg")
        Path(folder).chmod(0o755)
        Path(folder, "closed").chmod(0)
        said = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
        Path(folder, "closed").chmod(0o700)
    assert said.stdout.strip() == str([(f"{folder}/open.jpg", None), (f"{folder}/closed", "permission denied")])


def test_a_folder_that_vanishes_during_a_scan_is_unread_not_gone(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "b/2.jpg")
    sources = scan(tmp_path)
    assert isinstance(next(sources), SourceFile)
    (tmp_path / "b/2.jpg").unlink()
    (tmp_path / "b").rmdir()
    [unread] = sources
    assert isinstance(unread, Unread) and unread.path == str(tmp_path / "b") and unread.is_folder


# ---- read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_a_text_is_read_whatever_its_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("Größe: 3 µm\r\nzweite".encode(encoding))
    assert read_text(str(tmp_path / "a.txt")) == "Größe: 3 µm\nzweite"


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", bytes(range(256)) * 4, b"\xff\xfe\x00"])
def test_a_binary_named_txt_is_not_text(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(SourceError, match="is not text"):
        read_text(str(tmp_path / "a.txt"))


def test_an_empty_text_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    assert read_text(str(tmp_path / "a.txt")) == ""
    assert list(passages("", lambda piece: True)) == []


@posix_only
def test_reading_a_fifo_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(SourceError, match="not an ordinary file"):
        read_text(str(tmp_path / "a.txt"))


def test_a_text_above_the_limit_is_refused_with_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * ((64 << 20) + 1))
    with pytest.raises(SourceError, match="64 MB"):
        read_text(str(tmp_path / "a.txt"))


@pytest.mark.parametrize("path", ["missing.txt", ".", "nul\0byte.txt"])
def test_what_cannot_be_read_as_text_has_a_reason(tmp_path: Path, path: str) -> None:
    with pytest.raises(SourceError, match=r"."):
        read_text(str(tmp_path / path))


# ---- passages

WORDS = st.text(st.sampled_from("ab.!? \n\t#-é、。雪🐕'\"\r\u3000"), max_size=300)


@settings(deadline=None, max_examples=300)
@given(text=WORDS, limit=st.integers(1, 40))
def test_every_passage_fits_is_where_it_says_and_no_character_is_lost(text: str, limit: int) -> None:
    pieces = list(passages(text, lambda piece: len(piece) <= limit))
    for piece in pieces:
        assert 0 < len(piece.text) <= limit
        assert text[piece.offset : piece.offset + len(piece.text)] == piece.text
        assert piece.text == piece.text.strip()
        assert piece.line == 1 + text.count("\n", 0, piece.offset)
    assert "".join("".join(piece.text.split()) for piece in pieces) == "".join(text.split())


@settings(deadline=None)
@given(words=st.lists(st.text("abc", min_size=1, max_size=6), max_size=60), limit=st.integers(1, 12))
def test_words_are_not_cut_when_they_fit(words: list[str], limit: int) -> None:
    pieces = list(passages(" ".join(words), lambda piece: len(piece.split()) <= limit))
    assert [word for piece in pieces for word in piece.text.split()] == words
    assert len(pieces) == -(-len(words) // limit)  # as long as they can be


def few_words(limit: int):  # type: ignore[no-untyped-def]
    return lambda piece: len(piece.split()) <= limit


def test_paragraphs_stay_whole_and_are_put_together_as_long_as_they_fit() -> None:
    text = "one two\n\nthree four\n \nfive six seven\n\n\neight"
    assert [(p.text, p.line) for p in passages(text, few_words(4))] == [
        ("one two\n\nthree four", 1),
        ("five six seven\n\n\neight", 5),
    ]


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    text = "It is 3.5 km. He said “go!” Then dr. No left... Why?"
    assert [p.text for p in passages(text, few_words(7))] == ["It is 3.5 km. He said “go!”", "Then dr. No left... Why?"]


def test_a_list_without_full_stops_is_cut_between_lines() -> None:
    assert [p.text for p in passages("- a b\n- c d\n- e f", few_words(6))] == ["- a b\n- c d", "- e f"]


def test_chinese_is_cut_between_its_sentences() -> None:
    pieces = [p.text for p in passages("他很高。她不高\uff01我们去北京。好", lambda piece: len(piece) <= 8)]
    assert pieces == ["他很高。她不高\uff01", "我们去北京。好"]


@pytest.mark.parametrize("heading", ["## A dog", "A dog\n-----", "# A\n\n## dog"])
def test_a_heading_stays_with_what_follows_it(heading: str) -> None:
    text = f"one two three\n\n{heading}\n\nIt barks. It runs."
    assert [p.text for p in passages(text, few_words(8))][1].startswith(heading)
    assert "barks" in [p.text for p in passages(text, few_words(6))][1]


@pytest.mark.parametrize(
    "text",
    [
        "A sentence of a few words. Another one! " * 125_000,
        "word " * 1_000_000,
        "雪" * 2_000_000,
        "." * 5_000_000,
        "\n \n" * 1_600_000 + "end",
        " " * 5_000_000 + "x",
        '."' * 2_500_000,
        "# heading\n\n" * 450_000,
    ],
    ids=["sentences", "words", "no spaces", "full stops", "empty lines", "blanks", "quotes", "headings"],
)
def test_a_text_of_megabytes_takes_seconds_and_asks_little(text: str) -> None:
    asked = 0

    def fits(piece: str) -> bool:
        nonlocal asked
        asked += len(piece)
        return len(piece) <= 300

    started = time.perf_counter()
    count = sum(1 for _ in passages(text, fits))
    assert asked < 12 * len(text) + 10_000
    assert count <= len(text) / 100 + 2
    assert time.perf_counter() - started < 20  # about 1 to 4 here


# ---- read_captions


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


def test_a_csv_gives_captions_with_paths_beside_it(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", 'id,File_Name,Caption\n1,a/dog.jpg,"A dog, ""wet"""\r\n2,/abs/cat.jpg,Two\n')
    assert list(read_captions(table)) == [
        Caption(str(tmp_path / "a/dog.jpg"), 'A dog, "wet"', 2),
        Caption(os.path.normpath("/abs/cat.jpg"), "Two", 3),
    ]


def test_a_spreadsheet_with_a_byte_order_mark_and_semicolons_is_read(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "\ufeffpath;text\ndog.jpg;ein Hund, nass\n")
    assert [c.text for c in read_captions(table) if isinstance(c, Caption)] == ["ein Hund, nass"]


def test_a_quote_in_a_tsv_is_just_a_quote(tmp_path: Path) -> None:
    table = write(tmp_path / "t.tsv", 'caption\timage\n"Hi\ta.jpg\n"He said ""hi"""\tb.jpg\n5" disk\tc.jpg\n')
    assert [c.text for c in read_captions(table) if isinstance(c, Caption)] == ['"Hi', 'He said "hi"', '5" disk']


def test_a_jsonl_gives_several_captions_of_one_picture(tmp_path: Path) -> None:
    rows = [{"image": "a.jpg", "captions": ["one", "two"]}, {"image": "b.jpg", "captions": "three", "more": None}]
    table = write(tmp_path / "t.jsonl", "\n\n".join(map(json.dumps, rows)))
    assert [(Path(c.path).name, c.text, c.row) for c in read_captions(table) if isinstance(c, Caption)] == [
        ("a.jpg", "one", 1),
        ("a.jpg", "two", 1),
        ("b.jpg", "three", 3),
    ]


def test_a_json_list_in_a_csv_is_several_captions_and_brackets_alone_are_text(tmp_path: Path) -> None:
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "text"], ["a.jpg", '["one", "two"]'], ["b.jpg", "[untitled]"]])
    texts = [c.text for c in read_captions(tmp_path / "t.csv") if isinstance(c, Caption)]
    assert texts == ["one", "two", "[untitled]"]


def test_a_parquet_is_read_and_pictures_inside_it_are_no_paths(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"image": [{"bytes": b"x"}] * 3000, "filename": ["a.jpg"] * 3000, "caption": [["x", "y"]] * 3000}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    captions = list(read_captions(tmp_path / "t.parquet"))
    assert len(captions) == 6000
    assert captions[-1] == Caption(str(tmp_path / "a.jpg"), "y", 3000)


def test_columns_can_be_named(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "path,where,text,legend\nx,a.jpg,y,A dog\n")
    [caption] = read_captions(table, path_column="where", text_column="legend")
    assert caption == Caption(str(tmp_path / "a.jpg"), "A dog", 2)
    with pytest.raises(SourceError, match="no column 'nope'; it has 'path', 'where'"):
        list(read_captions(table, path_column="nope"))


@pytest.mark.parametrize(
    ("name", "text"),
    [("t.csv", "a,b\n1,2\n"), ("t.tsv", "a\tb\n1\t2\n"), ("t.jsonl", '{"a": 1, "b": 2}\n'), ("t.csv", "")],
)
def test_a_table_without_the_columns_is_an_error_that_names_those_it_has(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(SourceError, match="'a', 'b'" if text else "no columns"):
        list(read_captions(write(tmp_path / name, text)))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("https://x.org/a.jpg,text", "is an address, not a file"),
        (",text", "has no path"),
        ("a.jpg,", "has no text"),
        ("a.jpg", "has 1 columns where the header has 2"),
        ("a.jpg,too,many", "has 3 columns"),
        ("a.jpg,b\0c", "NUL"),
        ("a\0.jpg,c", "NUL"),
        ("a.jpg," + "x" * 200_000, "field larger"),
    ],
)
def test_a_broken_row_is_reported_with_its_line_and_the_rest_goes_on(tmp_path: Path, row: str, reason: str) -> None:
    table = write(tmp_path / "t.csv", f'path,text\n0.jpg,"two\nlines"\n{row}\n1.jpg,after\n')
    first, bad, last = read_captions(table)
    assert isinstance(first, Caption) and isinstance(last, Caption) and last.text == "after"
    assert isinstance(bad, BadRow) and bad.row == 4 and reason in bad.reason


def test_broken_lines_of_json_are_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    lines = ['{"path": "a.jpg", "text": "x"}', "{oops", "[1]", "[" * 100_000, '{"path": 3, "text": "x"}']
    lines += ['{"path": "\\ud83d.jpg", "text": "x"}', '{"path": "a.jpg", "text": "\\ud83d"}', '{"text": "x"}']
    results = list(read_captions(write(tmp_path / "t.jsonl", "\n".join([*lines, lines[0]]))))
    assert [type(result) for result in results] == [Caption, *[BadRow] * 7, Caption]
    assert [result.row for result in results] == list(range(1, 10))


@posix_only
def test_bytes_that_are_not_utf8_are_right_in_a_path_and_reported_in_a_caption(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path,text\n\xff.jpg,good\nb.jpg,Gr\xfc\xdfe\n")
    good, bad = read_captions(tmp_path / "t.csv")
    assert isinstance(good, Caption) and os.fsencode(good.path).endswith(b"/\xff.jpg")
    assert isinstance(bad, BadRow) and bad.row == 3 and "not UTF-8" in bad.reason


def test_a_table_in_utf16_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("path,text\na.jpg,b\n".encode("utf-16"))
    with pytest.raises(SourceError, match="line 1 is not UTF-8; save the table as UTF-8"):
        list(read_captions(tmp_path / "t.csv"))


def test_an_endless_line_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path,text\n" + b"x" * ((16 << 20) + 1))
    with pytest.raises(SourceError, match="line 2 is longer than 16 MB"):
        list(read_captions(tmp_path / "t.csv"))


@pytest.mark.parametrize("name", ["missing.csv", "folder.csv", "table.xlsx", "broken.parquet"])
def test_a_table_that_cannot_be_read_is_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    make(tmp_path, "table.xlsx", "broken.parquet")
    with pytest.raises(Error, match=name):
        list(read_captions(tmp_path / name))


def test_a_table_is_read_as_a_stream(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "path,text\n" + "a.jpg,A dog in the snow\n" * 20_000)
    reader = read_captions(table)
    next(reader)
    (tmp_path / "t.csv").write_text("")  # what is not yet read is not there any more
    assert sum(1 for _ in reader) < 19_999


def test_scanning_imports_nothing_heavy() -> None:
    heavy = "torch open_clip onnxruntime faiss pyarrow rich sqlite_utils pathspec"
    code = f"import sys, mmsearch.sources; print([name for name in '{heavy}'.split() if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
