"""The routes: what comes in is checked by `shapes`, what is done is a call of `service`, what goes out is JSON."""

import asyncio
import contextlib
import json
import shlex
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import blake2b
from importlib.resources import files as package_files
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi import Path as InPath
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.types import ASGIApp

from mmsearch import __version__
from mmsearch import query as library_query
from mmsearch.errors import SourceError
from mmsearch.items import Item
from mmsearch.present import finite, hit_object, status_object
from mmsearch.search import Hit
from mmsearch.serve import shapes
from mmsearch.serve.bodies import InvalidBodyError, is_json, json_body, picture
from mmsearch.serve.files import is_there, open_item, zipped
from mmsearch.serve.guard import Guard, same
from mmsearch.serve.metrics import Metrics
from mmsearch.serve.problems import MEDIA_TYPE, Problem, ProblemError, answer_with_problems, invalid_parts
from mmsearch.serve.runs import Run
from mmsearch.serve.service import Page, Service

SHOWN_SKIPS = 1_000
SHOWN_JUDGEMENTS = 1_000
WRITE_WAIT_S = 2.0  # for somebody else's write to end; a run that indexes is told of instead
THUMBNAIL_SIZES = (320, 640, 1600)  # px; few, so that few are made
SEEN_EVERY_S = 0.2  # how often a run is looked at for whoever watches it
BEAT_S = 15.0  # so that nothing between takes a quiet stream for a dead one
IMAGES = ("image/*", "application/octet-stream")
PAGE_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/manifest+json",
}
_FIRST = "$response.body#/hits/0/id"
_TO_ITEMS: dict[int | str, dict[str, Any]] = {  # what a hit's id is good for, in OpenAPI
    200: {
        "description": "A page of hits.",
        "links": {
            **{name: {"operationId": name, "parameters": {"id": _FIRST}} for name in ("item", "thumbnail", "file")},
            "lookup": {"operationId": "lookup", "parameters": {"like": _FIRST}},
            "more like it": {"operationId": "search", "parameters": {"like": _FIRST}},
            "next page": {"operationId": "search", "parameters": {"cursor": "$response.body#/cursor"}},
            "zip": {"operationId": "zip", "requestBody": {"ids": [_FIRST]}},
        },
    }
}
ItemId = Annotated[str, InPath(min_length=1, max_length=500, description="As a hit has it.", examples=["mm-15"])]


