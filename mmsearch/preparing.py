"""Pairs made fit to learn from: cleaned, normalised, split, with a manifest and a page that say what was done.

Nothing of the user's is changed: what comes out is a table of its own. The same pairs and settings give the same files
to the byte.
"""

import csv
import hashlib
import io
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmsearch import duplicates, media
from mmsearch.embedding import fits
from mmsearch.encoders.base import Encoder, FloatArray
from mmsearch.errors import MediaError, TrainingError, UsageError
from mmsearch.hashing import hashed
from mmsearch.plots import write as write_files
from mmsearch.sources.pairs import Pair
from mmsearch.sources.splits import held_out, is_held_out, point_of
from mmsearch.sources.tables import BadRow
from mmsearch.store.metadata import Store
from mmsearch.training import Gathered, Joined, Keep, gather

ALIKE = 0.985  # cosine of two pictures that are nearly the same; re-encoded and resized ones of `lite` have more
ROWS_AT_ONCE = 1024
PICTURES = "pictures"  # the folder for those that lay in a tar or a table
WORDS_MOST = 200  # no text tower reads more
TOLD_OFTEN = 0.2  # of all pictures; a caption of so many tells none from another

# What stands where a caption should: names of files, words of websites, nothing
_BOILERPLATE = re.compile(
    r"(img|image|dsc|dscn|p|pict|photo|picture|untitled|unnamed|screenshot|scan|file|copy|default)?[\s_.-]*\d*"
    r"(\.(jpe?g|png|gif|webp|tiff?|bmp))?"
    r"|n/?a|none|null|nan|undefined|no (caption|title|description|image)( available)?|image not (available|found)"
    r"|click( here)?( to (enlarge|view|zoom))?|(https?://|www\.)\S+|all rights reserved\.?|\W*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class PrepareOptions:
    """How pairs are cleaned and split. held_out: share of groups for testing. lower, accents: texts without them."""

    held_out: float = 0.1
    lower: bool = False
    strip_accents: bool = False
    alike: float = ALIKE
    words_most: int = WORDS_MOST
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for what makes no sense."""
        if not 0 <= self.held_out < 1:
            raise UsageError(f"held_out is a share from 0 to below 1, not {self.held_out}.")
        if not 0.5 <= self.alike <= 1:
            raise UsageError(f"alike is a cosine from 0.5 to 1, not {self.alike}.")
        if self.words_most < 1:
            raise UsageError(f"words_most is 1 or more, not {self.words_most}.")


@dataclass(frozen=True)
class Kept:
    """A pair as it is written."""

    path: str
    caption: str
    split: str
    group: str
    match: bool


@dataclass(frozen=True)
class Prepared:
    """What is kept, and what was left out with its reason."""

    pairs: tuple[Kept, ...]
    left_out: tuple[tuple[str, str], ...]  # where, reason
    changed: int  # captions whose white space or code points were put in order
    cut: int  # captions that are longer, in its own tokens, than the text tower reads
    alike: tuple[tuple[str, str], ...]  # pictures that are nearly the same, and so stay on one side
    often: tuple[tuple[str, int], ...]  # captions that tell few pictures apart, and of how many
    options: PrepareOptions
    into: str | None = None  # the folder for which it is; pictures below it are named from there

    @property
    def reasons(self) -> dict[str, int]:
        """How often each reason was one."""
        return dict(Counter(reason for _, reason in self.left_out).most_common())

    @property
    def counts(self) -> dict[str, int]:
        """Pairs, pictures and groups, by split."""
        counts = {"pairs": len(self.pairs), "pictures": len({pair.path for pair in self.pairs})}
        for name in ("train", "test"):
            part = [pair for pair in self.pairs if pair.split == name]
            counts |= {f"{name} pairs": len(part), f"{name} pictures": len({pair.path for pair in part})}
        return counts | {"groups": len({pair.group for pair in self.pairs}), "left out": len(self.left_out)}

    def table(self) -> str:
        """The pairs as csv."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "caption", "match", "split", "group"))
        writer.writerows(
            (self._named(pair.path), pair.caption, int(pair.match), pair.split, pair.group) for pair in self.pairs
        )
        return file.getvalue()

    def _named(self, path: str) -> str:
        if self.into is None or not path.startswith(os.path.join(self.into, PICTURES, "")):
            return path
        return f"{PICTURES}/{os.path.basename(path)}"

    def manifest(self) -> str:
        """Settings, counts and the hash of the table, as JSON."""
        said = {
            "options": asdict(self.options),
            "counts": self.counts,
            "reasons": self.reasons,
            "captions put in order": self.changed,
            "captions longer than the model reads": self.cut,
            "nearly the same pictures": len(self.alike),
            "sha256": hashlib.sha256(self.table().encode("utf-8", "surrogateescape")).hexdigest(),
        }
        return json.dumps(said, indent=2) + "\n"


def prepare(
    pairs: Iterable[Pair | BadRow],
    encoder: Callable[[], Encoder],
    options: PrepareOptions,
    store: Store | None = None,
    keep: Keep = lambda kind, rows: None,
    into: str | os.PathLike[str] | None = None,
) -> Prepared:
    """Clean, normalise and split pairs. store, keep: of an index that features are read from and kept in.

    into: the folder that `write` gets then; pictures that lie in a tar or a table are put there as files of their own,
    named by their content. Raises TrainingError where nothing is left, Error where such a file cannot be written.
    """
    folder = None if into is None else os.path.abspath(os.fsdecode(into))
    left_out: list[tuple[str, str]] = []
    good: list[Pair] = []
    changed = 0
    for pair in pairs:
        if isinstance(pair, BadRow):
            left_out.append((f"{os.path.basename(pair.table)}, row {pair.row}", pair.reason))
            continue
        text = normalised(pair.text, options)
        changed += text != pair.text
        if reason := _text_problem(text, options):
            left_out.append((pair.where, reason))
        elif isinstance(pair.image, bytes) and folder is not None:
            try:
                good.append(replace(pair, text=text, image=_unpacked(pair.image, folder)))
            except MediaError as error:
                left_out.append((pair.where, f"the picture {error}"))
        else:
            good.append(replace(pair, text=text))
    if not good and left_out:
        where, why = left_out[0]
        raise TrainingError(f"No pair of a picture and a text can be used; the first: {where}: {why}.")
    gathered = gather(store, encoder, good, keep)
    left_out += [(row.table, row.reason) for row in gathered.skipped]
    alike = _alike(gathered, options.alike)
    kept, leaks = _split(gathered, alike, options)
    left_out += leaks
    repeated = len(good) - len(gathered.skipped) - len(gathered.matched) - len(gathered.unmatched)
    left_out += [("", "says what another row says of the same picture")] * max(0, repeated)
    often = Counter(pair.caption for pair in kept)
    most = TOLD_OFTEN * len(gathered.pictures)
    whole = fits(encoder())
    return Prepared(
        tuple(kept),
        tuple(left_out),
        changed,
        sum(not whole(text) for text in gathered.said),
        tuple((gathered.names[one], gathered.names[other]) for one, other in alike),
        tuple((text, count) for text, count in often.most_common() if count > max(most, 1)),
        options,
        folder,
    )


def _unpacked(data: bytes, folder: str) -> str:
    """The path of a file with this content, which is made. Raises MediaError for what is no picture, and Error."""
    suffix = media.sniff(io.BytesIO(data)).lower()
    name = f"{hashed([data])}.{suffix}"
    path = os.path.join(folder, PICTURES, name)
    if not os.path.exists(path):
        write_files(os.path.join(folder, PICTURES), {name: data})
    return path


def normalised(text: str, options: PrepareOptions) -> str:
    """Unicode NFC and single blanks; lower case and no accents only where that was asked for."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    if options.strip_accents:
        apart = unicodedata.normalize("NFD", text)
        text = unicodedata.normalize("NFC", "".join(each for each in apart if not unicodedata.combining(each)))
    return text.lower() if options.lower else text


def _text_problem(text: str, options: PrepareOptions) -> str | None:
    if not any(each.isalnum() for each in text):
        return "its caption is empty"
    if _BOILERPLATE.fullmatch(text):
        return "its caption is boilerplate"
    if len(text.split()) > options.words_most:
        return f"its caption has more than {options.words_most} words"
    return None


def _alike(gathered: Gathered, least: float) -> list[tuple[int, int]]:
    """Places of pictures that are nearly the same, each with the first that it is like.

    By their vectors or, where these are at least near, by their pixels: a cut or a grey version may lie further away.
    """
    paths = [name if os.path.isabs(name) else None for name in gathered.names]
    vectors = gathered.pictures.vectors
    by_pixels = duplicates.alike(paths, vectors) if least < 1 else []
    first: dict[int, int] = {}
    for one, other in sorted([*_near(vectors, least), *by_pixels]):
        first.setdefault(other, one)
    return [(one, other) for other, one in sorted(first.items())]


def _near(vectors: FloatArray, least: float) -> Iterator[tuple[int, int]]:
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        scores = vectors[start : start + ROWS_AT_ONCE] @ vectors[: start + ROWS_AT_ONCE].T
        for row, columns in enumerate(scores):
            before = np.flatnonzero(columns[: start + row] >= least)
            if len(before):
                yield int(before[0]), start + row


def _split(
    gathered: Gathered, alike: Sequence[tuple[int, int]], options: PrepareOptions
) -> tuple[list[Kept], list[tuple[str, str]]]:
    """Whole groups to train or test; of what the pairs split themselves, what leaks is taken out of the training."""
    joined = Joined()
    for one, other in alike:
        joined.join(gathered.groups[one], gathered.groups[other])
    groups = [joined.of(group) for group in gathered.groups]
    told = any(name is not None for name in gathered.splits)
    outside = held_out(gathered.splits, groups, options.held_out, partial(point_of, seed=options.seed))
    tested = {group for group, out in zip(groups, outside, strict=True) if out}
    kept, leaks = list[Kept](), list[tuple[str, str]]()
    every = [(picture, text, True) for picture, text, _ in gathered.matched]
    every += [(picture, text, False) for picture, text in gathered.unmatched]
    for picture, text, match in every:
        group, path = groups[picture], gathered.names[picture]
        is_test = group in tested
        if told and is_test and not is_held_out(gathered.splits[picture]):
            leaks.append((path, "is in the training, and nearly the same is in the test"))
            continue
        short = hashlib.sha256(group.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        kept.append(Kept(path, gathered.said[text], "test" if is_test else "train", short, match))
    return kept, leaks


def write(
    prepared: Prepared, folder: str | Path, thumbnails: Callable[[Sequence[str]], dict[str, bytes]]
) -> list[Path]:
    """pairs.csv, manifest.json and report.html in a folder of their own. Returns their paths."""
    return write_files(
        folder,
        {
            "pairs.csv": prepared.table().encode("utf-8", "surrogateescape"),
            "manifest.json": prepared.manifest().encode(),
            "report.html": _page(prepared, thumbnails).encode("utf-8", "backslashreplace"),
        },
    )


def _page(prepared: Prepared, thumbnails: Callable[[Sequence[str]], dict[str, bytes]]) -> str:
    from mmsearch import plots, report_page

    random = np.random.default_rng(prepared.options.seed)
    count = min(14, len(prepared.pairs))
    some = [prepared.pairs[place] for place in sorted(random.choice(len(prepared.pairs), count, replace=False))]
    pairs = prepared.alike[:7]
    shown = thumbnails(list(dict.fromkeys([*(pair.path for pair in some), *(path for both in pairs for path in both)])))
    lengths = [len(pair.caption.split()) for pair in prepared.pairs]

    def words(axes: Any) -> None:
        axes.hist(lengths, bins=range(1, max(lengths) + 2), color=plots.BLUE, align="left")
        axes.set(xlabel="words of a caption", ylabel="pairs")

    sections = [
        report_page.figures_section(
            "Counts", ("", ""), [(name, f"{count:,}") for name, count in prepared.counts.items()]
        ),
        report_page.pictures_section("Some pairs", [(pair.path, pair.caption) for pair in some], shown),
        report_page.plot_section("Length of captions", plots.png("", words)),
    ]
    if prepared.left_out:
        rows = [(reason, f"{count:,}") for reason, count in prepared.reasons.items()]
        sections.insert(1, report_page.figures_section("Left out", ("why", "pairs"), rows))
    if pairs:
        title = f"Nearly the same pictures, kept on one side ({len(prepared.alike):,} in all)"
        sections.append(
            report_page.pictures_section(title, [(path, Path(path).name) for both in pairs for path in both], shown)
        )
    if prepared.often:
        rows = [(text, f"{count:,}") for text, count in prepared.often[:10]]
        sections.append(
            report_page.figures_section("Captions that tell few pictures apart", ("caption", "pairs"), rows)
        )
    return report_page.page("Pairs", f"{len(prepared.pairs):,} pairs are kept.", sections)
