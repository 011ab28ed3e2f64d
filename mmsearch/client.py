"""Client: the calls of Index, answered by a server.

    with mmsearch.Client("http://127.0.0.1:8765") as index:
        for hit in index.search("a red bicycle in the snow", k=5):
            print(hit.path, hit.score)

A query is read here, so that pictures it names are files of this machine; they are sent along. What is raised is what
Index raises, and ServerError where nobody answers.
"""

import base64
import dataclasses
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from mmsearch import arguments, errors
from mmsearch.arguments import (
    checked,
    count,
    day,
    function,
    mapping,
    near,
    number,
    one_of,
    optional,
    paths,
    seconds,
    spelled,
    text,
    texts,
)  # fmt: skip
from mmsearch.decoding import Skip
from mmsearch.duplicates import THRESHOLD, Copy, Group
from mmsearch.encoders.base import FloatArray
from mmsearch.errors import Error, MediaError, QueryError, ServerError, UsageError, in_a_line
from mmsearch.facts import Decoded
from mmsearch.index import Status
from mmsearch.ingest import Progress
from mmsearch.items import Item
from mmsearch.map import Map
from mmsearch.planning import Report
from mmsearch.query import Asked, Picture, Query, Term, picture
from mmsearch.search import Hit
from mmsearch.store.records import FileRow, Kind

PAGE = 500  # hits; the most that the server gives at once
TEXTS_AT_ONCE = 64
TIMEOUT_S = 60.0
SEEN_EVERY_S = 0.3