class Escaped(JSONResponse):
    """JSON in ASCII: a path may hold bytes that are not UTF-8, as Python's lone surrogates."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def make_app(service: Service) -> ASGIApp:
    """The server, as ASGI."""
    metrics = Metrics(service.index)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="mmsearch",
        version=__version__,
        description="Search pictures and texts by meaning. Errors are problem details (RFC 9457).",
        openapi_url="/api/openapi.json",
        docs_url=None,  # they come from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        default_response_class=Escaped,
        generate_unique_id_function=lambda route: route.name,
        responses={"default": {"description": "What is wrong.", "content": {MEDIA_TYPE: {"schema": _ref(Problem)}}}},
    )
    answer_with_problems(app)
    _search_routes(app, service)
    _item_routes(app, service)
    _index_routes(app, service)
    _feedback_routes(app, service)
    _map_routes(app, service)
    _duplicates_routes(app, service)
    _server_routes(app, service, metrics)
    _page_routes(app)
    _complete_openapi(app)
    return Guard(app, service.settings, metrics, service.uploads)


def _search_routes(app: FastAPI, service: Service) -> None:
    @app.get("/api/search", response_model=shapes.PageOut, tags=["search"], responses=_TO_ITEMS)
    async def search(params: Annotated[shapes.SearchParams, Query()]) -> Response:
        """Find items by words, and by items that they should be like or unlike."""
        return _page(await service.page(await service.query(params), params))

    @app.post(
        "/api/search",
        response_model=shapes.PageOut,
        tags=["search"],
        responses=_TO_ITEMS,
        openapi_extra=_body(shapes.SearchIn, IMAGES),
    )
    async def search_by_picture_or_vector(
        request: Request, params: Annotated[shapes.PictureParams, Query()]
    ) -> Response:
        """Find items by a picture (the body is its file, everything else in the address) or by JSON with terms."""
        if is_json(request):
            asked = await json_body(request, shapes.SearchIn, service)
            return _page(await service.page(await service.query(asked), asked))
        return _page(await service.page(await service.query(params, await picture(request, service)), params))

    @app.get("/api/lookup", response_model=shapes.HitsOut, tags=["search"])
    async def lookup(params: Annotated[shapes.ItemLookupParams, Query()]) -> Response:
        """The captions and passages that fit an item best."""
        return _hits(await service.lookup(library_query.Query.of_item(params.like), params))

    @app.post("/api/lookup", response_model=shapes.HitsOut, tags=["search"], openapi_extra=_body(None, IMAGES))
    async def lookup_by_picture(request: Request, params: Annotated[shapes.LookupParams, Query()]) -> Response:
        """The captions and passages that fit a picture best; the body is its file."""
        shown = await service.decode(await picture(request, service))
        return _hits(await service.lookup(library_query.Query.of_picture(shown), params))

    @app.post(
        "/api/encode", response_model=shapes.VectorsOut, tags=["search"], openapi_extra=_body(shapes.EncodeIn, IMAGES)
    )
    async def encode(request: Request) -> Response:
        """Texts, or a picture, as vectors in the space of the index."""
        if is_json(request):
            asked = await json_body(request, shapes.EncodeIn, service)
            queries = [library_query.Query.words(text) for text in asked.texts]
        else:
            queries = [library_query.Query.of_picture(await service.decode(await picture(request, service)))]
        rows = await service.searching.run(lambda: [service.index.encode(query) for query in queries])
        name, dim = service.index.encoder.name, service.index.encoder.dim
        return Escaped({"model": name, "dim": dim, "vectors": [row.tolist() for row in rows]})


def _item_routes(app: FastAPI, service: Service) -> None:
    async def found(id: str) -> Item:
        return await service.reading.run(lambda: service.index.item(id))

    @app.get(
        "/api/items/{id:path}/thumbnail",
        tags=["items"],
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}, "description": "A JPEG."}, 304: {"description": "Unchanged."}},
    )
    async def thumbnail(
        request: Request, id: ItemId, size: Annotated[int, Query(json_schema_extra={"enum": THUMBNAIL_SIZES})] = 320
    ) -> Response:
        """The picture, its longer side at most `size` pixels; made once and kept."""
        if size not in THUMBNAIL_SIZES:
            raise ProblemError("invalid", f"'size' is one of {', '.join(map(str, THUMBNAIL_SIZES))}.")
        held = request.headers.get("if-none-match", "").strip('"') or None
        headers = {"cache-control": "private, max-age=600, stale-while-revalidate=86400"}
        made = await service.thumbnail(id, size, held)
        if made is None:
            return Response(status_code=304, headers={**headers, "etag": f'"{held}"'})
        return Response(made.jpeg, media_type="image/jpeg", headers={**headers, "etag": f'"{made.tag}"'})

    @app.get(
        "/api/items/{id:path}/file",
        tags=["items"],
        response_class=Response,
        responses={200: {"content": {"*/*": {}}, "description": "The file. Only pictures of pixels are shown inline."}},
    )
    async def file(id: ItemId) -> Response:
        """The file of an item, as it is."""
        item = await found(id)
        opened = await service.reading.run(lambda: open_item(item))
        headers = {"content-disposition": opened.disposition, "content-length": str(opened.size_bytes)}
        return StreamingResponse(opened.chunks(), media_type=opened.media_type, headers=headers)

    @app.get("/api/items/{id:path}", response_model=shapes.ItemOut, tags=["items"])
    async def item(id: ItemId) -> Response:
        """All that is known about an item."""
        return Escaped(_item_object(await found(id)))

    @app.post("/api/items", response_model=shapes.ItemsOut, tags=["items"], openapi_extra=_body(shapes.IdsIn))
    async def items(request: Request) -> Response:
        """All that is known about several items, in the order of their ids."""
        asked = await json_body(request, shapes.IdsIn, service)
        return Escaped(
            {"items": await service.reading.run(lambda: [_item_object(service.index.item(id)) for id in asked.ids])}
        )

    @app.post(
        "/api/zip",
        tags=["items"],
        response_class=Response,
        responses={200: {"content": {"application/zip": {}}, "description": "A zip, as it grows."}},
        openapi_extra=_body(shapes.ZipIn),
    )
    async def zip(request: Request) -> Response:
        """The files of a selection as one zip, in their folders; what cannot be read is listed in it."""
        asked = await json_body(request, shapes.ZipIn, service)
        items = await service.reading.run(lambda: [service.index.item(id) for id in dict.fromkeys(asked.ids)])
        headers = {"content-disposition": 'attachment; filename="mmsearch.zip"'}
        limit = service.settings.limits.zip_bytes
        archive = await service.reading.run(lambda: zipped(items, limit))
        return StreamingResponse(archive, media_type="application/zip", headers=headers)


def _index_routes(app: FastAPI, service: Service) -> None:
    watching = 0

    @app.get("/api/status", response_model=shapes.StatusOut, tags=["index"])
    async def status() -> Response:
        """What the index holds, every skipped file with its reason, and whether the model is loaded."""
        return Escaped(await service.reading.run(lambda: _status(service)))

    @app.get("/api/index", response_model=shapes.IndexOut, tags=["index"])
    async def index_state() -> Response:
        """Which folders may be indexed, and the run that goes on or was last."""
        run = service.runs.last
        return Escaped({"allowed": list(service.settings.allowed), "run": None if run is None else _run(run)})

    @app.post(
        "/api/index", status_code=202, response_model=shapes.RunOut, tags=["index"], openapi_extra=_body(shapes.IndexIn)
    )
    async def start_index(request: Request) -> Response:
        """Put folders into the index, or bring them up to date; only those that the server was started to allow."""
        asked = await json_body(request, shapes.IndexIn, service)
        for folder in asked.folders:
            if not service.settings.may_index(folder):
                raise ProblemError(
                    "forbidden",
                    f"{folder} may not be indexed from here. Start the server with --allow {shlex.quote(folder)}",
                )
        return Escaped(_run(service.runs.start(asked.folders)), 202)

    @app.delete("/api/index", response_model=shapes.IndexOut, tags=["index"])
    async def cancel_index() -> Response:
        """End the run that goes on; what it has read is kept."""
        service.runs.cancel()
        return await index_state()

    @app.get(
        "/api/index/events",
        tags=["index"],
        response_class=Response,
        responses={200: {"content": {"text/event-stream": {}}, "description": "A run after each change, as it ends."}},
    )
    async def index_events() -> Response:
        """The run as server-sent events, each a run as /api/index has it, until it has ended."""
        if watching >= service.settings.limits.event_streams:
            raise ProblemError("busy", "Too many watch already. Ask /api/index now and then instead.")

        async def events() -> AsyncIterator[str]:
            nonlocal watching
            watching += 1
            try:
                async for event in _events(service):
                    yield event
            finally:
                watching -= 1

        return StreamingResponse(events(), media_type="text/event-stream")


def _feedback_routes(app: FastAPI, service: Service) -> None:
    @app.get("/api/feedback", response_model=shapes.FeedbackOut, tags=["feedback"])
    async def feedback() -> Response:
        """What people said of answers."""
        kept = await service.reading.run(service.index.feedback)
        shown = [{"query": query, "id": id, "match": match} for query, id, match in kept[:SHOWN_JUDGEMENTS]]
        return Escaped({"kept": len(kept), "judgements": shown})

    @app.post("/api/feedback", response_model=shapes.KeptOut, tags=["feedback"], openapi_extra=_body(shapes.FeedbackIn))
    async def add_feedback(request: Request) -> Response:
        """Keep what somebody says of answers, for the next training of heads; no answer changes by it now."""
        asked = await json_body(request, shapes.FeedbackIn, service)
        kept = await service.reading.run(
            lambda: service.index.add_feedback(asked.query, like=asked.like, unlike=asked.unlike, wait_s=WRITE_WAIT_S)
        )
        return Escaped({"kept": kept})


def _map_routes(app: FastAPI, service: Service) -> None:
    async def state() -> dict[str, Any]:
        return await service.reading.run(service.maps.state)

    @app.get("/api/map", response_model=shapes.MapOut, tags=["map"])
    async def map_state() -> Response:
        """Whether there is a map of the collection, whether it is up to date, and how far the work on it is."""
        return Escaped(await state())

    @app.post("/api/map", status_code=202, response_model=shapes.MapOut, tags=["map"])
    async def make_map() -> Response:
        """Make the map, or bring it up to date, in the background; nothing happens where it is."""
        await service.reading.run(service.maps.start)
        return Escaped(await state(), 202)

    @app.get(
        "/api/map/points",
        tags=["map"],
        response_class=Response,
        responses={
            200: {
                "content": {"application/octet-stream": {}},
                "description": "Of n items, little-endian, one after the other: n uint32, the number in an id like "
                "mm-42; n uint16 x and n uint16 y, of which 65535 is the right and lower edge; n uint8, 1 for a text.",
            },
            304: {"description": "Unchanged."},
        },
    )
    async def map_points(request: Request) -> Response:
        """The map's points as they were made last."""
        content, tag = await service.reading.run(service.maps.points)
        headers = {"etag": f'"{tag}"', "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type="application/octet-stream", headers=headers)


def _duplicates_routes(app: FastAPI, service: Service) -> None:
    @app.get("/api/duplicates", response_model=shapes.DuplicatesOut, tags=["duplicates"])
    async def duplicates(params: Annotated[shapes.DuplicatesParams, Query()]) -> Response:
        """How far the search for duplicates is, and its groups once it is done, without what has changed since."""
        return Escaped(await service.reading.run(lambda: service.duplicates.page(params.k, params.cursor)))

    @app.post(
        "/api/duplicates",
        status_code=202,
        response_model=shapes.DuplicatesOut,
        tags=["duplicates"],
        openapi_extra=_body(shapes.DuplicatesIn),
    )
    async def find_duplicates(request: Request) -> Response:
        """Look for pictures that are one, in the background."""
        asked = await json_body(request, shapes.DuplicatesIn, service)
        await service.reading.run(lambda: service.duplicates.start(asked.threshold, asked.under))
        return Escaped(await service.reading.run(lambda: service.duplicates.page(1, None)), 202)


def _server_routes(app: FastAPI, service: Service, metrics: Metrics) -> None:
    settings = service.settings

    @app.post(
        "/api/session", status_code=204, response_class=Response, tags=["server"], openapi_extra=_body(shapes.TokenIn)
    )
    async def log_in(request: Request) -> Response:
        """Exchange the token for a cookie, for a browser."""
        asked = await json_body(request, shapes.TokenIn, service)
        if settings.token is not None and not same(asked.token, settings.token):
            raise ProblemError("token-needed", "This is not the token that the server printed when it started.")
        answer = Response(status_code=204)
        if settings.token is not None:
            answer.set_cookie(settings.cookie, settings.token, httponly=True, samesite="strict", path="/")
        return answer

    @app.get("/healthz", response_model=shapes.HealthOut, tags=["server"])
    async def healthz() -> Response:
        """Whether the server answers."""
        return Escaped({"status": "ok"})

    @app.get(
        "/metrics",
        tags=["server"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "For Prometheus."}},
    )
    async def prometheus() -> Response:
        """Counters for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _page_routes(app: FastAPI) -> None:
    """The page's own files, read once; nothing else can be named."""
    kept = {
        entry.name: (entry.read_bytes(), PAGE_TYPES[entry.name[entry.name.rindex(".") :]])
        for entry in package_files("mmsearch.serve").joinpath("page").iterdir()
        if entry.is_file()
    }
    tags = {name: f'"{blake2b(content, digest_size=12).hexdigest()}"' for name, (content, _) in kept.items()}

    def send(request: Request, name: str) -> Response:
        content, media_type = kept[name]
        headers = {"etag": tags[name], "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return send(request, "index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def part_of_page(request: Request, name: str) -> Response:
        if name not in kept:
            raise ProblemError("not-found", f"The page has no part of the name {name}.")
        return send(request, name)


# Answers


def _page(page: Page) -> Response:
    return Escaped({"hits": _hit_objects(page.hits), "cursor": page.cursor, "took_ms": page.took_ms})


def _hits(page: Page) -> Response:
    return Escaped({"hits": _hit_objects(page.hits), "took_ms": page.took_ms})


def _hit_objects(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    return [hit_object(hit) for hit in hits]


def _item_object(item: Item) -> dict[str, Any]:
    modified = None
    if item.modified_ns is not None:
        with contextlib.suppress(ValueError, OverflowError, OSError):  # of a year that has more than four figures
            modified = datetime.fromtimestamp(item.modified_ns / 1e9, UTC)
    return {
        "kind": item.kind,
        "id": item.id,
        "path": item.path,
        "text": item.text,
        "line": item.line,
        "width": item.width,
        "height": item.height,
        "format": item.format,
        "taken_at": item.taken_at,
        "camera": item.camera,
        "latitude_deg": finite(item.latitude_deg),
        "longitude_deg": finite(item.longitude_deg),
        "facts": finite(item.facts),
        "captions": list(item.captions),
        "size_bytes": item.size_bytes,
        "modified_at": None if modified is None else modified.isoformat(),
        "file_is_there": is_there(item),
    }


def _status(service: Service) -> dict[str, Any]:
    try:
        status = status_object(service.index.status())
    except SourceError:  # nothing was indexed yet
        status = {
            "folder": str(service.index.folder),
            "model": None,
            "dim": None,
            "heads": None,
            "images": 0,
            "passages": 0,
            "captions": 0,
            "size_bytes": 0,
            "updated_at": None,
            "roots": [],
            "skipped": [],
        }
    return {
        **status,
        "exists": status["model"] is not None,
        "skipped": status["skipped"][:SHOWN_SKIPS],
        "skipped_total": len(status["skipped"]),
        "model_state": service.model_state,
        "model_error": service.model_error,
        "version": __version__,
    }


def _run(run: Run) -> dict[str, Any]:
    report = run.report
    return {
        "number": run.number,
        "state": run.state,
        "folders": list(run.folders),
        "done": run.progress.done,
        "total": run.progress.total,
        "skipped": run.progress.skipped,
        "seconds": round(run.seconds, 1),
        "error": run.error,
        "report": None
        if report is None
        else {
            **report.counts,
            "skipped": [{"path": skip.path, "reason": skip.reason} for skip in report.skipped[:SHOWN_SKIPS]],
            "skipped_total": len(report.skipped),
            "missing": report.missing,
            "seconds": round(report.seconds, 1),
        },
    }


async def _events(service: Service) -> AsyncIterator[str]:
    said, quiet_s = None, 0.0
    while not service.is_ending:
        run = service.runs.last
        if run is None:
            return
        if run.progress != said or run.state != "running":
            said, quiet_s = run.progress, 0.0
            yield f"data: {json.dumps(_run(run))}\n\n"
            if run.state != "running":
                return
        elif quiet_s > BEAT_S:
            quiet_s = 0.0
            yield ": still there\n\n"
        await asyncio.sleep(SEEN_EVERY_S)
        quiet_s += SEEN_EVERY_S


# OpenAPI


def _ref(shape: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{shape.__name__}"}


def _body(shape: type[BaseModel] | None, media_types: Sequence[str] = ()) -> dict[str, Any]:
    """A request's body, for OpenAPI; routes read it themselves, within the limits."""
    content: dict[str, Any] = {} if shape is None else {"application/json": {"schema": _ref(shape)}}
    content |= {kind: {"schema": {"type": "string", "format": "binary"}} for kind in media_types}
    return {"requestBody": {"required": True, "content": content}}


def _complete_openapi(app: FastAPI) -> None:
    """Add the shapes that routes read by themselves, and take out FastAPI's own form of errors, which is not ours."""
    plain: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            known = schema.setdefault("components", {}).setdefault("schemas", {})
            for shape in (
                shapes.SearchIn,
                shapes.EncodeIn,
                shapes.IndexIn,
                shapes.IdsIn,
                shapes.ZipIn,
                shapes.FeedbackIn,
                shapes.DuplicatesIn,
                shapes.TokenIn,
                Problem,
            ):
                described = shape.model_json_schema(ref_template="#/components/schemas/{model}")
                known |= described.pop("$defs", {}) | {shape.__name__: described}
            for name in ("HTTPValidationError", "ValidationError"):
                known.pop(name, None)
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        return app.openapi_schema or schema

    app.openapi = openapi  # type: ignore[method-assign]
    app.exception_handler(InvalidBodyError)(_invalid_body)


async def _invalid_body(request: Request, error: InvalidBodyError) -> JSONResponse:
    return invalid_parts(error.errors)
