"""Vectors, keywords and filters -> hits.

Three rankings answer a query: pictures by their vectors, texts by theirs (a caption stands for its picture), and
keywords in captions, passages and names, which know what no model can see ("Germany 2019"). The first two become one
by how far each score stands out among its kind; that one and the keywords are joined by reciprocal rank fusion
(Cormack, Clarke and Büttcher 2009), which needs no common scale.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from mmsearch.arguments import shown
from mmsearch.embedding import encodable
from mmsearch.errors import UsageError
from mmsearch.store.paths import below
from mmsearch.store.reader import ITEM_COLUMNS, Reader
from mmsearch.store.records import KINDS, Condition, FloatArray, Kind
from mmsearch.store.ties import best_first
from mmsearch.store.vectors import VectorIndex, cosines

KIND, TEXT = ITEM_COLUMNS.index("kind"), ITEM_COLUMNS.index("text")
RRF_K = 60  # the constant of the paper; its results hardly change between 10 and 100
LEAST_DEVIATION = 0.01  # of cosines; below it they are all the same
# Hits read from each ranking beyond those wanted, so that one found by two of them can rise
MIN_DEPTH, MOST_DEEPER = 90, 1_000
COMPARISONS = {"<": "<", "<=": "<=", ">": ">", ">=": ">=", "!=": "<>"}
Ranking = Literal["image", "text", "keyword"]

MAX_WORDS = 32  # of a query that are looked for as keywords
PUNCTUATION = ".,;:!?()[]'\"‘’“”"
# fmt: off
STOP_WORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "has", "in", "into", "is", "it", "its", "of", "on",
    "or", "over", "some", "that", "the", "their", "this", "to", "under", "up", "was", "were", "with", "without",
    "photo", "photos", "picture", "pictures", "image", "images",
))
# fmt: on


class Hit(NamedTuple):  # an answer may have thousands, and a frozen dataclass takes six times as long to make
    """An item with its score and rank."""

    rank: int  # 1-based
    score: float  # cosine between the query and the item, -1..1
    kind: Kind
    id: str
    path: str | None  # None for items that came from memory (add_images, add_texts)
    text: str | None  # the passage or caption; for an image its first caption, if it has one
    line: int | None = None  # 1-based line of the file at which a passage starts
    width: int | None = None  # pixels, upright
    height: int | None = None
    format: str | None = None  # "JPEG"
    taken_at: str | None = None  # ISO 8601: a time, with the offset where the image knows it, or a day alone
    camera: str | None = None
    latitude_deg: float | None = None
    longitude_deg: float | None = None
    facts: Mapping[str, Any] = MappingProxyType({})  # the user's own
    found_by: Mapping[str, int] = MappingProxyType({})  # ranking -> rank in it: "image", "text", "keyword"


@dataclass(frozen=True)
class Filters:
    """What a hit has to be, besides fitting the query. Nothing given lets everything pass.

    under: folders or files; any of them. after, before: a year, month or day as 2023, 2023-07 or 2023-07-14, in the
    picture's own local time; after includes its first moment, before ends just ahead of it. An image of which the day
    alone is known is found by that day: after 2023-07-14 and before 2023-07-15. near: latitude and longitude in
    degrees, and a distance in km. where: the user's own facts, a value, a list of which any will do, or comparisons
    such as {">=": 3}.
    """

    kind: Kind | None = None
    under: Sequence[str] = ()
    after: str | None = None
    before: str | None = None
    near: tuple[float, float, float] | None = None
    min_score: float | None = None
    where: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UsageError for a kind, date or place that is none."""
        if self.kind not in (None, *KINDS):
            raise UsageError(f"kind is image or text, not '{self.kind}'.")
        for name in ("after", "before"):
            given = getattr(self, name)
            if given is not None and not (isinstance(given, str) and _is_date(given)):
                raise UsageError(f"{name} takes a date as 2023, 2023-07 or 2023-07-14, not {shown(given)}.")
        if self.near is not None:
            if isinstance(self.near, str) or len(self.near) != 3:
                raise UsageError("near takes three numbers: latitude, longitude and a distance in km.")
            latitude, longitude, distance_km = self.near
            if not (-90 <= latitude <= 90 and -180 <= longitude <= 180 and distance_km > 0):
                raise UsageError(
                    "near takes a latitude of -90..90, a longitude of -180..180 and a distance in km above 0."
                )

    def condition(self, vectors: Kind | None = None) -> Condition | None:
        """What the filters ask of a hit, None where everything passes; vectors: of hits that these vectors are for.

        A picture's own vector is for a hit of kind image without being asked.
        """
        check: list[str] = []
        find: list[str] = []
        values: list[object] = []

        def ask(sql: str, *bound: object, find_by: str | None = None) -> None:
            check.append(sql)
            find.append(find_by or sql)
            values.extend(bound)

        if self.kind is not None and not self.kind == vectors == "image":
            ask("i.kind = ?", self.kind)
        if self.under:
            ranges = [below(folder) for folder in self.under]
            ask(
                "(" + " OR ".join(["f.path = ? OR (f.path >= ? AND f.path < ?)"] * len(ranges)) + ")",
                *(bound for first, last in ranges for bound in (first[:-1], first, last)),
            )
        if self.after is not None:
            ask("i.taken_at >= ?", self.after)
        if self.before is not None:
            ask("i.taken_at < ?", self.before)
        if self.near is not None:
            latitude, longitude, distance_km = self.near
            # A degree of latitude is 111.2 km; the box only saves computing distances
            margin_deg = distance_km / 111.0 + 0.01
            ask(
                "i.latitude_deg BETWEEN ? AND ? AND distance_km(i.latitude_deg, i.longitude_deg, ?, ?) <= ?",
                *(latitude - margin_deg, latitude + margin_deg, latitude, longitude, distance_km),
            )
        for key, wanted in self.where.items():
            comparison, bound = _comparison(key, wanted)
            by_value = f"i.id IN (SELECT item_id FROM item_facts WHERE key = ? AND {comparison})"
            ask(
                f"EXISTS (SELECT 1 FROM json_each(i.facts) WHERE key = ? AND {comparison})",
                encodable(key),
                *bound,
                find_by=None if wanted is None else by_value,  # of nothing there is no value to find it by
            )
        if not check:
            return None
        return Condition(" AND ".join(check), " AND ".join(find), tuple(values), bool(self.under))


