"""Pictures of a collection that are one picture: copies to the byte, and versions of it, resized, recompressed or cut.

Copies to the byte have the same content hash. For versions, the nearest by vector are looked at: near in what they
show, which is not yet the same picture. So their pixels decide. Both are made small and grey, one is laid over the cut
of the other that it fits best, and how well their details correlate is their likeness: 1 for the same picture, whatever
its size, format, brightness and colours. Details alone: whole pages of text, blurred, are all alike. What was measured,
and perceptual hashes beside it, is in tests/benchmarks/duplicates.py.

All pairs of 100,000 pictures would be five billion. FAISS finds the neighbours of each, and only files of pictures that
are near enough to one another are read.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

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
STEPS = (0.025, 0.0125)  # by which the best cut is then moved and stretched
ROUGHLY = 0.8  # the least coarse correlation for which details are compared
BLUR = 7  # px of FINE, beyond which nothing is a detail
FLAT = 1.0  # grey levels of deviation, below which there is nothing to correlate
COMPARED_AT_ONCE = 64


@dataclass(frozen=True)
class Copy:
    """A picture of a group."""

    id: str
    path: str | None
    width: int | None
    height: int | None
    size_bytes: int | None  # of the file, when it was read
    likeness: float  # to the first of the group, as pixels; 1 where the bytes are the same
    is_exact: bool  # whether it has the very bytes of the first


@dataclass(frozen=True)
class Group:
    """Copies and versions of one picture; the one with the most pixels first, of several the largest file."""

    copies: tuple[Copy, ...]

    @property
    def spare_bytes(self) -> int:
        """What all but the first take on disk."""
        return sum(copy.size_bytes or 0 for copy in self.copies[1:])


def find(
    pictures: Sequence[PictureRow],
    vectors: Mapping[int, FloatArray],
    threshold: float,
    progress: "Callable[[Progress], None]",
) -> list[Group]:
    """The groups among some pictures with their vectors (dim,) by item; see Index.duplicates."""
    contents: dict[str, list[PictureRow]] = defaultdict(list)
    for row in sorted(pictures, key=_worth, reverse=True):
        contents[row.content_hash or f"item {row.item}"].append(row)
    firsts = [rows[0] for rows in contents.values()]
    stars = _versions(firsts, vectors, threshold, progress) if threshold < 1.0 else {}
    groups = []
    for rows in contents.values():
        versions = stars.get(rows[0].item, {})
        if versions is None:  # it belongs to another's group
            continue
        copies = [_copy(row, 1.0, is_exact=True) for row in rows]
        for other, likeness in versions.items():
            same = contents[firsts[other].content_hash or f"item {firsts[other].item}"]
            copies += [_copy(row, likeness, is_exact=False) for row in same]
        if len(copies) > 1:
            groups.append(Group(tuple(copies)))
    return sorted(groups, key=lambda group: -group.spare_bytes)


def _worth(row: PictureRow) -> tuple[int, int, int, int]:
    """What speaks for a picture to be the first of its group; of two that are equal, 'dog.jpg' before 'dog (1).jpg'."""
    return (row.width or 0) * (row.height or 0), row.size_bytes or 0, -len(row.path or ""), -row.item


def _copy(row: PictureRow, likeness: float, *, is_exact: bool) -> Copy:
    return Copy(row.id, row.path, row.width, row.height, row.size_bytes, likeness, is_exact)


def _versions(
    rows: Sequence[PictureRow],
    vectors: Mapping[int, FloatArray],
    threshold: float,
    progress: "Callable[[Progress], None]",
) -> dict[int, dict[int, float] | None]:
    """item -> the places of its versions with their likeness to it; None for an item that is another's version.

    Each group has a first one, to which every other was compared: likeness does not wander from one to the next.
    """
    if len(rows) < 2:
        return {}
    pairs = near_pairs(np.stack([vectors[row.item] for row in rows]))
    places = np.unique(pairs).tolist()
    greys = _greys([rows[place].path for place in places], progress)
    seen = {place: grey for place, grey in zip(places, greys, strict=True) if grey is not None}
    partners = _partners(pairs, seen)
    found: dict[int, dict[int, float] | None] = {}
    taken: set[int] = set()
    for group in _connected(seen, partners, threshold):
        for first in group:  # by worth
            if first in taken:
                continue
            rest = [place for place in group if place != first and place not in taken]
            scores = likenesses(seen[first], np.stack([seen[place] for place in rest])) if rest else np.empty(0)
            versions = {place: float(score) for place, score in zip(rest, scores, strict=True) if score >= threshold}
            taken |= {first, *versions}
            found[rows[first].item] = versions
            found |= {rows[place].item: None for place in versions}
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
    places = np.unique(pairs).tolist()
    greys = _greys([paths[place] for place in places], lambda progress: None)
    seen = {place: grey for place, grey in zip(places, greys, strict=True) if grey is not None}
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


def _greys(paths: Sequence[str | None], progress: "Callable[[Progress], None]") -> list[npt.NDArray[np.uint8] | None]:
    """(SIDE, SIDE) uint8 of each file; None where it has none, or cannot be read any more."""
    from mmsearch.decoding import DecodePool, Skip  # here, with what they import: a search has no use for them
    from mmsearch.encoders.preprocess import PixelSpec
    from mmsearch.ingest import Progress

    read: dict[str, npt.NDArray[np.uint8]] = {}
    files = [path for path in paths if path is not None]
    done = skipped = 0
    progress(Progress(0, len(files), 0))
    with DecodePool(PixelSpec(SIDE, SIDE, resize="squash", interpolation="bilinear")) as pool:
        for path, decoded in pool.decode(files):
            done += 1
            if isinstance(decoded, Skip):
                skipped += 1
            else:
                read[path] = grey(decoded.pixels)
            progress(Progress(done, len(files), skipped))
    return [None if path is None else read.get(path) for path in paths]


def grey(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(SIDE, SIDE, 3) uint8 -> (SIDE, SIDE) uint8, the luma of ITU-R BT.601."""
    return np.rint(pixels @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)


