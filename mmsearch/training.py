"""Heads for an index, from pairs to better answers: gather, split, train, mix, measure, decide.

Features come from the index where it holds the picture or the caption; what it does not hold is encoded once and kept
beside it. Half of the held-out pairs chooses (the epoch, how much of what was learned is mixed in), the other half
tells what it is worth, and the new heads are taken into use only where that half is sure of it.
"""

import hashlib
import json
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mmsearch import media
from mmsearch.decoding import DecodePool, Skip
from mmsearch.embedding import (
    PICTURES_AT_ONCE,
    Embedded,
    embed_files,
    embed_pixels,
    embed_texts,
    encodable,
    pixels_of,
)
from mmsearch.encoders.base import Encoder, FloatArray
from mmsearch.encoders.heads import TrainedHeads
from mmsearch.errors import MediaError, TrainingError
from mmsearch.evaluate import Interval, Measured, best_ranks, difference, measured
from mmsearch.everyday import QUERIES
from mmsearch.facts import Decoded
from mmsearch.hashing import hashed
from mmsearch.sources.pairs import Pair
from mmsearch.sources.splits import Split, firmer, held_out, point_of, reports
from mmsearch.sources.tables import BadRow
from mmsearch.store.metadata import Store
from mmsearch.store.reader import Raw
from mmsearch.store.records import Kind
from mmsearch.train.rows import Rows, Taught, table_of

if TYPE_CHECKING:
    from mmsearch.train.residual import Epoch, HeadSettings

T = TypeVar("T")
Keep = Callable[[Kind, Mapping[str, tuple[FloatArray, FloatArray | None]]], None]

BYTES_AT_ONCE = 64 << 20  # of pictures in a tar or a table, held in memory until they are encoded
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)  # of what was learned, that are tried; 0 is the old heads
BESIDE_MOST = 4096  # pictures of the index that no pair names, to stay as they are
GENERAL_MOST = 20_000  # pictures that everyday queries are asked of
GENERAL_LEAST = 200  # pictures beside the pairs, below which everyday queries say nothing


@dataclass(frozen=True)
class HeadsReport:
    """What a training of heads did.

    before, after: by the heads in use and by the new ones, on pairs that nothing was learned from or chosen by; None
    where there are too few for that. gain: of the mean reciprocal rank, text to image, pair by pair. general: share of
    everyday queries whose first picture before is among the first ten after, of pictures that no pair names; None
    where the index holds too few such.
    """

    name: str
    pairs: int
    pictures: int
    encoded: int  # that were new to the index
    learned_from: int  # pairs
    before: Measured | None
    after: Measured | None
    gain: Interval | None
    general: float | None
    share: float  # of what was learned that is mixed in
    epochs: int
    used: bool
    decision: str  # a sentence
    seconds: float
    skipped: tuple[BadRow, ...] = ()

    def to_json(self) -> str:
        """What is kept with the heads."""
        return json.dumps({key: value for key, value in asdict(self).items() if key != "skipped"})


@dataclass(frozen=True)
class Gathered:
    """Pairs by their places among pictures and texts, with what an index keeps of these."""

    pictures: Rows
    texts: Rows
    said: list[str]  # (texts,)
    names: list[str]  # (pictures,) a path, or where it came from
    groups: list[str]  # (pictures,)
    splits: list[Split | None]  # (pictures,)
    labels: list[str | None]  # (pictures,) a class, else the group by its name, where the pairs say one
    matched: list[tuple[int, int, float]]  # picture, text, weight
    unmatched: list[tuple[int, int]]
    encoded: int
    skipped: tuple[BadRow, ...]


def gather(
    store: Store | None,
    encoder: Callable[[], Encoder],
    pairs: Iterable[Pair | BadRow],
    keep: Keep = lambda kind, rows: None,
) -> Gathered:
    """Features for all pairs, from the index if there is one, or encoded and given to `keep`.

    Raises TrainingError where no pair can be used.
    """
    with DecodePool() as pool:
        return _Gathering(store, encoder, keep, pool).run(pairs)


