"""HTTP/1.1 as uvicorn speaks it, with an end to patience, and with refusals in the form that all others have.

What is no request at all never reaches the app: uvicorn answers it by itself, with a plain text and without the headers
that every answer should have. And it would wait for a request's header for ever.
"""

from asyncio import TimerHandle, Transport
from typing import Any, cast

import h11
from fastapi.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from mmsearch.serve.guard import DATA_POLICY, HEADERS, long_headers, too_long
from mmsearch.serve.problems import problem
from mmsearch.serve.settings import Limits

ALWAYS = {**HEADERS, "content-security-policy": DATA_POLICY, "cache-control": "no-store"}
LINGER_S = 1.0  # for who is still sending to see that it was refused


def most_header_bytes(limits: Limits) -> int:
    """What may be held of a request before its body begins; more than the app would answer with a 414 or 431."""
    return limits.address_bytes + limits.headers_bytes


def protocol(limits: Limits) -> type[H11Protocol]:
    """The class that uvicorn makes one of for each connection."""

    idle: dict[H11Protocol, None] = {}  # connections that wait for a request, the oldest first

    class Wire(H11Protocol):
        _limit: TimerHandle | None = None
        _untaken: TimerHandle | None = None
        _is_refused = False

        def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._limit = self.loop.call_later(limits.header_seconds, self._cut_off)
            if len(self.connections) <= limits.connections or self._make_room():
                idle[self] = None

        def _make_room(self) -> bool:
            """Close the connection that has been idle for longest; where none is, refuse this one."""
            oldest = next(iter(idle), None)
            if oldest is None:
                self._refuse(problem("full", "Too many connections are open. Try again.", headers={"retry-after": "5"}))
                return False
            idle.pop(oldest)
            cast(Any, oldest.transport).close()
            return True

        def pause_writing(self) -> None:
            super().pause_writing()
            self._untaken = self.loop.call_later(limits.take_seconds, cast(Any, self.transport).abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._untaken is not None:
                self._untaken.cancel()
                self._untaken = None

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle.response_complete and not self.transport.is_closing():  # else the next was sent already
                idle[self] = None

        def data_received(self, data: bytes) -> None:
            if self._is_refused:
                return
            if self._limit is None and (self.cycle is None or self.cycle.response_complete):
                # A further request on the connection
                self._limit = self.loop.call_later(limits.header_seconds, self._cut_off)
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                idle.pop(self, None)
                if self._limit is not None:
                    self._limit.cancel()
                    self._limit = None

        def connection_lost(self, exc: Exception | None) -> None:
            idle.pop(self, None)
            for timer in (self._limit, self._untaken):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """Called where what came is not HTTP, or has no end."""
            self._refuse(self._refusal())

        def _refuse(self, refusal: Response) -> None:
            """Answer with a problem, and hang up."""
            transport = cast(Any, self.transport)
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer is on its way already
                headers = refusal.raw_headers + [(name.encode(), value.encode()) for name, value in ALWAYS.items()]
                response = h11.Response(status_code=refusal.status_code, headers=headers)
                for event in (response, h11.Data(data=bytes(refusal.body)), h11.EndOfMessage()):
                    transport.write(self.conn.send(event))
            if self.cycle is not None:
                self.cycle.disconnected = True  # the app has nobody to answer to
                self.cycle.message_event.set()
            # Closed at once, with bytes unread, many a client would see a reset instead of the answer
            self._is_refused = True
            transport.write_eof()
            if self._limit is not None:
                self._limit.cancel()
            self._limit = self.loop.call_later(LINGER_S, transport.close)

        def _refusal(self) -> Response:
            held, _ = self.conn.trailing_data
            is_header = self.cycle is None or self.cycle.response_complete
            if is_header and len(held) > most_header_bytes(limits):
                return long_headers(limits) if b"\n" in held else too_long(limits)
            return problem("malformed", "This is not HTTP/1.1.")

        def _cut_off(self) -> None:
            self._limit = None
            if self.cycle is None or self.cycle.response_complete:
                cast(Any, self.transport).close()

    return Wire
