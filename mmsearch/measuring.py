"""How good a model or an index's heads are on pairs: both directions, with intervals, and against another.

Karpathy's protocol (Karpathy & Fei-Fei 2015): every picture and every different text of the pairs is a candidate once;
a query counts by the rank of its best right answer. Captions that say the same are one text with several right
pictures, and a picture with several captions has several right texts, so that neither is punished for being right.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain

import numpy as np

from mmsearch.embedding import embed_texts
from mmsearch.encoders.base import Encoder, FloatArray
from mmsearch.encoders.heads import TrainedHeads
from mmsearch.errors import UsageError
from mmsearch.evaluate import (
    BoolArray,
    IntArray,
    Interval,
    Measured,
    best_ranks,
    difference,
    interval,
    measured,
    paired_p,
)
from mmsearch.sources.pairs import GUESSED, Pair, PairColumns, classes_of, read_pairs
from mmsearch.sources.splits import is_held_out
from mmsearch.sources.tables import BadRow
from mmsearch.store.metadata import Store
from mmsearch.train.rows import Rows
from mmsearch.training import Gathered, gather

DIRECTIONS = ("text to image", "image to text")
PAIRS_MOST = 60_000  # different pictures or texts; their table of scores is kept a part at a time
ROWS_AT_ONCE = 512
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "a drawing of a {}.", "{}")  # after Radford et al. 2021, 3.1.4
WORST_SHOWN = 5  # answers of a failure
GROUP_LEAST, GROUPS_MOST = 5, 30  # queries of a group that is told, and groups


@dataclass(frozen=True)
class Failure:
    """A text whose picture came late, with what came instead."""

    text: str
    rank: int
    right: tuple[str, ...]  # pictures
    instead: tuple[str, ...]  # the best ones, best first


@dataclass(frozen=True)
class Ranked:
    """What every plot and figure is made of: ranks both ways, and scores of what matches and of what does not."""

    text_to_image: IntArray
    image_to_text: IntArray
    matched: FloatArray
    unmatched: FloatArray  # a sample


@dataclass(frozen=True)
class Compared:
    """Another model or other heads on the same pairs: gains of recall@10 as seen from the other, pair by pair."""

    name: str
    figures: dict[str, Measured]
    gain: dict[str, Interval]
    p: dict[str, float]


@dataclass(frozen=True)
class OfGroup:
    """How the texts of a group of pictures, a class or a product, find them among all."""

    name: str
    queries: int
    recall: Interval  # @10


@dataclass(frozen=True)
class Evaluation:
    """How good answers on pairs are."""

    name: str
    pairs: int
    pictures: int
    texts: int
    figures: dict[str, Measured]  # by direction
    ranked: Ranked
    worst: tuple[Failure, ...]
    groups: tuple[OfGroup, ...]  # the largest, worst first; none where the pairs have no labels or groups
    against: Compared | None
    skipped: tuple[BadRow, ...]

    def to_json(self) -> str:
        """All figures, for machines."""
        said = {
            "name": self.name,
            "pairs": self.pairs,
            "pictures": self.pictures,
            "texts": self.texts,
            "figures": {direction: asdict(figure) for direction, figure in self.figures.items()},
            "groups": [asdict(group) for group in self.groups],
            "against": None if self.against is None else asdict(self.against),
            "skipped": len(self.skipped),
        }
        return json.dumps(said, indent=2)


def evaluation(
    name: str,
    gathered: Gathered,
    heads: TrainedHeads | None,
    other: tuple[str, Gathered, TrainedHeads | None] | None = None,
    worst: int = 50,
) -> Evaluation:
    """Figures of a model or heads on pairs; other: what it is compared with, on the same pairs.

    Raises UsageError for more pairs than can be ranked at once, and where nothing is left to rank.
    """
    right = _right(gathered)
    if other is not None and (other[1].said, len(other[1].pictures)) != (gathered.said, len(gathered.pictures)):
        raise UsageError(f"{other[0]} cannot read some of these pairs, and so cannot be compared on them.")
    ranked, failures = _ranked(gathered, heads, right, worst)
    against = None
    if other is not None:
        theirs, _ = _ranked(other[1], other[2], right, 0)
        against = Compared(
            other[0],
            _figures(theirs, right),
            {way: difference(_found(theirs, way), _found(ranked, way)) for way in DIRECTIONS},
            {way: paired_p(_found(theirs, way), _found(ranked, way)) for way in DIRECTIONS},
        )
    return Evaluation(
        name,
        len(gathered.matched),
        len(gathered.pictures),
        len(gathered.texts),
        _figures(ranked, right),
        ranked,
        failures,
        _groups(gathered, ranked, right),
        against,
        gathered.skipped,
    )


def _right(gathered: Gathered) -> BoolArray:
    """(texts, pictures): which belong together."""
    if max(len(gathered.texts), len(gathered.pictures)) > PAIRS_MOST:
        raise UsageError(f"{len(gathered.pictures)} pictures are too many to rank at once; take {PAIRS_MOST} at most.")
    right = np.zeros((len(gathered.texts), len(gathered.pictures)), bool)
    for picture, text, _ in gathered.matched:
        right[text, picture] = True
    return right


def vectors_of(gathered: Gathered, heads: TrainedHeads | None) -> tuple[FloatArray, FloatArray]:
    """(texts, dim) and (pictures, dim), rows of length 1, by trained heads or the model's own."""
    rows = {"text": gathered.texts, "image": gathered.pictures}
    made = {
        tower: each.vectors if heads is None else heads.project(tower, each.vectors, each.features)
        for tower, each in rows.items()
    }
    return made["text"], made["image"]