def rank(
    reader: Reader,
    vectors: VectorIndex,
    query: FloatArray,
    words: str,
    filters: Filters,
    *,
    k: int,
    leave_out: frozenset[int] = frozenset(),
) -> list[Hit]:
    """The k best hits of every kind: pictures and passages; fewer only where fewer pass the filters.

    query: (dim,) float32 of length 1. words: what to look for by keyword, or "". leave_out: items that are no answer.
    """
    depth = k + max(MIN_DEPTH, min(k, MOST_DEEPER)) + len(leave_out)
    scores: dict[Kind, dict[int, float]] = {}
    for kind in KINDS:
        ranked = {}
        if filters.kind != "text" or kind == "text":  # no picture is a text
            ranked = _vector_ranking(reader, vectors, kind, query, depth, filters.condition(kind), filters.min_score)
        scores[kind] = {item: score for item, score in ranked.items() if item not in leave_out}
    if words:
        mixed = all(scores.values())
        usual = {kind: vectors.usual_scores(reader, kind, query) if mixed else (0.0, 1.0) for kind in KINDS}
        order = _best_first(reader, by_meaning(scores, usual))
    else:  # who asks with pictures alone wants pictures: texts come after them
        order = list(scores["image"] | scores["text"])
    rankings: dict[Ranking, Sequence[int]] = {kind: list(scores[kind]) for kind in KINDS}
    if match := match_expression(words):
        found = reader.keyword_ranking(match, filters.condition(), depth)
        rankings["keyword"] = [item for item in found if item not in leave_out]
        order = fuse((rankings["keyword"], order))  # a tie goes to the words: they are in the name itself
    return _hits(reader, query, order, rankings, filters.min_score, k, scores)


def rank_texts(reader: Reader, vectors: VectorIndex, query: FloatArray, filters: Filters, *, k: int) -> list[Hit]:
    """The k captions and passages nearest to a query vector; identical texts are one hit."""
    depth, condition = k, filters.condition("text")
    while True:
        ids, _ = vectors.search(reader, "text", query, depth, condition)
        owners = reader.owners("text", ids.tolist())
        order = [owners[vector][0] for vector in ids.tolist() if vector in owners]
        items = reader.shown_items(order)
        best: dict[str, int] = {}  # text -> the first item that says it
        for item in order:
            best.setdefault(items[item][TEXT], item)
        if len(best) >= k or len(ids) < depth:
            first = list(best.values())
            return _hits(reader, query, first, {"text": first}, filters.min_score, k)
        depth *= 2


def fuse(rankings: Iterable[Sequence[int]]) -> list[int]:
    """Items in the order of the sum of 1 / (60 + rank) over the rankings that have them; ties as in the first one."""
    fused: dict[int, float] = {}
    for items in rankings:
        for place, item in enumerate(items, 1):
            fused[item] = fused.get(item, 0.0) + 1 / (RRF_K + place)
    return sorted(fused, key=lambda item: -fused[item])


def by_meaning(
    scores: Mapping[Kind, Mapping[int, float]], usual: Mapping[Kind, tuple[float, float]]
) -> dict[int, float]:
    """Pictures and texts on one scale: how far a score stands out from what is usual for its kind and this query.

    scores: for each kind, item -> cosine. usual: for each kind, mean and standard deviation of the query's cosines with
    all items. In these units the two kinds compare: words and texts are always closer than words and pictures, and one
    note in a folder of photographs is not the second hit of every query.
    """
    standing: dict[int, float] = {}
    for kind, known in scores.items():
        mean, deviation = usual[kind]
        cosines_ = np.fromiter(known.values(), np.float64, len(known))
        stands_out = np.round((cosines_ - mean) / max(deviation, LEAST_DEVIATION), 6).tolist()
        if not standing:
            standing = dict(zip(known, stands_out, strict=True))
            continue
        for item, far in zip(known, stands_out, strict=True):
            standing[item] = max(standing.get(item, far), far)
    return standing


