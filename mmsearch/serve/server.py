"""The socket, the token, what is printed, and the end: everything about the running server that is not HTTP."""

import os
import secrets
import socket
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import replace

import uvicorn

from mmsearch.errors import Error, UsageError
from mmsearch.index import Index
from mmsearch.serve.app import make_app
from mmsearch.serve.service import Service
from mmsearch.serve.settings import Settings, is_loopback
from mmsearch.serve.wire import most_header_bytes, protocol

LEAST_TOKEN = 16  # letters
KEPT_OPEN_S = 30
LAST_ANSWERS_S = 3  # how long open connections are waited for at the end


def settings_for(
    host: str, port: int, allowed: Sequence[str], names: Sequence[str], *, token: str | None = None
) -> Settings:
    """What was asked for on the command line; a server that others can reach has a token. Raises UsageError."""
    for folder in allowed:
        if not os.path.isdir(folder):
            raise UsageError(f"--allow {folder}: there is no such folder.")
    if token is not None and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable()):
        raise UsageError(f"MMSEARCH_TOKEN needs {LEAST_TOKEN} ASCII letters or more. Unset it for a new one.")
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    return Settings(host, port, token, tuple(os.path.abspath(folder) for folder in allowed), tuple(names))


def serve(
    index: Index, settings: Settings, *, opens_browser: bool = False, say: Callable[[str], None] = lambda line: None
) -> None:
    """Answer until Ctrl-C. Raises Error where the address cannot be had."""
    server, listening, settings = prepare(index, settings)
    address = f"http://{_shown(settings.host)}:{settings.port}/"
    say(f"{index.folder} is at {address} (Ctrl-C ends it)")
    if settings.token is not None:
        say(f"With its token, shown this once: {address}#token={settings.token}")
    if opens_browser:
        webbrowser.open(address if settings.token is None else f"{address}#token={settings.token}")
    server.run(sockets=[listening])


def prepare(index: Index, settings: Settings) -> tuple[uvicorn.Server, socket.socket, Settings]:
    """A server that can be run, the socket that it listens at already, and the settings with the port that it got."""
    listening = _listen(settings.host, settings.port)
    settings = replace(settings, port=listening.getsockname()[1])
    service = Service(index, settings)
    config = uvicorn.Config(
        make_app(service),
        http=protocol(settings.limits),
        h11_max_incomplete_event_size=most_header_bytes(settings.limits),
        ws="none",
        log_level="warning",
        access_log=False,  # it would keep what people looked for
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEPT_OPEN_S,
        timeout_graceful_shutdown=LAST_ANSWERS_S,
    )
    return _Server(config, service), listening, settings


class _Server(uvicorn.Server):
    """uvicorn's, which waits for open answers at its end; those that would go on for ever are ended first."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.is_ending = True
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(256)
    except OSError as error:
        raise Error(
            f"{host}:{port} cannot be listened at: {(error.strerror or str(error)).lower()}. Take another --port."
        ) from error
    return listening


def _shown(host: str) -> str:
    """The host in an address that can be opened here."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host