def _ranked(
    gathered: Gathered, heads: TrainedHeads | None, right: BoolArray, worst: int
) -> tuple[Ranked, tuple[Failure, ...]]:
    texts, pictures = vectors_of(gathered, heads)
    asked = np.flatnonzero(right.any(axis=1))
    shown = np.flatnonzero(right.any(axis=0))
    random = np.random.default_rng(0)
    to_image = _in_parts(texts, pictures, right, asked)
    to_text = _in_parts(pictures, texts, right.T, shown)
    pairs = np.array([(text, picture) for picture, text, _ in gathered.matched], np.int64)
    matched = (texts[pairs[:, 0]] * pictures[pairs[:, 1]]).sum(axis=1)
    some = random.integers([len(texts), len(pictures)], size=(4 * len(pairs), 2))
    some = some[~right[some[:, 0], some[:, 1]]]
    unmatched = (texts[some[:, 0]] * pictures[some[:, 1]]).sum(axis=1)
    failures = []
    for place in np.argsort(-to_image, kind="stable")[:worst]:
        if to_image[place] <= 1:
            break
        text = int(asked[place])
        order = np.argsort(-(pictures @ texts[text]), kind="stable")[:WORST_SHOWN]
        failures.append(
            Failure(
                gathered.said[text],
                int(to_image[place]),
                tuple(gathered.names[at] for at in np.flatnonzero(right[text])[:3]),
                tuple(gathered.names[at] for at in order if not right[text, at]),
            )
        )
    return Ranked(to_image, to_text, matched, unmatched), tuple(failures)


def _groups(gathered: Gathered, ranked: Ranked, right: BoolArray) -> tuple[OfGroup, ...]:
    found = (ranked.text_to_image <= 10).astype(np.float32)
    place = {int(text): row for row, text in enumerate(np.flatnonzero(right.any(axis=1)))}
    queries: dict[str, dict[int, None]] = {}
    for picture, text, _ in gathered.matched:
        if (label := gathered.labels[picture]) is not None:
            queries.setdefault(label, {})[place[text]] = None
    told = sorted(queries.items(), key=lambda each: -len(each[1]))[:GROUPS_MOST]
    groups = [
        OfGroup(name, len(rows), interval(found[list(rows)], lambda drawn: drawn.mean(axis=1)))
        for name, rows in told
        if len(rows) >= GROUP_LEAST
    ]
    return tuple(sorted(groups, key=lambda group: group.recall.value)) if len(groups) > 1 else ()


def _in_parts(queries: FloatArray, answers: FloatArray, right: BoolArray, asked: IntArray) -> IntArray:
    parts = [asked[start : start + ROWS_AT_ONCE] for start in range(0, len(asked), ROWS_AT_ONCE)]
    return np.concatenate([best_ranks(queries[part] @ answers.T, right[part]) for part in parts])


