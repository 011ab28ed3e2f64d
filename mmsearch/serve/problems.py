"""Every error in one form: `application/problem+json`, RFC 9457.

`type` names the kind of problem and stays the same; `detail` is the sentence that the command line would print.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from mmsearch.errors import (
    Error,
    IndexError_,
    IndexLockedError,
    MediaError,
    ModelError,
    QueryError,
    SourceError,
    UsageError,
)
from mmsearch.present import printable
from mmsearch.serve.sentences import sentence, sentences

MEDIA_TYPE = "application/problem+json"
MOST_PARTS = 100  # of a request that are listed as wrong
SAID_PARTS = 3
SHOWN_LETTERS = 200
log = logging.getLogger("mmsearch.serve")

# name -> (status, title)
KINDS: Mapping[str, tuple[int, str]] = {
    "malformed": (400, "The request cannot be read"),
    "token-needed": (401, "A token is needed"),
    "forbidden": (403, "This is not allowed"),
    "not-found": (404, "There is no such thing"),
    "method": (405, "This address does not take that method"),
    "busy-index": (409, "The index is being written"),
    "goes-on": (409, "Another goes on already"),
    "gone": (410, "It is gone"),
    "too-large": (413, "It is too large"),
    "too-long": (414, "The address is too long"),
    "media-type": (415, "This kind of content is not read"),
    "wrong-host": (421, "This server does not go by that name"),
    "invalid": (422, "It makes no sense"),
    "long-headers": (431, "The headers are too long"),
    "internal": (500, "Something is broken in the server"),
    "busy": (503, "The server has too much to do"),
    "full": (503, "The server has too much to do"),
    "unusable": (503, "The index cannot be used"),
}

# Where the rest of a body may still be on its way: it is hung up on, not read to its end
UNREAD = (
    *("malformed", "too-large", "too-long", "long-headers", "media-type", "forbidden", "token-needed", "wrong-host"),
    "full",
)

# What the library raises -> name; the first that fits
RAISED: tuple[tuple[type[Error], str], ...] = (
    (IndexLockedError, "busy-index"),
    (IndexError_, "unusable"),
    (ModelError, "unusable"),
    (SourceError, "not-found"),
    (UsageError, "invalid"),
    (QueryError, "invalid"),
    (MediaError, "invalid"),
)


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(examples=["urn:mmsearch:problem:invalid"])
    title: str = Field(examples=["It makes no sense"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["'after' takes a date as 2023, 2023-07 or 2023-07-14, not 'tomorrow'."])
    errors: list[dict[str, Any]] | None = Field(None, description="Which parts of the request are wrong, and how.")
    error: str | None = Field(None, description="What the library calls it.", examples=["UsageError"])


class ProblemError(Exception):
    """Raised by a route to answer with a problem."""

    def __init__(self, name: str, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.name = name
        self.headers = headers


def problem(
    name: str,
    detail: str,
    *,
    errors: list[dict[str, Any]] | None = None,
    error: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The answer that says what is wrong."""
    status, title = KINDS[name]
    body: dict[str, Any] = {
        "type": f"urn:mmsearch:problem:{name}",
        "title": title,
        "status": status,
        "detail": detail.encode("utf-8", "backslashreplace").decode(),  # it may quote a name that is not UTF-8
    }
    if errors is not None:
        body["errors"] = errors
    if error is not None:
        body["error"] = error
    if name in UNREAD:
        headers = {**(headers or {}), "connection": "close"}
    return JSONResponse(body, status, headers=headers, media_type=MEDIA_TYPE)


def name_of(error: Error) -> str:
    """The kind of problem that an error of the library is."""
    return next((name for kind, name in RAISED if isinstance(error, kind)), "internal")


def answer_with_problems(app: FastAPI) -> None:
    """Have every error of an app answered in this form."""

    @app.exception_handler(ProblemError)
    async def raised_here(request: Request, error: ProblemError) -> JSONResponse:
        return problem(error.name, str(error), headers=error.headers)

    @app.exception_handler(Error)
    async def raised_by_the_library(request: Request, error: Error) -> JSONResponse:
        return problem(name_of(error), _opened(str(error)), error=type(error).__name__)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return invalid_parts(error.errors())

    @app.exception_handler(HTTPException)
    async def by_the_framework(request: Request, error: HTTPException) -> JSONResponse:
        path, method = printable(request.url.path[:SHOWN_LETTERS]), request.method
        if error.status_code == 404:
            return problem("not-found", f"There is nothing at {path}.", headers=error.headers)
        if error.status_code == 405:
            taken = _methods(app, request)
            detail = f"The address {path} takes {' and '.join(taken)}, not {method}."
            return problem("method", detail, headers={"allow": ", ".join(taken)})
        return problem("malformed", "The request cannot be read.", headers=error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return problem("internal", "This is a mistake in mmsearch; what the server printed says more.")


def _opened(sentence: str) -> str:
    """A sentence of the library's that begins with the name of an argument, as 'after' takes …, with it in quotes."""
    return re.sub(r"^([a-z_]+)\b", r"'\1'", sentence)


def _methods(app: FastAPI, request: Request) -> list[str]:
    """What an address takes, of all routes that it fits; the framework names those of the first one."""
    found = (route for route in app.routes if route.matches(request.scope)[0] != Match.NONE)
    return sorted({method for route in found for method in getattr(route, "methods", None) or ()})


def invalid_parts(errors: Sequence[Any]) -> JSONResponse:
    """The problem that pydantic found with a request."""
    parts = [{"where": ".".join(map(str, error["loc"])), "what": sentence(error)} for error in errors[:MOST_PARTS]]
    return problem("invalid", " ".join(sentences(errors)[:SAID_PARTS]), errors=parts)