def _best_first(reader: Reader, scores: Mapping[int, float]) -> list[int]:
    """Items by their scores, ties by their paths."""
    items = np.fromiter(scores, np.int64, len(scores))
    order = best_first(items, np.fromiter(scores.values(), np.float64, len(scores)), reader.tie_keys)
    ordered: list[int] = items[order].tolist()
    return ordered


def match_expression(words: str) -> str:
    """An FTS5 expression that asks for every word that says something, or "" if none does.

    Whatever is typed is data: each word goes in as a quoted string, which FTS5 takes apart by its own rules. All words
    are asked for, since a ranking by one common word of a sentence would push good pictures down.
    """
    found = [word for word in encodable(words.replace("\0", " ")).split() if any(letter.isalnum() for letter in word)]
    telling = [word for word in found if word.lower().strip(PUNCTUATION) not in STOP_WORDS] or found
    return " ".join(_phrase(word) for word in telling[:MAX_WORDS])


def _phrase(word: str) -> str:
    # Scripts without spaces are one token from one punctuation mark to the next: match its beginning
    unspaced = any("\u3040" <= letter <= "\u9fff" or "\u0e00" <= letter <= "\u0eff" for letter in word)
    return '"' + word.replace('"', '""') + ('"*' if unspaced else '"')


def _vector_ranking(
    reader: Reader,
    vectors: VectorIndex,
    kind: Kind,
    query: FloatArray,
    depth: int,
    condition: Condition | None,
    min_score: float | None,
) -> dict[int, float]:
    """Hits in the order of their best vector of a kind, with that vector's cosine; a caption stands for its picture.

    As deep as asked for, and deeper while passages of min_score could lie behind captions, which are no scores of hits.
    """
    asked = depth
    while True:
        ids, scores = vectors.search(reader, kind, query, asked, condition)
        owners = reader.owners(kind, ids.tolist())
        best: dict[int, float] = {}
        for vector, score in zip(ids.tolist(), scores.tolist(), strict=True):
            if vector in owners:
                best.setdefault(owners[vector][1], score)
        deep = len(best) >= depth and (kind == "image" or min_score is None or scores[-1] < min_score)
        if deep or len(ids) < asked:
            return best
        asked *= 2


def _hits(
    reader: Reader,
    query: FloatArray,
    order: Sequence[int],
    rankings: Mapping[Ranking, Sequence[int]],
    min_score: float | None,
    k: int,
    known: Mapping[Kind, Mapping[int, float]] = MappingProxyType({}),
) -> list[Hit]:
    """The first k of an order as hits, each scored by its own vector; known: for a kind of hit, scores that were."""
    hits: list[Hit] = []
    by_kind: dict[Kind, Mapping[int, float]] = {kind: known.get(kind, {}) for kind in KINDS}
    for start in range(0, len(order), k):
        part = order[start : start + k]
        items = reader.shown_items(part)
        scores = {number: by_kind[items[number][KIND]].get(number) for number in part}
        stored = reader.vectors([number for number, score in scores.items() if score is None])
        found_by: dict[int, dict[str, int]] = {number: {} for number in part}
        for ranking, ranked in rankings.items():
            for place, number in enumerate(ranked, 1):
                if number in found_by:
                    found_by[number][ranking] = place
        for number, score in scores.items():
            if score is None:
                score = float(cosines(stored[number][None, :], query)[0])
            if min_score is None or score >= min_score:
                hits.append(Hit._make((len(hits) + 1, round(score, 4), *items[number], found_by[number])))
        if len(hits) >= k:
            break
    return hits[:k]


def _is_date(text: str) -> bool:
    if not re.fullmatch(r"\d{4}(-\d{2}(-\d{2})?)?", text):
        return False
    try:
        date.fromisoformat(text + "-01-01"[len(text) - 4 :])  # what is left out is the first month, the first day
    except ValueError:
        return False
    return True


def _comparison(key: str, wanted: object) -> tuple[str, list[object]]:
    """SQL on json_each's `value` with bound values, for one wanted fact."""
    if isinstance(wanted, Mapping):
        if not wanted or not set(wanted) <= set(COMPARISONS):
            raise UsageError(f"where: '{key}' is compared with one of {', '.join(COMPARISONS)}.")
        sql = " AND ".join(f"value {COMPARISONS[sign]} ?" for sign in wanted)
        return sql, [_fact(key, value) for value in wanted.values()]
    if isinstance(wanted, list | tuple | set | frozenset):
        return f"value IN ({', '.join('?' * len(wanted))})", [_fact(key, value) for value in wanted]
    if wanted is None:
        return "value IS NULL", []
    return "value = ?", [_fact(key, wanted)]


def _fact(key: str, value: object) -> object:
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, str | int | float | bool):
        raise UsageError(
            f"where: {shown(key)} is compared with text, numbers, true, false or None, not {shown(value)}."
        )
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UsageError(f"where: {shown(key)} is compared with a number beyond the whole numbers of 64 bits.")
    return encodable(value) if isinstance(value, str) else value