class _Gathering:
    def __init__(self, store: Store | None, encoder: Callable[[], Encoder], keep: Keep, pool: DecodePool) -> None:
        self._store = store
        self._pool = pool  # for pictures that are no files
        self._encoder = encoder
        self._keep = keep
        self._known: dict[Kind, dict[str, Raw]] = {"image": {}, "text": {}}
        self._failed: dict[str, str] = {}  # path -> reason
        self._encoded = 0

    def run(self, pairs: Iterable[Pair | BadRow]) -> Gathered:
        waiting: list[Pair] = []  # those with a path, or with a content hash
        skipped: list[BadRow] = []
        for part in _parts(pairs, PICTURES_AT_ONCE * 4, _weight, BYTES_AT_ONCE):
            skipped += [pair for pair in part if isinstance(pair, BadRow)]
            good = [pair for pair in part if isinstance(pair, Pair)]
            contents = self._contents({pair.image: pair.where for pair in good if isinstance(pair.image, bytes)})
            for pair in good:
                if isinstance(pair.image, str):
                    waiting.append(pair)
                elif (content := contents.get(pair.image)) is not None:
                    waiting.append(replace(pair, image=pair.where, content=content))  # its bytes are done with
                else:
                    skipped.append(BadRow(pair.where, 0, self._failed.get(pair.where, "cannot be read")))
        self._look_up("image", list(dict.fromkeys(pair.content for pair in waiting if pair.content is not None)))
        by_path = self._contents_of_paths(list(dict.fromkeys(str(one.image) for one in waiting if one.content is None)))
        said = [_clean(pair.text) for pair in waiting]
        self._texts(list(dict.fromkeys(text for text in said if text)))
        return self._arranged(waiting, said, by_path, skipped)

    def _arranged(
        self,
        waiting: Sequence[Pair],
        said: Sequence[str],
        by_path: Mapping[str, str],
        skipped: list[BadRow],
    ) -> Gathered:
        pictures: dict[str, int] = {}
        texts: dict[str, int] = {}
        names, groups, splits, labels = list[str](), list[str](), list[Split | None](), list[str | None]()
        matched: dict[tuple[int, int], float] = {}
        unmatched: dict[tuple[int, int], None] = {}
        joined = Joined()
        for pair, text in zip(waiting, said, strict=True):
            path = str(pair.image)
            content = pair.content or by_path.get(path)
            if content is None or content not in self._known["image"]:
                skipped.append(BadRow(pair.where, 0, f"{path}: {self._failed.get(path, 'the model gives no vector')}"))
                continue
            if not text or text not in self._known["text"]:
                skipped.append(BadRow(pair.where, 0, "has no text that the model can read"))
                continue
            if content not in pictures:
                pictures[content] = len(pictures)
                names.append(path)
                groups.append(content)
                splits.append(pair.split)
                labels.append(pair.label or pair.group)
            splits[pictures[content]] = firmer(splits[pictures[content]], pair.split)
            if pair.group is not None:  # pictures of one group, and all groups of one picture, are on one side
                joined.join(content, f"group {pair.group}")
            place = (pictures[content], texts.setdefault(text, len(texts)))
            if pair.match:
                matched[place] = matched.get(place, 0.0) + pair.weight
            else:
                unmatched[place] = None
        if not matched:
            reason = f"; the first: {skipped[0].table}: {skipped[0].reason}" if skipped else ""
            raise TrainingError(f"No pair of a picture and a text can be used{reason}.")
        groups = [joined.of(content) for content in groups]
        both = unmatched.keys() & matched.keys()  # contradictions teach nothing
        return Gathered(
            Rows(*_stacked([self._known["image"][key] for key in pictures])),
            Rows(*_stacked([self._known["text"][key] for key in texts])),
            list(texts),
            names,
            groups,
            splits,
            labels,
            [(*place, weight) for place, weight in matched.items() if weight > 0],
            [place for place in unmatched if place not in both],
            self._encoded,
            tuple(skipped),
        )

    def _contents(self, images: Mapping[bytes, str]) -> dict[bytes, str]:
        """The content hash of pictures in memory that are known or could be encoded."""
        hashes = {image: hashed([image]) for image in images}
        self._look_up("image", list(hashes.values()))
        unknown = [image for image, content in hashes.items() if content not in self._known["image"]]
        new: list[tuple[str, Decoded]] = []
        for image, decoded in self._pool.decode(unknown, pixels_of(self._encoder())) if unknown else ():
            if isinstance(decoded, Skip):
                self._failed[images[image]] = f"the picture {decoded.reason}"
            else:
                new.append((hashes[image], decoded))
        self._encode(new)
        return {image: content for image, content in hashes.items() if content in self._known["image"]}

    def _contents_of_paths(self, paths: Sequence[str]) -> dict[str, str]:
        contents: dict[str, str] = {}
        if self._store is not None:
            with self._store.read() as reader:
                contents = reader.content_of_files(paths)
        left = list(paths)
        if self._knows_pictures():
            for path in paths:
                if path in contents:
                    continue
                try:
                    contents[path] = media.content_hash(path)
                except MediaError as error:
                    self._failed[path] = f"the picture {error}"
                except OSError as error:
                    self._failed[path] = (error.strerror or str(error)).lower()
            self._look_up("image", list(dict.fromkeys(contents.values())))
            left = [path for path, content in contents.items() if content not in self._known["image"]]
        if left:
            for batch, embedded in embed_files(self._encoder(), left, self._fail):
                hashes = [one.facts.content_hash for _, one in batch]
                contents |= zip((path for path, _ in batch), hashes, strict=True)
                self._take("image", hashes, embedded)
        return contents

    def _knows_pictures(self) -> bool:
        """Whether a file's hash, which takes reading it once more, could tell that it needs no decoding."""
        if self._known["image"] or self._store is None:
            return bool(self._known["image"])
        with self._store.read() as reader:
            return reader.has_encoded("image")

    def _fail(self, skip: Skip) -> None:
        self._failed[skip.path] = f"the picture {skip.reason}"

    def _encode(self, decoded: Sequence[tuple[str, Decoded]]) -> None:
        if decoded:
            embedded = embed_pixels(self._encoder(), [one.pixels for _, one in decoded])
            self._take("image", [content for content, _ in decoded], embedded)

    def _texts(self, texts: Sequence[str]) -> None:
        hashes = {text: hashlib.blake2b(text.encode(), digest_size=20).hexdigest() for text in texts}
        self._look_up("text", list(hashes.values()))
        known = self._known["text"]
        if self._store is not None:
            with self._store.read() as reader:
                captions = {text: caption for _, caption, text in reader.captioned() if text in hashes}
                by_id = reader.raw(list(captions.values()))
            known |= {text: by_id[caption] for text, caption in captions.items()}
        for text, content in hashes.items():
            if content in known:
                known[text] = known.pop(content)
        new = [text for text in texts if text not in known]
        for part in _parts(new, 512):
            embedded = embed_texts(self._encoder(), part)
            self._take("text", [hashes[text] for text in part], embedded)
            for text in part:
                if hashes[text] in known:
                    known[text] = known.pop(hashes[text])

    def _look_up(self, kind: Kind, hashes: Sequence[str]) -> None:
        if self._store is None:
            return
        with self._store.read() as reader:
            self._known[kind] |= reader.encoded(kind, [each for each in hashes if each not in self._known[kind]])

    def _take(self, kind: Kind, keys: Sequence[str], embedded: Sequence[Embedded]) -> None:
        usable = {key: row for key, row in zip(keys, embedded, strict=True) if row.usable}
        self._keep(kind, {key: (row.vector, row.feature) for key, row in usable.items()})
        # In half precision, as they are read again the next time: the same pairs give the same heads
        self._known[kind] |= {key: (_half(row.vector), _half(row.learns_from)) for key, row in usable.items()}
        self._encoded += len(usable) if kind == "image" else 0


