"""Where the server listens, who may ask, and how much anyone may ask for."""

import ipaddress
import os
from dataclasses import dataclass, field

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8765


@dataclass(frozen=True)
class Limits:
    """What keeps one client from costing the others anything. The decoder's own limits are those of mmsearch.media."""

    address_bytes: int = 262_144  # as it travels; the longest words in any script take 24,000. Longer goes as JSON
    headers_bytes: int = 65_536
    body_bytes: int = 64_000_000  # a picture; the largest photographs of telephones have 50 MB
    json_bytes: int = 1_000_000  # a list of texts, a vector
    uploads_bytes: int = 256_000_000  # of all bodies together, until their requests are answered
    body_seconds: float = 30.0  # for a body to arrive
    header_seconds: float = 10.0  # for a request's header to arrive
    take_seconds: float = 60.0  # for a client to take some of an answer
    connections: int = 500  # at once; most systems give a program 1,024 files
    seconds: float = 30.0  # for an answer to be made
    searches_at_once: int = 32  # so many are encoded in one batch
    searches_waiting: int = 256
    pictures_at_once: int = 4  # uploads in the decoder; it has two processes
    pictures_waiting: int = 32
    thumbnails_at_once: int = 8
    thumbnails_waiting: int = 1_000
    event_streams: int = 32
    open_answers: int = 100  # that can be paged further
    open_hits: int = 200_000  # in all of them
    zip_bytes: int = 100_000_000_000


@dataclass(frozen=True)
class Settings:
    """Where the server listens and who may ask.

    token: what has to come with each request; None for a server that only this machine reaches. allowed: the folders
    that may be indexed over HTTP. names: host names by which it is reached, besides addresses and localhost.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    token: str | None = None
    allowed: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can reach it."""
        return is_loopback(self.host)

    @property
    def cookie(self) -> str:
        """The cookie's name. Cookies do not tell ports apart, and two servers may run on one machine."""
        return f"mmsearch_{self.port}"

    def may_index(self, folder: str) -> bool:
        """Whether a folder is one of those allowed, or lies in one, after every link has been followed."""
        if "\0" in folder:
            return False
        real = os.path.realpath(folder)
        return any(_is_within(real, os.path.realpath(allowed)) for allowed in self.allowed)


def is_loopback(host: str) -> bool:
    """Whether a name or address can only mean this machine."""
    address = as_address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def as_address(host: str) -> "ipaddress.IPv4Address | ipaddress.IPv6Address | None":
    """The address, if a host is written as one."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
