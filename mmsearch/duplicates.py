"""Pictures of a collection that are one picture: copies to the byte, and versions of it, resized, recompressed or cut.

Copies to the byte have the same content hash. For versions, the nearest by vector are looked at: near in what they
show, which is not yet the same picture. So their pixels decide. Both are made small and grey, one is laid over the cut
of the other that it fits best, and how well their details correlate is their likeness: 1 for the same picture, whatever
its size, format, brightness and colours. Details alone: whole pages of text, blurred, are all alike. And everywhere:
two playing cards are alike but for a sign, so that the part counts in which they differ most. What was measured, and
perceptual hashes beside it, is in tests/benchmarks/duplicates.py.

All pairs of 100,000 pictures would be five billion. FAISS finds the neighbours of each, and only files of pictures that
are near enough to one another are read.

People delete what is listed here. So every file of a group is read again and must still hold what was indexed, the
paths of one file count as one (mmsearch.names), and no link is ever a spare.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mmsearch.errors import MediaError
from mmsearch.names import Name, look_up
from mmsearch.nearest import nearest_rows
from mmsearch.store.records import FloatArray, IntArray, PictureRow

if TYPE_CHECKING:
    from mmsearch.ingest import Progress

THRESHOLD = 0.9  # of likeness; different pages of one layout reach 0.75, copies with a tenth cut off 0.93
NEAR = 0.8  # the least cosine between pictures that are compared; at 0.85, one grey version in ten is missed
NEIGHBOURS = 16  # of a picture that are looked at; a larger group holds together by its other members
EXACT_TO = 20_000  # pictures, of which all pairs take some seconds
PROBES = 8  # cells that are looked into, beyond
SIDE = 64  # px; of a picture that is compared
COARSE, FINE = 16, 32  # px; of a cut, to find where one lies in the other, and to compare details
LENGTHS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # of a cut along a side; each is tried at both ends and in the middle
STEPS = (0.025, 0.0125, 0.00625, 0.003125)  # by which the best cut is then moved and stretched
ROUGHLY = 0.8  # the least coarse correlation for which details are compared
BLUR = 7  # px of FINE, beyond which nothing is a detail
FLAT = 1.0  # grey levels of deviation, below which there is nothing to correlate
PART, PART_STEP = 8, 4  # px of FINE; of a part that is compared by itself, and from one to the next
# A part's details that the other picture does not explain cost likeness: by how much they are, in shares of a part's
# mean details, and by their share of the part's own. At 0.9, a drawing with a sign of its own is another one.
COST, OWN_COST = 0.3, 0.2
OWN_FROM = 0.25  # of a part's mean details; with fewer it has none of its own
NOISE = 6.0  # grey levels squared; less is no detail
COMPARED_AT_ONCE = 64
Span: TypeAlias = tuple[float, float]  # where a cut begins along a side, and how long it is, in shares of that
WHOLE: Span = (0.0, 1.0)
_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)


@dataclass(frozen=True)
class Copy:
    """A picture of a group."""

    id: str
    path: str | None
    width: int | None
    height: int | None
    size_bytes: int | None  # of the file
    likeness: float  # to the first of the group, as pixels; 1 where the bytes are the same
    is_exact: bool  # whether it has the very bytes of the first
    frees_bytes: int  # what the disk gains when all spares are removed; 0 for the first, and for a name among several
    name: Name | None = field(default=None, repr=False, compare=False)  # as it was when the file was read


@dataclass(frozen=True)
class Group:
    """Copies and versions of one picture; the one with the most pixels first, of several the largest file.

    No two copies are one file, but for hard links that have to go together for the disk to gain anything; of the
    first no other name is listed.
    """

    copies: tuple[Copy, ...]

    @property
    def spare_bytes(self) -> int:
        """What the disk gains when all but the first are removed."""
        return sum(copy.frees_bytes for copy in self.copies[1:])

    def as_now(self) -> "Group | None":
        """The group without copies whose file has changed or gone since it was read.

        None where that is so of the first, or where it alone is left.
        """
        first, *rest = self.copies
        kept = [copy for copy in rest if _is_unchanged(copy)]
        if not kept or not _is_unchanged(first):
            return None
        return Group((first, *kept)) if len(kept) < len(rest) else self


@dataclass(frozen=True)
class Found:
    """The groups, and what was left out of them."""

    groups: tuple[Group, ...]
    unread: int  # pictures that may belong to a group, but whose file is gone, cannot be read, or has changed
    other_names: int  # paths that lead to a file which counts under another

    def remarks(self) -> Iterator[str]:
        """What a person should know of what was left out, a sentence each."""
        if self.unread:
            are = "1 image is" if self.unread == 1 else f"{self.unread:,} images are"
            yield f"{are} left out: gone, not readable, or changed since the last `mmsearch index`."
        if self.other_names:
            are = "1 path is" if self.other_names == 1 else f"{self.other_names:,} paths are"
            yield f"{are} left out: links and other names of files that are counted once."


def find(
    pictures: Sequence[PictureRow],
    vectors: Mapping[int, FloatArray],
    threshold: float,
    progress: "Callable[[Progress], None]",
) -> Found:
    """The groups among some pictures with their vectors (dim,) by item; see Index.duplicates."""
    by_content: dict[str, list[PictureRow]] = defaultdict(list)
    for row in sorted(pictures, key=_worth, reverse=True):
        by_content[row.content_hash or f"item {row.item}"].append(row)
    contents = list(by_content.values())
    pairs = np.empty((0, 2), np.int64)
    if threshold < 1.0 and len(contents) > 1:
        pairs = near_pairs(np.stack([vectors[rows[0].item] for rows in contents]))
    seen = _read(contents, np.unique(pairs).tolist(), progress)
    stars = _stars(pairs, seen.small, threshold)
    groups = []
    for place, files in seen.files.items():
        versions = stars.get(place, {})
        if versions is None:  # it belongs to another's group
            continue
        copies = [_copy(files[0], likeness=1.0, is_exact=True)]
        for file in files[1:]:
            copies += _spares(file, likeness=1.0, is_exact=True)
        for other, likeness in versions.items():
            for file in seen.files[other]:
                copies += _spares(file, likeness=likeness, is_exact=False)
        groups.append(Group(tuple(copies)))
    checked = [group.as_now() for group in groups if len(group.copies) > 1]
    kept = sorted((group for group in checked if group is not None), key=lambda group: -group.spare_bytes)
    return Found(tuple(kept), seen.unread, seen.others)


def _is_unchanged(copy: Copy) -> bool:
    return copy.path is None or copy.name is None or look_up(copy.path) == copy.name


def _worth(row: PictureRow) -> tuple[int, int, int, int]:
    """What speaks for a picture to be the first of its group; of two that are equal, 'dog.jpg' before 'dog (1).jpg'."""
    return (row.width or 0) * (row.height or 0), row.size_bytes or 0, -len(row.path or ""), -row.item


@dataclass(frozen=True)
class _File:
    """A file with its names, the one to keep first; or a picture from memory, which has none."""

    rows: tuple[PictureRow, ...]
    names: tuple[Name, ...]

    @property
    def is_linked(self) -> bool:
        """Whether nothing but symbolic links to it is known."""
        return bool(self.names) and self.names[0].is_link


def _files(rows: Sequence[PictureRow]) -> tuple[list[_File], int]:
    """The files of some rows by worth, those that are known by links alone and pictures from memory last.

    Also gives how many rows have no file any more.
    """
    names: dict[tuple[Any, ...], list[tuple[Name, PictureRow]]] = defaultdict(list)
    files, gone = [], 0
    for row in rows:
        if row.path is None:
            files.append(_File((row,), ()))
        elif (name := look_up(row.path)) is None:
            gone += 1
        else:
            names[name.file].append((name, row))
    for known in names.values():
        if len(known) > 1:
            known.sort(key=lambda one: (one[0].is_link, not one[0].is_direct))  # sorting keeps the order of worth
        files.append(_File(tuple(row for _, row in known), tuple(name for name, _ in known)))
    places = {row.item: place for place, row in enumerate(rows)}
    return sorted(files, key=lambda file: (not file.names, file.is_linked, places[file.rows[0].item])), gone


def _copy(file: _File, likeness: float, *, is_exact: bool, place: int = 0, frees_bytes: int = 0) -> Copy:
    row, name = file.rows[place], file.names[place] if file.names else None
    return Copy(
        row.id, row.path, row.width, row.height, row.size_bytes, likeness, is_exact, frees_bytes=frees_bytes, name=name
    )


def _spares(file: _File, likeness: float, *, is_exact: bool) -> list[Copy]:
    """What has to be removed for a file to be gone: each of its entries once, and no link."""
    if not file.names:
        return [_copy(file, likeness, is_exact=is_exact)]
    places = {name.entry: place for place, name in reversed(list(enumerate(file.names))) if not name.is_link}
    copies = [_copy(file, likeness, is_exact=is_exact, place=place) for place in sorted(places.values())]
    if copies and len(copies) >= file.names[0].entries:  # else other names of it stay
        copies[0] = replace(copies[0], frees_bytes=file.names[0].size_bytes)
    return copies


@dataclass(frozen=True)
class _Seen:
    """The files that may belong to a group, as they are now."""

    files: dict[int, list[_File]]  # place of a content -> those that hold it still
    small: dict[int, npt.NDArray[np.uint8]]  # place -> `planes`, of those that are compared
    unread: int
    others: int


def _read(
    contents: Sequence[Sequence[PictureRow]], compared: Sequence[int], progress: "Callable[[Progress], None]"
) -> _Seen:
    """Read the files of contents that several have, and of those that are to be compared."""
    from mmsearch.ingest import Progress  # here, with what it imports: a search has no use for it

    wanted = sorted({place for place, rows in enumerate(contents) if len(rows) > 1}.union(compared))
    looked = {place: _files(contents[place]) for place in wanted}
    files = {place: found for place, (found, _) in looked.items() if found}
    unread = sum(gone for _, gone in looked.values())
    others = sum(max(len(file.names) - 1, 0) for found in files.values() for file in found)
    copies = [(place, file) for place, found in files.items() if len(found) > 1 for file in found if file.names]
    paths = {files[place][0].names[0].path: place for place in compared if place in files and files[place][0].names}
    done, total = 0, len(copies) + len(paths)
    progress(Progress(0, total, unread))
    for place, file in copies:
        if _content(file) != contents[place][0].content_hash:
            files[place].remove(file)
            unread += len(file.rows)
        done += 1
        progress(Progress(done, total, unread))
    small = {}
    for path, content, seen in _pictures(list(paths)):
        place = paths[path]
        if content == contents[place][0].content_hash and seen is not None:
            small[place] = seen
        else:
            unread += 1
        done += 1
        progress(Progress(done, total, unread))
    return _Seen({place: found for place, found in files.items() if found}, small, unread, others)


def _content(file: _File) -> str | None:
    """The hash of what a file holds now; None where it cannot be read."""
    from mmsearch.media import content_hash

    try:
        return content_hash(file.names[0].path)
    except (MediaError, OSError):
        return None


def _stars(
    pairs: IntArray, seen: dict[int, npt.NDArray[np.uint8]], threshold: float
) -> dict[int, dict[int, float] | None]:
    """place -> the places of its versions with their likeness to it; None for a place that is another's version.

    Each group has a first one, to which every other was compared: likeness does not wander from one to the next.
    """
    found: dict[int, dict[int, float] | None] = {}
    taken: set[int] = set()
    for group in _connected(seen, _partners(pairs, seen), threshold):
        for first in group:  # by worth
            if first in taken:
                continue
            rest = [place for place in group if place != first and place not in taken]
            scores = likenesses(seen[first], np.stack([seen[place] for place in rest])) if rest else np.empty(0)
            versions = {place: float(score) for place, score in zip(rest, scores, strict=True) if score >= threshold}
            taken |= {first, *versions}
            found[first] = versions
            found |= dict.fromkeys(versions)
    return found


def _connected(
    seen: dict[int, npt.NDArray[np.uint8]], partners: dict[int, list[int]], threshold: float
) -> Iterable[list[int]]:
    """Pictures that hang together by pairs that are alike, each group ascending."""
    leads = {place: place for place in seen}

    def lead(place: int) -> int:
        while leads[place] != place:
            leads[place] = place = leads[leads[place]]
        return place

    for one, others in partners.items():
        scores = likenesses(seen[one], np.stack([seen[other] for other in others]))
        for other, score in zip(others, scores, strict=True):
            if score >= threshold:
                first, second = sorted((lead(one), lead(other)))
                leads[second] = first
    groups: dict[int, list[int]] = defaultdict(list)
    for place in sorted(seen):
        groups[lead(place)].append(place)
    return [group for group in groups.values() if len(group) > 1]


def alike(paths: Sequence[str | None], vectors: FloatArray, threshold: float = THRESHOLD) -> list[tuple[int, int]]:
    """Places of files that are versions of one picture, the lesser first; vectors (n, dim) of length 1.

    A file that is None or cannot be read is like no other.
    """
    pairs = near_pairs(vectors) if len(vectors) > 1 else np.empty((0, 2), np.int64)
    wanted = {place: path for place in np.unique(pairs).tolist() if (path := paths[place]) is not None}
    small = {path: one for path, _, one in _pictures(list(dict.fromkeys(wanted.values()))) if one is not None}
    seen = {place: small[path] for place, path in wanted.items() if path in small}
    found: list[tuple[int, int]] = []
    for one, others in _partners(pairs, seen).items():
        scores = likenesses(seen[one], np.stack([seen[other] for other in others]))
        found += [(one, other) for other, score in zip(others, scores, strict=True) if score >= threshold]
    return found


def _partners(pairs: IntArray, seen: Container[int]) -> dict[int, list[int]]:
    """The lesser of each pair -> the others, where both were seen."""
    partners: dict[int, list[int]] = defaultdict(list)
    for one, other in pairs.tolist():
        if one in seen and other in seen:
            partners[one].append(other)
    return partners


def near_pairs(vectors: FloatArray, near: float = NEAR) -> IntArray:
    """(m, 2) places of vectors (n, dim) of length 1 that are among each other's nearest and near; the lesser first."""
    count = len(vectors)
    wanted = min(NEIGHBOURS + 1, count)
    if count <= EXACT_TO:
        scores, neighbours = nearest_rows(vectors, vectors, wanted)
    else:
        import faiss

        cells = int(2 * count**0.5)
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], cells, faiss.METRIC_INNER_PRODUCT
        )
        index.cp.niter = 6
        index.train(vectors[:: max(1, count // (40 * cells))])
        index.add(vectors)
        index.nprobe = PROBES
        scores, neighbours = index.search(vectors, wanted)
    one, rank = np.nonzero((scores >= near) & (neighbours >= 0))
    pairs = np.stack((one, neighbours[one, rank]), axis=1).astype(np.int64)
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    unique: IntArray = np.unique(pairs, axis=0)
    return unique


def _pictures(paths: Sequence[str]) -> Iterator[tuple[str, str | None, npt.NDArray[np.uint8] | None]]:
    """Of each file its path, content hash and `planes`; None and None where it cannot be read any more."""
    if not paths:
        return
    from mmsearch.decoding import DecodePool, Skip  # here, with what they import: a search has no use for them
    from mmsearch.encoders.preprocess import PixelSpec

    with DecodePool(PixelSpec(SIDE, SIDE, resize="squash", interpolation="bilinear")) as pool:
        for path, decoded in pool.decode(paths):
            if isinstance(decoded, Skip):
                yield path, None, None
            else:
                yield path, decoded.facts.content_hash, planes(decoded.pixels)


def planes(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(SIDE, SIDE, 3) uint8 RGB -> (SIDE * 3 // 2, SIDE) uint8: luma, and below it both colours at half the size.

    YCbCr of ITU-R BT.601, laid out as I420: half of the memory, for what is looked at but coarsely.
    """
    ycc = pixels @ _YCC.T + np.array([0, 128, 128], np.float32)  # (SIDE, SIDE, 3)
    tints = ycc[..., 1:].reshape(SIDE // 2, 2, SIDE // 2, 2, 2).mean(axis=(1, 3))
    laid_out = np.vstack((ycc[..., 0], np.hstack((tints[..., 0], tints[..., 1]))))
    small: npt.NDArray[np.uint8] = np.rint(laid_out).clip(0, 255).astype(np.uint8)
    return small


def likenesses(one: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8]) -> FloatArray:
    """(n,) float32, 0 to 1: of a picture as `planes` makes it with each of n such.

    0 where they are not even roughly alike, and for what is one flat tone.
    """
    mine = _normal(_cuts(one[None, :SIDE], _coarse(), len(_CUTS)))[0]
    found = np.zeros(len(others), np.float32)
    for start in range(0, len(others), COMPARED_AT_ONCE):
        theirs = _normal(_cuts(others[start : start + COMPARED_AT_ONCE, :SIDE], _coarse(), len(_CUTS)))
        in_mine, in_theirs = theirs[:, 0] @ mine.T, theirs @ mine[0]  # (n, cuts)
        for place in np.flatnonzero(np.maximum(in_mine.max(axis=1), in_theirs.max(axis=1)) >= ROUGHLY).tolist():
            other = others[start + place]
            if in_mine[place].max() > in_theirs[place].max():
                found[start + place] = _likeness_in_detail(one, other, int(in_mine[place].argmax()))
            else:
                found[start + place] = _likeness_in_detail(other, one, int(in_theirs[place].argmax()))
    return found


def _likeness_in_detail(larger: npt.NDArray[np.uint8], part: npt.NDArray[np.uint8], cut: int) -> float:
    """The highest correlation of a part's details with those of a picture near one of its coarse cuts.

    Less, where the two differ in a place more than that says.
    """
    details = _details(_cuts(part[None, :SIDE], _sampling([WHOLE], FINE), 1))[0, 0]
    spans = [_CUTS[place] for place in divmod(cut, len(_CUTS))]
    best = 0.0
    for step in STEPS:
        moved = [
            [_within(at + by, length + longer) for by in (-step, 0, step) for longer in (-step, 0, step)]
            for at, length in spans
        ]
        rows, columns = (_sampling(tried, FINE) for tried in moved)
        scores = _details(_cuts(larger[None, :SIDE], rows, len(moved[0]), columns))[0] @ details
        highest = int(scores.argmax())
        best = max(best, float(scores[highest]))
        spans = [tried[place] for tried, place in zip(moved, divmod(highest, len(moved[0])), strict=True)]
    return max(min(best, _likeness_of_parts(larger, part, spans)), 0.0)


def _likeness_of_parts(larger: npt.NDArray[np.uint8], part: npt.NDArray[np.uint8], spans: list[Span]) -> float:
    """1 less what the two differ in most, part by part, when one is laid over a cut of the other.

    A part's details are explained by the other's there in any mixture of its luma and colours, so that no recolouring
    counts, and shades that luma does not tell apart are still seen. Each has to explain the other.
    """
    seen = [_parts(larger, spans[0], spans[1]), _parts(part, WHOLE, WHOLE)]  # (parts, PART * PART, 3) each
    likeness = 1.0
    for mine, theirs in (seen, seen[::-1]):
        luma = mine[..., :1]
        products = theirs.swapaxes(1, 2) @ theirs + NOISE * PART**2 / 2 * np.eye(3, dtype=np.float32)
        left = luma - theirs @ np.linalg.solve(products, theirs.swapaxes(1, 2) @ luma)
        own, unexplained = (np.square(details).sum(axis=(1, 2)) for details in (luma, left))
        usual = max(float(own.mean()), NOISE * PART**2 / 4)
        likeness = min(likeness, 1 - COST * float(unexplained.max()) / usual)
        has_own = own >= max(OWN_FROM * usual, NOISE * PART**2)
        if has_own.any():
            likeness = min(likeness, 1 - OWN_COST * float((unexplained[has_own] / own[has_own]).max()))
    return likeness


def _parts(picture: npt.NDArray[np.uint8], rows: Span, columns: Span) -> FloatArray:
    """(parts, PART * PART, 3): the details of luma and colours of a cut, part by part."""
    half = SIDE // 2
    tall, wide, tall_tint, wide_tint = (
        _sampling([span], FINE, side) for side in (SIDE, half) for span in (rows, columns)
    )
    cut = [tall @ picture[:SIDE].astype(np.float32) @ wide.T]
    cut += [tall_tint @ picture[SIDE:, start : start + half].astype(np.float32) @ wide_tint.T for start in (0, half)]
    stack = np.stack(cut)  # (3, FINE, FINE)
    stack -= _blurring() @ stack @ _blurring().T
    windows = np.lib.stride_tricks.sliding_window_view(stack, (PART, PART), axis=(1, 2))[:, ::PART_STEP, ::PART_STEP]
    parts: FloatArray = windows.reshape(3, -1, PART * PART).transpose(1, 2, 0)
    return parts


def _within(start: float, length: float) -> Span:
    start = max(start, 0.0)
    return start, min(length, 1.0 - start)


def _cuts(greys: npt.NDArray[np.uint8], rows: FloatArray, count: int, columns: FloatArray | None = None) -> FloatArray:
    """(n, SIDE, SIDE) uint8 -> (n, count * count, px * px) float32: every pair of a cut down and a cut across."""
    cut = rows @ greys.astype(np.float32) @ (rows if columns is None else columns).T  # (n, count * px, count * px)
    side = len(rows) // count
    return cut.reshape(-1, count, side, count, side).swapaxes(2, 3).reshape(-1, count**2, side**2)


def _normal(cuts: FloatArray) -> FloatArray:
    """Each cut (…, px) with mean 0 and length 1, so that products are correlations; 0 where it is flat."""
    cuts = cuts - cuts.mean(axis=-1, keepdims=True)
    lengths = np.linalg.norm(cuts, axis=-1, keepdims=True)
    return np.where(lengths < FLAT * cuts.shape[-1] ** 0.5, 0.0, cuts / np.maximum(lengths, 1e-9)).astype(np.float32)


def _details(cuts: FloatArray) -> FloatArray:
    """Cuts (…, FINE * FINE) without what is left of them when blurred, normal."""
    square = cuts.reshape(*cuts.shape[:-1], FINE, FINE)
    return _normal((square - _blurring() @ square @ _blurring().T).reshape(cuts.shape).astype(np.float32))


def _sampling(cuts: Sequence[Span], side: int, of: int = SIDE) -> FloatArray:
    """(cuts * side, of): each row the share that every pixel of a line has in one of a cut's."""
    edges = np.array([[of * (start + length * edge / side) for edge in range(side + 1)] for start, length in cuts])
    low, high = edges[:, :-1].reshape(-1, 1), edges[:, 1:].reshape(-1, 1)
    pixel = np.arange(of)
    covered = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)
    shares: FloatArray = (covered / (high - low)).astype(np.float32)
    return shares


@cache
def _coarse() -> FloatArray:
    return _sampling(_CUTS, COARSE)


@cache
def _blurring() -> FloatArray:
    """(FINE, FINE): each row the mean over BLUR pixels around one, those at the end counted on beyond it."""
    blurring = np.zeros((FINE, FINE), np.float32)
    for row in range(FINE):
        for at in range(row - BLUR // 2, row + BLUR // 2 + 1):
            blurring[row, min(max(at, 0), FINE - 1)] += 1 / BLUR
    return blurring


_CUTS = [(start, length) for length in LENGTHS for start in sorted({0.0, (1 - length) / 2, 1 - length})]