class Joined:
    """Names that belong together, directly or through others (union-find, Tarjan 1975)."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The one name that stands for all that it belongs with."""
        while (above := self._above.get(name, name)) != name:
            self._above[name] = self._above.get(above, above)
            name = above
        return name

    def join(self, one: str, other: str) -> None:
        """These belong together."""
        first, second = sorted((self.of(one), self.of(other)))
        self._above[second] = first
        self._above.setdefault(first, first)


def pairs_of_index(store: Store) -> Iterator[Pair]:
    """The captions of the pictures in an index."""
    with store.read() as reader:
        captioned = reader.captioned()
        items = reader.items(list(dict.fromkeys(picture for picture, _, _ in captioned)))
        contents = reader.contents(list(items))
    for picture, _, text in captioned:
        if picture in contents:
            where = f"caption of mm-{picture}"
            yield Pair(items[picture]["path"] or where, text, where, content=contents[picture])


def pairs_of_feedback(store: Store) -> Iterator[Pair]:
    """What people judged, as pairs that match or do not."""
    with store.read() as reader:
        judged = reader.feedback()
        items = reader.items([one.item for one in judged])
        contents = reader.contents(list(items))
    for one in judged:
        if one.item in contents:
            where = f"feedback on mm-{one.item}"
            content = contents[one.item]
            yield Pair(items[one.item]["path"] or where, one.query, where, match=one.match, content=content)


