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
from mmsearch.sources.tables import PICTURE_BYTES_MAX, BadRow, read_rows
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
    split: str | None = None  # "train" or "test", where the source says it
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
            about = _about(row.beside)
        except ValueError as error:
            yield BadRow(path, row.row, str(error))
            continue
        for text in row.texts:
            yield Pair(row.image, text, f"{name}, row {row.row}", **about)


def _about(beside: Mapping[str, Any]) -> dict[str, Any]:
    """Label, weight, group and split as a Pair has them. Raises ValueError with the reason for those that are none."""
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
    for what in ("group", "split"):
        if beside.get(what) not in (None, ""):
            about[what] = str(beside[what])
    return about


def _of_folder(path: str) -> Iterator[Pair | BadRow]:
    """Tars if there are any; pictures with side-cars; else classes, each a folder with its name."""
    tars = sorted(entry.path for entry in os.scandir(path) if entry.is_file() and entry.name.lower().endswith(TARS))
    if tars:
        for tar in tars:
            yield from _of_tar(tar)
        return
    entries = list(scan(path, ScanOptions()))
    yield from (BadRow(entry.path, 1, entry.reason) for entry in entries if isinstance(entry, Unread))
    pictures = [entry.path for entry in entries if not isinstance(entry, Unread) and entry.kind == "image"]
    captioned = 0
    for picture in pictures:
        for pair in _beside(picture):
            captioned += isinstance(pair, Pair)
            yield pair
    if captioned:
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


def _beside(picture: str) -> Iterator[Pair | BadRow]:
    stem = os.path.splitext(picture)[0]
    name = os.path.basename(picture)
    try:
        if os.path.isfile(f"{stem}.txt"):
            if text := " ".join(read_text(f"{stem}.txt").split()):
                yield Pair(picture, text, name)
        elif os.path.isfile(f"{stem}.json"):
            with open(f"{stem}.json", "rb") as file:
                for text in _captions_of_json(file.read(PICTURE_BYTES_MAX)):
                    yield Pair(picture, text, name)
    except (OSError, SourceError, ValueError) as error:
        yield BadRow(stem, 1, reason(error) if isinstance(error, OSError) else str(error))


def _of_tar(path: str) -> Iterator[Pair | BadRow]:
    """A webdataset: members of one sample follow each other and share their name up to the first dot."""
    sample: dict[str, bytes] = {}
    key, number = None, 0
    try:
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                if not member.isfile():  # a link leads somewhere, a device is one
                    continue
                folder, name = os.path.split(member.name)
                stem, _, suffix = name.partition(".")
                if not stem:
                    continue
                if (folder, stem) != key:
                    yield from _sample(path, number, sample)
                    key, sample, number = (folder, stem), {}, number + 1
                if not _is_wanted(suffix):
                    continue
                if member.size > PICTURE_BYTES_MAX:
                    yield BadRow(path, number, f"has a member of {member.size // 10**6} MB")
                    continue
                opened = tar.extractfile(member)
                if opened is not None:
                    sample[suffix.lower()] = opened.read()
            yield from _sample(path, number, sample)
    except (tarfile.TarError, EOFError, OSError) as error:
        said = reason(error) if isinstance(error, OSError) and error.strerror else str(error)
        raise SourceError(f"{path} cannot be read as a tar beyond sample {number}: {said}.") from error


def _is_wanted(suffix: str) -> bool:
    last = suffix.lower()
    return last in ("txt", "caption", "json", "cls") or f".{last}" in IMAGE_SUFFIXES


def _sample(path: str, number: int, sample: Mapping[str, bytes]) -> Iterator[Pair | BadRow]:
    if not sample:
        return
    image = next((data for suffix, data in sample.items() if f".{suffix}" in IMAGE_SUFFIXES), None)
    texts: list[str] = []
    try:
        texts = [sample[suffix].decode("utf-8").strip() for suffix in ("txt", "caption") if suffix in sample]
        if not any(texts) and "json" in sample:
            texts = _captions_of_json(sample["json"])
    except ValueError:
        yield BadRow(path, number, "has a text that is not UTF-8 or not JSON")
        return
    texts = [text for text in texts if text]
    if image is None or not texts:
        yield BadRow(path, number, "has no text" if image is not None else "has no picture")
        return
    for text in texts:
        yield Pair(image, text, f"{os.path.basename(path)}, sample {number}")


def _captions_of_json(data: bytes) -> list[str]:
    said = json.loads(data)
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
