"""Bodies of requests, read within the limits: no more is held than may be sent, and nobody is waited for for ever."""

import asyncio
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from mmsearch.serve import shapes
from mmsearch.serve.problems import ProblemError
from mmsearch.serve.service import Service

B = TypeVar("B", bound=BaseModel)


def is_json(request: Request) -> bool:
    return _content_type(request) == "application/json"


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def json_body(request: Request, shape: type[B], service: Service) -> B:
    """The body as what it should be. Raises ProblemError, or RequestValidationError's answer."""
    if not is_json(request):  # which no form of another site can send
        raise ProblemError("media-type", "The body is JSON, with the content type application/json.")
    # A picture in base64 makes JSON long, and so does a large selection
    limits = service.settings.limits
    most = limits.body_bytes if shape in (shapes.SearchIn, shapes.ZipIn) else limits.json_bytes
    body = await _read(request, most, service)
    try:
        return shape.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise InvalidBodyError(error) from None


class InvalidBodyError(Exception):
    """A body that is not what it should be."""

    def __init__(self, error: ValidationError) -> None:
        super().__init__(str(error))
        self.errors = error.errors(include_url=False, include_context=True, include_input=False)


async def picture(request: Request, service: Service) -> bytearray:
    kind = _content_type(request)
    if not (kind.startswith("image/") or kind == "application/octet-stream"):
        raise ProblemError("media-type", "The body is a picture file with the content type image/…, or JSON.")
    return await _read(request, service.settings.limits.body_bytes, service)


async def _read(request: Request, most_bytes: int, service: Service) -> bytearray:
    """The body; no more of it is held than may be sent, and nobody waits for it for ever."""
    body = bytearray()
    seconds = service.settings.limits.body_seconds
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                service.uploads.take(request.scope, len(chunk))
                body += chunk
                if len(body) > most_bytes:
                    raise ProblemError("too-large", f"This body may have {most_bytes:,} bytes at the most.")
    except TimeoutError:
        raise ProblemError("malformed", f"The body did not arrive within {seconds:g} s.") from None
    except ClientDisconnect:
        raise ProblemError("malformed", "The client hung up before the body had arrived.") from None
    return body
