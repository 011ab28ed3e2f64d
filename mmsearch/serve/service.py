"""What the server holds between requests, and how a request becomes a call of the library."""

import base64
import binascii
import json
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from mmsearch.answers import Answer
from mmsearch.decoding import DecodePool, Skip
from mmsearch.embedding import pixels_of
from mmsearch.errors import Error, MediaError, QueryError, UsageError
from mmsearch.facts import Decoded
from mmsearch.index import Index
from mmsearch.query import Query, Term
from mmsearch.search import Hit
from mmsearch.serve.duplicates import Duplicates
from mmsearch.serve.files import checked, path_of
from mmsearch.serve.maps import Maps
from mmsearch.serve.problems import ProblemError, log
from mmsearch.serve.runs import Runs
from mmsearch.serve.settings import Limits, Settings
from mmsearch.serve.shapes import MOST_DEEP, LookupParams, SearchIn, SearchParams, TermIn
from mmsearch.serve.uploads import Uploads
from mmsearch.serve.work import Work
from mmsearch.thumbnails import Thumbnail, Thumbnails

ModelState = Literal["none", "loading", "ready", "failed"]
DECODE_S = 20.0  # for an uploaded picture; a photograph of 200 megapixels takes 3


@dataclass(frozen=True)
class Page:
    """Some hits of an answer, and where it goes on."""

    hits: list[Hit]
    cursor: str | None
    took_ms: float


class Service:
    """The index and what is around it, for as long as the server runs."""

    def __init__(self, index: Index, settings: Settings) -> None:
        limits = settings.limits
        self.index = index
        self.settings = settings
        self.runs = Runs(index, settings.may_index)
        self.maps = Maps(index)
        self.duplicates = Duplicates(index)
        self.thumbnails = Thumbnails(index.folder)
        self.uploads = Uploads(limits.uploads_bytes)
        self.is_ending = False  # set where the server begins to end: nobody watches a run any longer then
        self._model_state: ModelState = "none"
        self.model_error: str | None = None
        work = partial(Work, seconds=limits.seconds)
        self.searching = work(
            "search", at_once=limits.searches_at_once, waiting=limits.searches_waiting, prepare=_keep_to_one_core
        )
        self.decoding = work("picture", at_once=limits.pictures_at_once, waiting=limits.pictures_waiting)
        self.reading = work("read", at_once=limits.thumbnails_at_once, waiting=limits.thumbnails_waiting)
        self._answers = _OpenAnswers(limits)
        self._making_decoder = threading.Lock()
        self._decoder: DecodePool | None = None

    @property
    def model_state(self) -> ModelState:
        """Whether searches can be answered at once. Who makes an index loads its model for that."""
        return "ready" if self._model_state == "none" and self.index.exists else self._model_state

    def start(self) -> None:
        """Load the model in the background: the server answers before it is there."""
        if self.index.exists:
            self._model_state = "loading"
            threading.Thread(target=self._load, name="mmsearch model", daemon=True).start()

    def close(self) -> None:
        """End what goes on, and give everything back but the index."""
        self.runs.close()
        self.maps.close()
        self.duplicates.close()
        for work in (self.searching, self.decoding, self.reading):
            work.close()
        self.thumbnails.close()
        with self._making_decoder:
            if self._decoder is not None:
                self._decoder.close()

    def _load(self) -> None:
        try:
            self.index.encoder.encode_texts(["the model is ready when it has run"])
            self.index.search("a first search maps the vectors", k=1)
            self._model_state = "ready"
        except Error as error:
            self._model_state, self.model_error = "failed", str(error)
        except Exception:
            log.exception("Loading the model")
            self._model_state, self.model_error = "failed", "A mistake in mmsearch; what the server printed says more."

    async def decode(self, data: bytes | bytearray) -> Decoded:
        """A picture from a stranger, decoded in a process of its own. Raises MediaError."""
        return await self.decoding.run(lambda: self._decode(data))

    def _decode(self, data: bytes | bytearray) -> Decoded:
        with self._making_decoder:
            if self._decoder is None:
                self._decoder = DecodePool(pixels_of(self.index.encoder), timeout_s=DECODE_S)
        ((_, decoded),) = self._decoder.decode([bytes(data)])
        if isinstance(decoded, Skip):
            raise MediaError(f"The picture cannot be read: it {decoded.reason}.")
        return decoded

    async def thumbnail(self, id: str, size_px: int, tag: str | None) -> Thumbnail | None:
        """An item's picture made small; None where the client has it, by its tag. Raises ProblemError."""
        return await self.reading.run(lambda: self._thumbnail(id, size_px, tag))

    def _thumbnail(self, id: str, size_px: int, tag: str | None) -> Thumbnail | None:
        item = self.index.item(id)
        if item.kind != "image" or item.path is None:
            raise ProblemError("not-found", f"'{id}' is a text, or came from memory; there is no picture of it.")
        with checked(item) as (stream, facts, check), stream:
            now = self.thumbnails.tag(item.path, size_px, facts)
            assert now is not None  # it is there
            if now == tag:
                return None
            kept = self.thumbnails.kept(now)
            if kept is not None:
                return kept
            check()
            with path_of(stream) as path:
                made = self.thumbnails.make(path, size_px, now)
        if isinstance(made, Skip):
            raise ProblemError("gone", f"{item.path} {made.reason}. Index its folder again.")
        return made

    async def page(self, query: Query | None, asked: SearchParams | SearchIn) -> Page:
        """A page of hits: the first of a new answer, or the one where the cursor goes on.

        query: None where there is only a cursor.
        """
        started = time.perf_counter()
        page, cursor = await self.searching.run(lambda: self._page(query, asked))
        return Page(page, cursor, _milliseconds_since(started))

    def _page(self, query: Query | None, asked: SearchParams | SearchIn) -> tuple[list[Hit], str | None]:
        key, start = _position(asked.cursor) if asked.cursor else ("", 0)
        answer = self._answers.get(key)
        if answer is None:
            if query is None:
                raise ProblemError("gone", "The answer that the cursor belongs to is not kept any more. Search again.")
            search = partial(self.index.search, query, **_filters(asked))
            count = start + asked.k + 1  # one more tells whether there is a next page
            answer = Answer(lambda k: search(k=k), min(count, MOST_DEEP))
            key = self._answers.put(answer)
        end = min(start + asked.k, MOST_DEEP)
        hits, has_more = answer.page(start, max(end - start, 0))
        return hits, f"{key}.{end}" if has_more and end < MOST_DEEP else None

    async def lookup(self, query: Query, asked: LookupParams) -> Page:
        """The texts that fit a picture."""
        started = time.perf_counter()
        where = _where(asked.where)
        hits = await self.searching.run(
            lambda: self.index.lookup(query, k=asked.k, under=asked.under, min_score=asked.min_score, where=where)
        )
        return Page(hits, None, _milliseconds_since(started))

    async def query(self, asked: SearchParams | SearchIn, picture: bytes | bytearray | None = None) -> Query | None:
        """What is asked for; None where there is no more than a cursor."""
        terms = list(Query.parse(asked.q, opens_files=False).terms) if asked.q.strip() else []
        if picture is not None:
            terms.append(Term(getattr(asked, "weight", 1.0), picture=await self.decode(picture)))
        for term in getattr(asked, "terms", ()):
            terms.append(await self._term(term))
        query = Query(tuple(terms)).refined(like=asked.like, unlike=asked.unlike)
        if query.terms or not asked.cursor:
            return query
        return None

    async def _term(self, term: TermIn) -> Term:
        given = [name for name in ("words", "item", "vector", "picture") if getattr(term, name) is not None]
        if len(given) != 1:
            raise QueryError("A term has exactly one of words, item, vector and picture.")
        if term.vector is not None:
            return Term(term.weight, vector=_vector(term.vector))
        if term.picture is not None:
            return Term(term.weight, picture=await self.decode(_base64(term.picture)))
        return Term(term.weight, words=term.words, item=term.item)


