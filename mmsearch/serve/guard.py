"""What no request passes unchecked, and no answer leaves without.

A web page from anywhere can make its visitor's browser talk to a server on his own machine, and a name that its owner
lets point to 127.0.0.1 makes that server part of his site (DNS rebinding). So the server answers only to names that
mean it (Host), only to pages of its own (Origin, Sec-Fetch-Site), and where it can be reached from outside only to who
has the token. The headers hold the browser to the same: nothing is loaded from elsewhere, nothing is shown in a frame,
no content is taken for another type than it is sent as.
"""

import re
import secrets
import socket
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmsearch.serve.files import CutShortError
from mmsearch.serve.metrics import Metrics
from mmsearch.serve.problems import log, problem
from mmsearch.serve.settings import Limits, Settings, as_address, is_loopback
from mmsearch.serve.uploads import Uploads

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
DATA_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?")
_WITHOUT_TOKEN = {"/healthz", "/api/session"}  # the page itself holds nothing of the index


class Guard:
    """Checks each request before the app sees it, and sets each answer's headers."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, uploads: Uploads) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._uploads = uploads
        self._names = {"localhost", *(name.lower() for name in settings.names)}
        if not settings.is_local:
            self._names |= {socket.gethostname().lower(), settings.host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        policy = PAGE_POLICY if _is_page(scope["path"]) else DATA_POLICY
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in {**HEADERS, "content-security-policy": policy}.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope)
        try:
            with self._metrics.request(scope, lambda: status):
                await (refusal or self._app)(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except CutShortError as error:
            log.warning("%s The connection is closed.", error)
        finally:
            self._uploads.give_back(scope)

    def _refusal(self, headers: Headers, scope: Scope) -> Response | None:
        limits = self._settings.limits
        if len(scope["raw_path"]) + len(scope["query_string"]) > limits.address_bytes:
            return too_long(limits)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > limits.headers_bytes:
            return long_headers(limits)
        host = self._host(headers)
        if host is None:
            return problem("wrong-host", "The Host header is not an address or name of this server.")
        if not self._is_own_page(headers, scope, host):
            return problem("forbidden", "Only the server's own page may ask from within a browser.")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdecimal() or int(length) > limits.body_bytes:
            return problem("too-large", f"A body may have {limits.body_bytes:,} bytes at the most.")
        path = scope["path"]
        if not (path in _WITHOUT_TOKEN or _is_page(path) or self._has_token(headers)):
            return problem(
                "token-needed",
                "Send the token that the server printed when it started, as 'Authorization: Bearer …'.",
                headers={"www-authenticate": "Bearer"},
            )
        return None

    def _host(self, headers: Headers) -> str | None:
        """The Host header, if it means this server."""
        given = headers.getlist("host")
        match = _HOST.fullmatch(given[0]) if len(given) == 1 else None
        if match is None:
            return None
        host = match[1].lower()
        if host in self._names or is_loopback(host):
            return given[0]
        # A browser sends an address only where that was typed; no name can be made to look like one
        return given[0] if not self._settings.is_local and as_address(host) is not None else None

    def _is_own_page(self, headers: Headers, scope: Scope, host: str) -> bool:
        origins = headers.getlist("origin")
        if any(urlsplit(origin).netloc.lower() != host.lower() for origin in origins):
            return False
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):  # a link from elsewhere may lead to the page
            return scope["method"] == "GET" and scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        return True

    def _has_token(self, headers: Headers) -> bool:
        token = self._settings.token
        if token is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and same(given.strip(), token):
            return True
        return same(_cookie(headers, self._settings.cookie), token)


def too_long(limits: Limits) -> Response:
    """The answer to a long address."""
    detail = f"An address may have {limits.address_bytes:,} bytes at the most. Send the search as JSON, by POST."
    return problem("too-long", detail)


def long_headers(limits: Limits) -> Response:
    """The answer to long headers."""
    return problem("long-headers", f"The headers may have {limits.headers_bytes:,} bytes at the most.")


def same(given: str, token: str) -> bool:
    """Compared in a time that tells nothing of where they differ."""
    return secrets.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _cookie(headers: Headers, name: str) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _is_page(path: str) -> bool:
    return path == "/" or path.startswith("/page/")