def split(gathered: Gathered, share: float, seed: int) -> tuple[Taught, Taught, Taught]:
    """What is learned from, what chooses, and what is reported; a group is in one of them whole.

    The same groups fall on the same side whatever else is there: by a hash of the group and the seed. Where the pairs
    say what is for testing, that is what chooses and what is reported.
    """
    outside = held_out(gathered.splits, gathered.groups, share, partial(point_of, seed=seed))
    side = [
        (2 if reports(group, seed) else 1) if out else 0 for group, out in zip(gathered.groups, outside, strict=True)
    ]
    return tuple(_taught(gathered, [place for place in range(len(side)) if side[place] == part]) for part in range(3))  # type: ignore[return-value]


def _taught(gathered: Gathered, pictures: Sequence[int]) -> Taught:
    among = {*pictures}
    chosen = [one for one in gathered.matched if one[0] in among]
    wrong = [one for one in gathered.unmatched if one[0] in among]
    return Taught(
        np.array([one[0] for one in chosen], np.int64),
        np.array([one[1] for one in chosen], np.int64),
        np.array([one[2] for one in chosen], np.float32),
        np.array(wrong, np.int64).reshape(-1, 2),
    )


def teach(
    store: Store,
    encoder: Callable[[], Encoder],
    gathered: Gathered,
    name: str,
    settings: "HeadSettings",
    tell: "Callable[[Epoch], None]",
    in_use: TrainedHeads | None = None,
) -> tuple[TrainedHeads | None, HeadsReport]:
    """New heads with what they are worth against those in use; None where nothing was learned. Nothing is written."""
    from mmsearch.train.residual import fit, held_out_recall

    started = time.monotonic()
    learns, chooses, reported = split(gathered, settings.held_out, settings.seed)
    few = _too_few(gathered, learns)
    if few is not None:
        return None, _report(name, gathered, 0, few, started)
    pictures, texts = gathered.pictures, gathered.texts
    # What is pulled to stay does stay; other texts, asked of other pictures, tell what became of the rest
    others = _pictures_beside(store, gathered)
    everyday, asking = (_rows(embed_texts(encoder(), QUERIES[start::2])) for start in (0, 1))
    kept, asked = (others, others) if len(others) < 2 * GENERAL_LEAST else others.halves()
    beside = {"image": kept.first(BESIDE_MOST), "text": everyday}
    epochs = [0]

    def count(epoch: "Epoch") -> None:
        epochs[0] = epoch.number
        tell(epoch)

    heads = fit(pictures, texts, learns, chooses, beside, settings, count)

    def general(share: float) -> float | None:
        if len(asked) < GENERAL_LEAST:
            return None
        first = np.argmax(asking.vectors @ asked.vectors.T, axis=1)
        scores = heads.rows("text", asking, share) @ heads.rows("image", asked, share).T
        right = np.zeros(scores.shape, bool)
        right[np.arange(len(first)), first] = True
        return float((best_ranks(scores, right) <= 10).mean())

    best, share = (0.0, 0.0), 0.0
    if len(chooses):
        best = held_out_recall(heads, pictures, texts, chooses, 0.0)
        for each in SHARES:
            found = held_out_recall(heads, pictures, texts, chooses, each)
            stays = general(each)
            if found > best and (stays is None or stays >= settings.general):
                best, share = found, each
    if not share:
        decision = "the old heads stay: the new ones are no better on held-out pairs, or cost too much elsewhere"
        return None, _report(name, gathered, len(learns), decision, started, epochs=epochs[0])
    trained = TrainedHeads.of(name, heads.tensors(share))
    before = after = gain = None
    if len(reported):
        shown, said, right = table_of(reported)
        tables = [
            _projected(each, "text", texts.of(said)) @ _projected(each, "image", pictures.of(shown)).T
            for each in (in_use, trained)
        ]
        ranks = [best_ranks(table, right) for table in tables]
        before, after = (measured(each, len(shown)) for each in ranks)
        gain = difference(1 / ranks[0], 1 / ranks[1])
    sure = (
        gain is not None and after is not None and before is not None and gain.low > 0 and after.finds >= before.finds
    )
    decision = (
        "the new heads are better on pairs that nothing was learned from"
        if sure
        else "the old heads stay: there are too few held-out pairs to be sure that the new ones are better"
        if gain is None or gain.low <= 0 <= gain.high
        else "the old heads stay: they are better on held-out pairs"
    )
    stays = general(share)
    return trained, _report(
        name, gathered, len(learns), decision, started, before, after, gain, stays, share, epochs[0], sure
    )