class _OpenAnswers:
    """Answers that may be paged further, those that were read last; as many as memory has room for."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._answers: OrderedDict[str, Answer] = OrderedDict()

    def get(self, key: str) -> Answer | None:
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
            return self._answers.get(key)

    def put(self, answer: Answer) -> str:
        key = secrets.token_urlsafe(9)
        with self._lock:
            self._answers[key] = answer
            while len(self._answers) > self._limits.open_answers or (
                len(self._answers) > 1 and sum(map(len, self._answers.values())) > self._limits.open_hits
            ):
                self._answers.popitem(last=False)
        return key


def _keep_to_one_core() -> None:
    """For a thread that searches beside others: those that FAISS would start for each wait for one another spinning.

    32 clients, 100,000 items, two busy cores: 41 to 63 searches/s with one, 7 to 54 with as many as there are cores.
    """
    import faiss

    faiss.omp_set_num_threads(1)


def _position(cursor: str) -> tuple[str, int]:
    key, _, start = cursor.partition(".")
    return key, int(start)


def _filters(asked: SearchParams | SearchIn) -> dict[str, Any]:
    near = asked.near
    return {
        "kind": asked.kind,
        "under": asked.under,
        "after": asked.after,
        "before": asked.before,
        "near": tuple(float(part) for part in near.split(",")) if isinstance(near, str) else near,
        "min_score": asked.min_score,
        "where": _where(asked.where),
    }


def _where(where: str | dict[str, Any] | None) -> dict[str, Any]:
    if not isinstance(where, str):
        return where or {}
    try:
        facts = json.loads(where)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise UsageError('The facts in "where" are a JSON object, as {"price": {"<": 50}}.')
    return facts


def _vector(numbers: list[float]) -> np.ndarray[Any, np.dtype[np.float32]]:
    with np.errstate(over="ignore"):
        return np.array(numbers, np.float32)  # what is too large becomes infinite, and is refused for that


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("A 'picture' is a picture file in base64.") from None


def _milliseconds_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 1)
