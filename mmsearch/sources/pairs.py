"""Pairs of a picture and a text, from wherever people keep them: what training and measurement read.

A caption table (csv, tsv, jsonl, parquet; of the last also with the pictures in it), a webdataset tar or a folder of
them, a folder of pictures with side-cars as img2dataset writes it, or a folder of classes. A tar is read as a stream,
member by member, and nothing of it is written to the disk under its own name, so that this is a name and no path.
"""

import json
import math
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmsearch.errors import SourceError
from mmsearch.facts import IMAGE_SUFFIXES
from mmsearch.sources.folders import ScanOptions, Unread, reason, scan, suffix_of
from mmsearch.sources.splits import Split, split_of
from mmsearch.sources.tables import LINE_BYTES_MAX, PICTURE_BYTES_MAX, BadRow, read_rows
from mmsearch.sources.tars import Read, members
from mmsearch.sources.texts import read_text

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
TARS = (".tar", ".tar.gz", ".tgz")
CAPTIONS_IN_JSON = ("caption", "captions", "text", "description", "title")
MATCHED, UNMATCHED = {"1", "1.0", "true", "yes", "match"}, {"0", "0.0", "false", "no"}


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture and a text that belong together, or are said not to."""

    image: str | bytes  # an absolute path, or the content of a file
    text: str
    where: str  # for a person: "products.csv, row 3"
    match: bool = True
    label: str | None = None  # a class
    weight: float = 1.0
    group: str | None = None  # what must not be on both sides of a split; None: the picture itself
    split: Split | None = None  # where the source says it
    content: str | None = None  # the content hash of the picture, where that is known already


@dataclass(frozen=True)
class PairColumns:
    """The columns of a table, where they are not guessed right."""

    path: str | None = None
    text: str | None = None
    label: str | None = None
    weight: str | None = None
    group: str | None = None
    split: str | None = None


GUESSED = PairColumns()


def read_pairs(source: str | os.PathLike[str], columns: PairColumns = GUESSED) -> Iterator[Pair | BadRow]:
    """The pairs of a table, a tar or a folder, as a stream; what cannot be used is a BadRow and the rest goes on.

    Raises SourceError where the source is not there, or is nothing of this kind.
    """
    path = os.path.abspath(os.fsdecode(source))
    if not os.path.lexists(path):
        raise SourceError(f"{path} is not there. Check the path.")
    if os.path.isdir(path):
        return _of_folder(path)
    if path.lower().endswith(TARS):
        return _of_tar(path)
    if suffix_of(os.path.basename(path)) in TABLES:
        return _of_table(path, columns)
    raise SourceError(f"{path} holds no pairs: name a table ({', '.join(TABLES)}), a webdataset .tar, or a folder.")


def _of_table(path: str, columns: PairColumns) -> Iterator[Pair | BadRow]:
    beside = {what: getattr(columns, what) for what in ("label", "weight", "group", "split")}
    name = os.path.basename(path)
    rows = read_rows(path, path_column=columns.path, text_column=columns.text, beside=beside, pictures=True)
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            said = row.beside.get("split")
            split = None if said is None else split_of(str(said))
        except ValueError as error:  # to leave out the row would hide that others of its kind are read otherwise
            raise SourceError(f"{path}, row {row.row} {error}.") from error
        try:
            about = _about(row.beside)
        except ValueError as error:
            yield BadRow(path, row.row, str(error))
            continue
        for text in row.texts:
            yield Pair(row.image, text, f"{name}, row {row.row}", split=split, **about)


def _about(beside: Mapping[str, Any]) -> dict[str, Any]:
    """Label, weight and group as a Pair has them. Raises ValueError with the reason for those that are none."""
    about: dict[str, Any] = {}
    said = beside.get("label")
    label = "" if said is None else str(said).strip()
    if re.fullmatch(r"[+-]?\d+(\.\d+)?|true|false|yes|no|match", label.lower()):
        if label.lower() not in MATCHED | UNMATCHED:
            raise ValueError(f"has the label {label[:40]!r}; numbers say whether the pair matches, and are 0 or 1")
        about["match"] = label.lower() in MATCHED
    elif label:
        about["label"] = label
    weight = beside.get("weight")
    if weight not in (None, ""):
        try:
            about["weight"] = float(weight)
        except (TypeError, ValueError):
            raise ValueError(f"has the weight {str(weight)[:40]!r}, which is no number") from None
        if not (math.isfinite(about["weight"]) and about["weight"] >= 0):
            raise ValueError(f"has the weight {weight}; weights are numbers of 0 or more")
    if beside.get("group") not in (None, ""):
        about["group"] = str(beside["group"])
    return about


def _of_folder(path: str) -> Iterator[Pair | BadRow]:
    """Tars if there are any; pictures with side-cars; else classes, each a folder with its name."""
    tars = sorted(entry.path for entry in os.scandir(path) if entry.is_file() and entry.name.lower().endswith(TARS))
    if tars:
        for tar in tars:
            try:
                yield from _of_tar(tar)
            except SourceError as error:
                if len(tars) == 1:
                    raise
                yield BadRow(tar, 0, str(error).rstrip("."))
        return
    entries = list(scan(path, ScanOptions()))
    yield from (BadRow(entry.path, 1, entry.reason) for entry in entries if isinstance(entry, Unread))
    pictures = [entry.path for entry in entries if not isinstance(entry, Unread) and entry.kind == "image"]
    captioned, silent = False, list[str]()
    for picture in pictures:
        found = list(_beside(picture))
        yield from found
        captioned |= any(isinstance(pair, Pair) for pair in found)
        if not found:
            silent.append(picture)
    if captioned:
        yield from (BadRow(picture, 0, "has no text beside it") for picture in silent)
        return
    classes = {picture: os.path.relpath(os.path.dirname(picture), path) for picture in pictures}
    if len({*classes.values()} - {"."}) < 2:
        raise SourceError(
            f"{path} holds {len(pictures)} pictures and no text for them: put caption files beside them "
            "(dog.txt beside dog.jpg), or each class in a folder with its name."
        )
    for picture, name in classes.items():
        if name != ".":
            said = " ".join(name.replace(os.sep, " ").replace("_", " ").split())
            yield Pair(picture, said, os.path.relpath(picture, path), label=said)
        else:
            yield BadRow(picture, 0, "lies in no folder of a class")


def _beside(picture: str) -> Iterator[Pair | BadRow]:
    stem = os.path.splitext(picture)[0]
    name = os.path.basename(picture)
    try:
        if os.path.isfile(f"{stem}.txt"):
            if text := " ".join(read_text(f"{stem}.txt").split()):
                yield Pair(picture, text, name)
        elif os.path.isfile(f"{stem}.json"):
            with open(f"{stem}.json", "rb") as file:
                for text in _captions_of_json(file.read(LINE_BYTES_MAX)):
                    yield Pair(picture, text, name)
    except (OSError, SourceError, ValueError) as error:
        yield BadRow(stem, 1, reason(error) if isinstance(error, OSError) else str(error))


@dataclass
class _Sample:
    """The members of a webdataset that share a name: their contents by the suffix."""

    name: str
    contents: dict[str, bytes]
    problem: str | None = None

    def take(self, suffix: str, member: tarfile.TarInfo, read: Read) -> None:
        """Read a member, unless it is too large or the sample has an image already."""
        is_image = f".{suffix}" in IMAGE_SUFFIXES
        if not member.isreg() or member.issparse():
            self.problem = f"{member.name[:200]!r} is {'sparse' if member.isreg() else 'a link, not a file'}"
        elif member.size > (PICTURE_BYTES_MAX if is_image else LINE_BYTES_MAX):
            self.problem = f"has a member of {member.size / 10**6:,.0f} MB"
        elif is_image and any(f".{each}" in IMAGE_SUFFIXES for each in self.contents):
            self.problem = f"has a second image, {member.name[:200]!r}"
        else:
            self.contents[suffix] = read()

    def pairs(self, tar: str, number: int) -> list[Pair] | BadRow:
        """Its image with each of its texts, or why there are none."""
        image = next((data for suffix, data in self.contents.items() if f".{suffix}" in IMAGE_SUFFIXES), None)
        try:
            texts = [
                self.contents[each].decode("utf-8").strip() for each in ("txt", "caption") if each in self.contents
            ]
            if not any(texts) and "json" in self.contents:
                texts = _captions_of_json(self.contents["json"])
        except ValueError:
            return BadRow(tar, number, "has a text that is not UTF-8 or not JSON")
        texts = [text for text in texts if text]
        if image is None or not texts:
            missing = (
                "has no text" if image is not None else "has no picture" if texts else "has no picture and no text"
            )
            return BadRow(tar, number, self.problem or missing)
        return [Pair(image, text, f"{os.path.basename(tar)}, sample {number}") for text in texts]


def _of_tar(path: str) -> Iterator[Pair | BadRow]:
    """A webdataset: members of one sample follow each other and share their name up to the first dot.

    What stands after that dot is the field, as `webdataset` has it. Names with further dots (`22.05.jpg`) are fields
    that mean nothing here beside `22.jpg` and `22.txt`; where there are none of these, they are samples by their name
    up to the last dot.
    """
    key, number = None, 0
    group = _Group("", path, 0)
    try:
        for member, read in members(path):
            folder, name = os.path.split(member.name)
            stem = name.partition(".")[0]
            if not stem or member.isdir():  # hidden, as .DS_Store
                continue
            if (folder, stem) != key:
                yield from group.end()
                key, number = (folder, stem), number + 1
                group = _Group(stem, path, number)
            yield from group.take(name, member, read)
        yield from group.end()
    except SourceError as error:
        yield from (pair for pair in group.end() if isinstance(pair, Pair))
        raise SourceError(f"{path} cannot be read as a tar beyond sample {number}: {error}.") from error


class _Group:
    """The members of a webdataset that share their name up to the first dot."""

    def __init__(self, stem: str, tar: str, number: int) -> None:
        self._tar, self._number = tar, number
        self._plain = _Sample(stem, {})  # one dot
        self._dotted = _Sample(stem, {})  # several; the one at hand
        self._bad: list[BadRow] = []  # of several dots
        self._paired = False

    def take(self, name: str, member: tarfile.TarInfo, read: Read) -> Iterator[Pair]:
        """Read a member, and give the pairs of several dots that are complete before it."""
        before, _, suffix = name.rpartition(".")
        suffix = suffix.lower()
        if not (suffix in _TEXTS or f".{suffix}" in IMAGE_SUFFIXES):
            return
        if before == self._plain.name:
            self._plain.take(suffix, member, read)
            return
        if before != self._dotted.name:
            yield from self._end_dotted()
            self._dotted = _Sample(before, {})
        self._dotted.take(suffix, member, read)

    def end(self) -> Iterator[Pair | BadRow]:
        """The pairs that are left, or what is wrong with them."""
        if not self._number:
            return
        yield from self._end_dotted()
        found = self._plain.pairs(self._tar, self._number)
        if isinstance(found, list):
            yield from found
            if self._plain.problem:
                yield BadRow(self._tar, self._number, self._plain.problem)
        elif self._plain.contents or self._plain.problem or not (self._bad or self._paired):
            yield found
        else:
            yield from self._bad

    def _end_dotted(self) -> Iterator[Pair]:
        if not (self._dotted.contents or self._dotted.problem):
            return
        found = self._dotted.pairs(self._tar, self._number)
        if isinstance(found, list):
            self._paired = True
            yield from found
        else:
            self._bad.append(BadRow(self._tar, self._number, f"{self._dotted.name[:200]!r} {found.reason}"))


_TEXTS = ("txt", "caption", "json", "cls")


def _captions_of_json(data: bytes) -> list[str]:
    """Raises ValueError for what is no JSON, or nested too deeply to be read."""
    try:
        said = json.loads(data)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(said, dict):
        return []
    value = next((said[name] for name in CAPTIONS_IN_JSON if said.get(name)), None)
    found: Sequence[Any] = value if isinstance(value, list) else [value]
    return [" ".join(text.split()) for text in found if isinstance(text, str) and text.strip()]


def classes_of(folder: str | os.PathLike[str]) -> dict[str, str]:
    """picture -> class, of a folder in which each class is a folder with its name. Raises SourceError for no such."""
    path = os.path.abspath(os.fsdecode(folder))
    if not os.path.isdir(path):
        raise SourceError(f"{path} is no folder; name one with a folder for each class.")
    found: dict[str, str] = {}
    for entry in scan(path, ScanOptions()):
        if not isinstance(entry, Unread) and entry.kind == "image":
            first = os.path.relpath(entry.path, path).split(os.sep)[0]
            if os.path.isdir(os.path.join(path, first)):
                found[entry.path] = " ".join(first.replace("_", " ").split())
    if len({*found.values()}) < 2:
        raise SourceError(f"{path} needs two folders with pictures at least, each named as its class.")
    return found