def _report(
    name: str,
    gathered: Gathered,
    learned_from: int,
    decision: str,
    started: float,
    before: Measured | None = None,
    after: Measured | None = None,
    gain: Interval | None = None,
    general: float | None = None,
    share: float = 0.0,
    epochs: int = 0,
    used: bool = False,
) -> HeadsReport:
    return HeadsReport(
        name,
        len(gathered.matched) + len(gathered.unmatched),
        len(gathered.pictures),
        gathered.encoded,
        learned_from,
        before,
        after,
        gain,
        general,
        share,
        epochs,
        used,
        decision,
        time.monotonic() - started,
        gathered.skipped,
    )


def _projected(heads: TrainedHeads | None, tower: Kind, rows: Rows) -> FloatArray:
    return rows.vectors if heads is None else heads.project(tower, rows.vectors, rows.features)


def _too_few(gathered: Gathered, learns: Taught) -> str | None:
    """Why nothing can be learned from these pairs, as a decision; None where something can."""
    if len(np.unique(learns.texts)) < 2:
        if len(gathered.said) < 2:
            return "the old heads stay: all captions are the same, and so tell no picture from another"
        return (
            f"the old heads stay: {len(gathered.matched)} pairs are too few to learn from and to check what was learned"
        )
    if len(np.unique(learns.pictures)) < 2:
        return "the old heads stay: one picture tells nothing of others"
    return None


def _pictures_beside(store: Store, gathered: Gathered) -> Rows:
    """Pictures of the index that no pair names, at even distances."""
    taught = {row.tobytes() for row in gathered.pictures.vectors.astype(np.float16)}
    with store.read() as reader:
        items = reader.items_of_kind("image")
        if len(items) > GENERAL_MOST:
            items = [items[place] for place in np.linspace(0, len(items) - 1, GENERAL_MOST).astype(int)]
        raw = list(reader.raw(items).values())
    left = [row for row in raw if row[0].astype(np.float16).tobytes() not in taught]
    width = gathered.pictures.features.shape[1]
    if not left:
        return Rows(np.empty((0, gathered.pictures.vectors.shape[1]), np.float32), np.empty((0, width), np.float32))
    np.random.default_rng(0).shuffle(left)
    return Rows(*_stacked(left))


def _rows(embedded: Sequence[Embedded]) -> Rows:
    good = [row for row in embedded if row.usable]
    return Rows(np.stack([row.vector for row in good]), np.stack([row.learns_from for row in good]))


def _stacked(rows: Sequence[Raw]) -> tuple[FloatArray, FloatArray]:
    widths = {len(feature) for _, feature in rows}
    if len(widths) > 1:
        raise TrainingError(
            f"Some items have features of {min(widths)} numbers and others of {max(widths)}, and heads learn from one "
            "kind. Take out those that were put in without features, or with another model's."
        )
    return np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])


def _half(row: FloatArray) -> FloatArray:
    return row.astype(np.float16).astype(np.float32)


def _clean(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", encodable(text)).split())


def _parts(
    values: Iterable[T], size: int, weight: Callable[[T], int] = lambda value: 0, most: int = 0
) -> Iterator[list[T]]:
    """Lists of so many values; of fewer where they weigh more together than most."""
    part: list[T] = []
    weighs = 0
    for value in values:
        part.append(value)
        weighs += weight(value)
        if len(part) == size or weighs > most:
            yield part
            part, weighs = [], 0
    if part:
        yield part


def _weight(pair: Pair | BadRow) -> int:
    return len(pair.image) if isinstance(pair, Pair) and isinstance(pair.image, bytes) else 0