class Client:
    """An index behind `mmsearch serve`. Safe to use from several threads; close it, or use it in a `with`.

    url: where it is served. token: what the server printed, where it is not for its own machine alone; None takes
    $MMSEARCH_TOKEN. Not over HTTP are add_images, add_texts and remove: the server takes in folders alone.
    """

    @checked(url=spelled, token=optional(spelled), timeout_s=seconds)
    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        import httpx2  # here: importing mmsearch for an Index should not cost what HTTP does

        token = token or os.environ.get("MMSEARCH_TOKEN")
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self.url = url.rstrip("/")
        try:
            self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False)
        except (httpx2.InvalidURL, ValueError) as error:
            raise UsageError(
                f"{arguments.shown(url)} and the token are none for a server: {in_a_line(error)}."
            ) from error
        self._failures: tuple[type[Exception], ...] = (httpx2.TransportError, httpx2.InvalidURL)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    @property
    def exists(self) -> bool:
        """Whether anything was indexed yet."""
        return bool(self._get("/api/status")["exists"])

    @checked(
        k=count,
        kind=optional(one_of("image", "text")),
        after=optional(day),
        before=optional(day),
        near=optional(near),
        min_score=optional(number),
        where=optional(mapping),
    )
    def search(
        self,
        query: Asked,
        *,
        k: int = 10,
        kind: Kind | None = None,
        under: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        after: str | None = None,
        before: str | None = None,
        near: tuple[float, float, float] | None = None,
        min_score: float | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[Hit]:
        """As Index.search."""
        asked: dict[str, Any] = {"terms": [_term(term) for term in Query.of(query).terms]}
        filters = {"kind": kind, "after": after, "before": before, "near": near, "min_score": min_score}
        asked |= {name: value for name, value in filters.items() if value is not None}
        asked |= {"under": _folders(under), "where": dict(where or {})}
        hits: list[Hit] = []
        cursor: str | None = None
        while len(hits) < k:
            page = self._post("/api/search", asked | {"k": min(k - len(hits), PAGE), "cursor": cursor})
            hits += [_hit(hit) for hit in page["hits"]]
            cursor = page["cursor"]
            if cursor is None:
                break
        return hits

    @checked(k=count, min_score=optional(number), where=optional(mapping))
    def lookup(
        self,
        image: Asked,
        *,
        k: int = 10,
        under: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        min_score: float | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[Hit]:
        """As Index.lookup, for a picture or Query.of_item; at most 500 hits."""
        query = image if isinstance(image, Query) else Query.of_picture(picture(image))
        params: dict[str, Any] = {"k": min(k, PAGE), "under": _folders(under)}
        params |= {} if min_score is None else {"min_score": min_score}
        params |= {"where": json.dumps(dict(where))} if where else {}
        (term, *others) = query.terms
        if others or (term.item is None and term.picture is None):
            raise UsageError("Over HTTP, lookup takes one picture or one item.")
        if term.item is not None:
            return [_hit(hit) for hit in self._get("/api/lookup", params | {"like": term.item})["hits"]]
        assert term.picture is not None
        return [_hit(hit) for hit in self._send("/api/lookup", _file(term.picture), params)["hits"]]

    @checked(id=spelled)
    def item(self, id: str) -> Item:
        """As Index.item; modified_ns is exact to the microsecond."""
        said = self._get(f"/api/items/{quote(id, safe='')}")
        modified = said.pop("modified_at")
        del said["file_is_there"]
        return Item(
            **said | {"captions": tuple(said["captions"])},
            modified_ns=None if modified is None else round(datetime.fromisoformat(modified).timestamp() * 1e6) * 1000,
        )

    def encode(self, query: Asked) -> FloatArray:
        """As Index.encode, for words, pictures and vectors; (dim,) float32 of length 1."""
        return Query.of(query).vector(self._encode_texts, self._encode_pictures, _no_items)

    def status(self) -> Status:
        """As Index.status; of a skipped file its path and reason alone, and of many the first thousand."""
        said = self._get("/api/status")
        names = {field.name for field in dataclasses.fields(Status)}
        skipped = (FileRow(0, skip["path"], "image", 0, None, None, skip["reason"]) for skip in said["skipped"])
        known = {name: value for name, value in said.items() if name in names}
        known |= {"roots": tuple(said["roots"]), "skipped": tuple(skipped)}
        return Status(**known | {"model": said["model"] or "", "dim": said["dim"] or 0})

    @checked(threshold=number, progress=function)
    def duplicates(
        self,
        *,
        threshold: float = THRESHOLD,
        under: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        progress: Callable[[Progress], None] = lambda progress: None,
    ) -> list[Group]:
        """As Index.duplicates; the server goes on where `progress` raises."""
        if not 0 < threshold <= 1:  # JSON has no NaN
            raise UsageError(f"threshold is a likeness above 0, and 1 at the most, not {threshold:g}.")
        said = self._post("/api/duplicates", {"threshold": threshold, "under": _folders(under)})
        number, groups = said["number"], list[Group]()
        while said["state"] == "running":
            time.sleep(SEEN_EVERY_S)
            said = self._get("/api/duplicates", {"k": 1})
            progress(Progress(said["done"], said["total"], said["skipped"]))
        said = self._get("/api/duplicates", {"k": PAGE})
        while True:
            if said["number"] != number or said["state"] != "done":
                raise ServerError(said["error"] or "Somebody else asked for other duplicates. Ask again.")
            groups += [Group(tuple(Copy(**copy) for copy in group["copies"])) for group in said["groups"]]
            if said["cursor"] is None:
                return groups
            said = self._get("/api/duplicates", {"k": PAGE, "cursor": said["cursor"]})

    @checked(query=text, like=texts, unlike=texts)
    def add_feedback(self, query: str, *, like: Sequence[str] = (), unlike: Sequence[str] = ()) -> int:
        """As Index.add_feedback."""
        return int(self._post("/api/feedback", {"query": query, "like": list(like), "unlike": list(unlike)})["kept"])

    def feedback(self) -> list[tuple[str, str, bool]]:
        """As Index.feedback; of many the first thousand."""
        return [(one["query"], one["id"], one["match"]) for one in self._get("/api/feedback")["judgements"]]

    @checked(progress=function)
    def map(self, *, progress: Callable[[float], None] = lambda share: None) -> Map:
        """As Index.map, made by the server; points are exact to a 65,535th of the map."""
        state = self._ask("POST", "/api/map")
        while state["state"] == "running":
            progress(state["progress"])
            time.sleep(SEEN_EVERY_S)
            state = self._get("/api/map")
        if state["error"] is not None:
            raise Error(state["error"])
        content = self._answer("GET", "/api/map/points").content
        progress(1.0)
        return _map(content, is_current=state["is_current"])

    @checked(sources=paths, progress=function)
    def add(
        self, *sources: str | os.PathLike[str], progress: Callable[[Progress], None] = lambda progress: None
    ) -> Report:
        """As Index.add, for folders of the server's machine that it was started to allow.

        What `progress` raises cancels the run and is raised.
        """
        number = self._post("/api/index", {"folders": _folders(sources)})["number"]
        try:
            for run in self._events():
                if run["number"] == number:
                    progress(Progress(run["done"], run["total"], run["skipped"]))
                    if run["state"] != "running":
                        return _report(run)
        except BaseException:
            self._cancel()
            raise
        raise ServerError(f"{self.url} ended while it was indexing. What was read is kept.")

    def _cancel(self) -> None:
        """End the run, and wait until it has ended, so that the next can begin."""
        run = self._ask("DELETE", "/api/index")["run"]
        while run["state"] == "running":
            time.sleep(0.05)
            run = self._get("/api/index")["run"]

    # HTTP

    def _events(self) -> Iterator[dict[str, Any]]:
        try:
            with self._http.stream("GET", "/api/index/events") as stream:
                for line in stream.iter_lines():
                    if line.startswith("data: "):
                        yield json.loads(line[6:])
        except self._failures as error:
            raise self._unreachable(error) from error

    def _encode_texts(self, texts: Sequence[str]) -> FloatArray:
        rows: list[list[float]] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            rows += self._post("/api/encode", {"texts": list(texts[start : start + TEXTS_AT_ONCE])})["vectors"]
        return np.array(rows, np.float32)

    def _encode_pictures(self, pictures: Sequence[Picture]) -> FloatArray:
        return np.array([self._send("/api/encode", _file(one), {})["vectors"][0] for one in pictures], np.float32)

    def _get(self, path: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self._ask("GET", path, params=params)

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        content = json.dumps(body).encode()
        return self._ask("POST", path, content=content, headers={"content-type": "application/json"})

    def _send(self, path: str, file: bytes, params: Mapping[str, Any]) -> dict[str, Any]:
        return self._ask(
            "POST", path, content=file, params=params, headers={"content-type": "application/octet-stream"}
        )

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        said: dict[str, Any] = self._answer(method, path, **options).json()
        return said

    def _answer(self, method: str, path: str, **options: Any) -> Any:
        try:
            answer = self._http.request(method, path, **options)
        except self._failures as error:
            raise self._unreachable(error) from error
        except UnicodeEncodeError as error:
            raise UsageError("Over HTTP, paths and texts are such that UTF-8 can write them.") from error
        if answer.is_success:
            return answer
        raise _error(answer)

    def _unreachable(self, error: Exception) -> ServerError:
        return ServerError(f"{self.url} does not answer ({in_a_line(error)}). Start it with: mmsearch serve")


def _error(answer: Any) -> Error:
    """What the library raised on the other side."""
    try:
        problem = answer.json()
        detail, name = str(problem["detail"]), problem.get("error")
    except (ValueError, KeyError, TypeError):  # a proxy, or another program at that address
        return ServerError(f"{answer.url} is answered with status {answer.status_code} and without a reason.")
    kind = getattr(errors, name, None) if isinstance(name, str) else None
    if isinstance(kind, type) and issubclass(kind, Error):
        return kind(detail)
    if answer.status_code in (400, 413, 415, 422):
        return UsageError(detail)
    return ServerError(detail)


def _term(term: Term) -> dict[str, Any]:
    said: dict[str, Any] = {"weight": term.weight}
    if term.picture is not None:
        return said | {"picture": base64.b64encode(_file(term.picture)).decode()}
    if term.vector is not None:
        return said | {"vector": [float(number) for number in term.vector]}
    return said | ({"item": term.item} if term.item is not None else {"words": term.words})


def _file(shown: Picture) -> bytes:
    """A picture as the bytes of a file."""
    if isinstance(shown, bytes):
        return shown
    if isinstance(shown, str):
        try:
            with open(shown, "rb") as file:
                return file.read()
        except OSError as error:
            raise QueryError(f"{shown} cannot be opened: {error.strerror or error}.") from error
    image = Image.fromarray(shown.pixels) if isinstance(shown, Decoded) else shown
    buffer = io.BytesIO()
    try:
        (image if image.mode in ("L", "RGB", "RGBA", "P", "1") else image.convert("RGB")).save(buffer, "PNG")
    except (OSError, ValueError) as error:  # of a file that is read only now; of an image without pixels
        raise MediaError(f"The picture cannot be read: {in_a_line(error)}.") from error
    return buffer.getvalue()


def _hit(said: Mapping[str, Any]) -> Hit:
    return Hit(**{**said, "score": float("nan") if said["score"] is None else said["score"]})


def _map(content: bytes, *, is_current: bool) -> Map:
    """Points as /api/map/points has them."""
    count = len(content) // 9
    items = np.frombuffer(content, "<u4", count).astype(np.int64)
    x, y = np.frombuffer(content, "<u2", 2 * count, 4 * count).reshape(2, count)
    is_text = np.frombuffer(content, "u1", count, 8 * count).astype(bool)
    return Map(items, is_text, np.stack([x, y], axis=1).astype(np.float32) / np.float32(65535), is_current)


def _report(run: Mapping[str, Any]) -> Report:
    if run["state"] == "cancelled":
        raise Error("The run was cancelled. What was read is kept.")
    if run["report"] is None:
        raise Error(run["error"])
    said = {name: value for name, value in run["report"].items() if name not in ("skipped", "skipped_total")}
    return Report(**said, skipped=[Skip(skip["path"], skip["reason"]) for skip in run["report"]["skipped"]])


def _folders(under: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    return [os.path.abspath(os.fsdecode(folder)) for folder in arguments.paths("under", under)]


def _no_items(ids: Sequence[str]) -> FloatArray:
    raise UsageError("Over HTTP, the vector of an item cannot be had; search with it instead.")
