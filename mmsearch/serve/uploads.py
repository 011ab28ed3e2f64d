"""What all requests together may hold of what was sent to the server, from the first byte to the answer."""

from starlette.types import Scope

from mmsearch.serve.problems import ProblemError

HELD = "mmsearch.held_bytes"  # in the scope of a request


class Uploads:
    """The bytes that are held of bodies. Used by the event loop alone."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held_bytes = 0

    def take(self, scope: Scope, count: int) -> None:
        """Hold more of a request's body. Raises ProblemError where others hold too much already."""
        if self._held_bytes + count > self._most_bytes:
            raise ProblemError(
                "full", "Too much is being uploaded at the moment. Try again.", headers={"retry-after": "5"}
            )
        self._held_bytes += count
        scope[HELD] = scope.get(HELD, 0) + count

    def give_back(self, scope: Scope) -> None:
        """The request has ended."""
        self._held_bytes -= scope.pop(HELD, 0)