def likenesses(one: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8]) -> FloatArray:
    """(n,) float32, 0 to 1: of a grey picture (SIDE, SIDE) with each of (n, SIDE, SIDE).

    0 where they are not even roughly alike, and for what is one flat tone.
    """
    mine = _normal(_cuts(one[None], _coarse(), len(_CUTS)))[0]
    found = np.zeros(len(others), np.float32)
    for start in range(0, len(others), COMPARED_AT_ONCE):
        theirs = _normal(_cuts(others[start : start + COMPARED_AT_ONCE], _coarse(), len(_CUTS)))
        in_mine, in_theirs = theirs[:, 0] @ mine.T, theirs @ mine[0]  # (n, cuts)
        for place in np.flatnonzero(np.maximum(in_mine.max(axis=1), in_theirs.max(axis=1)) >= ROUGHLY).tolist():
            other = others[start + place]
            if in_mine[place].max() > in_theirs[place].max():
                found[start + place] = _likeness_in_detail(one, other, int(in_mine[place].argmax()))
            else:
                found[start + place] = _likeness_in_detail(other, one, int(in_theirs[place].argmax()))
    return found


def _likeness_in_detail(larger: npt.NDArray[np.uint8], part: npt.NDArray[np.uint8], cut: int) -> float:
    """The highest correlation of a part's details with those of a picture near one of its coarse cuts."""
    details = _details(_cuts(part[None], _sampling([(0.0, 1.0)], FINE), 1))[0, 0]
    spans = [_CUTS[place] for place in divmod(cut, len(_CUTS))]
    best = 0.0
    for step in STEPS:
        moved = [
            [_within(at + by, length + longer) for by in (-step, 0, step) for longer in (-step, 0, step)]
            for at, length in spans
        ]
        rows, columns = (_sampling(tried, FINE) for tried in moved)
        scores = _details(_cuts(larger[None], rows, len(moved[0]), columns))[0] @ details
        highest = int(scores.argmax())
        best = max(best, float(scores[highest]))
        spans = [tried[place] for tried, place in zip(moved, divmod(highest, len(moved[0])), strict=True)]
    return best


def _within(start: float, length: float) -> tuple[float, float]:
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


def _sampling(cuts: Sequence[tuple[float, float]], side: int) -> FloatArray:
    """(cuts * side, SIDE): each row the share that every pixel of a line has in one of a cut's."""
    edges = np.array([[SIDE * (start + length * edge / side) for edge in range(side + 1)] for start, length in cuts])
    low, high = edges[:, :-1].reshape(-1, 1), edges[:, 1:].reshape(-1, 1)
    pixel = np.arange(SIDE)
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