def _figures(ranked: Ranked, right: BoolArray) -> dict[str, Measured]:
    return {
        "text to image": measured(ranked.text_to_image, right.shape[1]),
        "image to text": measured(ranked.image_to_text, right.shape[0]),
    }


def _found(ranked: Ranked, way: str) -> FloatArray:
    ranks = ranked.text_to_image if way == "text to image" else ranked.image_to_text
    return (ranks <= 10).astype(np.float32)


@dataclass(frozen=True)
class Accuracy:
    """Zero-shot classification: each picture is given the class whose texts are nearest."""

    name: str
    pictures: int
    classes: int
    top1: Interval
    top5: Interval
    by_class: dict[str, float]


def evaluate_model(
    encoder: Encoder,
    sources: Sequence[str | os.PathLike[str]],
    *,
    columns: PairColumns = GUESSED,
    against: str | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Figures of a model by itself on pairs; against: the name of another model. Raises as `evaluation` does."""
    if not sources:
        raise UsageError("A model by itself is measured on pairs: name a table, a tar or a folder.")
    gathered = gather(None, lambda: encoder, tested(sources, columns))
    other = None if against is None else (against, of_model(against, sources, columns, notify), None)
    return evaluation(encoder.name, gathered, None, other)


def of_model(
    name: str, sources: Sequence[str | os.PathLike[str]], columns: PairColumns, notify: Callable[[str], None]
) -> Gathered:
    """Pairs as another model sees them."""
    from mmsearch.encoders.catalog import load_encoder

    encoder = load_encoder(name, progress=notify)
    return gather(None, lambda: encoder, tested(sources, columns))


def tested(sources: Sequence[str | os.PathLike[str]], columns: PairColumns) -> Iterator[Pair | BadRow]:
    """Pairs to measure on: where they say what is for testing, those alone."""
    pairs = list(chain(*(read_pairs(source, columns) for source in sources)))
    told = any(isinstance(pair, Pair) and pair.split is not None for pair in pairs)
    for pair in pairs:
        if isinstance(pair, BadRow) or not told or is_held_out(pair.split):
            yield pair


def classify_folder(
    encoder: Encoder, folder: str | os.PathLike[str], store: Store | None = None, heads: TrainedHeads | None = None
) -> Accuracy:
    """Zero-shot accuracy on a folder with a folder for each class."""
    classes = classes_of(folder)
    gathered = gather(store, lambda: encoder, (Pair(path, name, path) for path, name in classes.items()))
    name = encoder.name if heads is None else f"{encoder.name} with heads '{heads.name}'"
    said = {picture: gathered.said[text] for picture, text, _ in gathered.matched}
    return zero_shot(name, gathered.pictures, [said[place] for place in range(len(said))], lambda: encoder, heads)


def zero_shot(
    name: str,
    pictures: Rows,
    classes: Sequence[str],
    encoder: Callable[[], Encoder],
    heads: TrainedHeads | None,
) -> Accuracy:
    """classes: (n,) of the pictures. A class is the mean of its name in some prompts (Radford et al. 2021)."""
    names = sorted({*classes})
    prompts = [template.format(each) for each in names for template in TEMPLATES]
    embedded = embed_texts(encoder(), prompts)
    words = np.stack([row.vector for row in embedded])
    seen = pictures.vectors
    if heads is not None:
        words = heads.project("text", words, np.stack([row.learns_from for row in embedded]))
        seen = heads.project("image", seen, pictures.features)
    means = words.reshape(len(names), len(TEMPLATES), -1).mean(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    truth = np.array([names.index(each) for each in classes])
    right = truth[:, None] == np.arange(len(names))[None, :]
    ranks = best_ranks(seen @ means.T, right)
    hits = (ranks == 1).astype(np.float32)
    return Accuracy(
        name,
        len(ranks),
        len(names),
        interval(hits, lambda drawn: drawn.mean(axis=1)),
        interval((ranks <= 5).astype(np.float32), lambda drawn: drawn.mean(axis=1)),
        {each: float(hits[truth == place].mean()) for place, each in enumerate(names)},
    )
