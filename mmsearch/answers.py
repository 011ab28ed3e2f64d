"""An answer that goes on for as long as one reads.

A search gives its k best hits; whoever pages through them asks again for more. The order of what was already read must
not change then, since fusing deeper rankings may move a hit by a place or two: what was given out stays, what is new is
put after it, and nothing comes twice.
"""

import threading
from collections.abc import Callable

from mmsearch.search import Hit

GROWTH = 4  # times as many with each further search, so that reading n hits costs as much as a search or two for n


class Answer:
    """Hits of one search, read in pages. Safe to use from several threads."""

    def __init__(self, search: Callable[[int], list[Hit]], count: int) -> None:
        """search: k -> the k best hits; asked for `count` at once, so that what it raises is raised here."""
        self._search = search
        self._lock = threading.Lock()
        self._hits: list[Hit] = []
        self._ask(count)

    def __len__(self) -> int:
        """How many hits are held so far."""
        return len(self._hits)

    def page(self, start: int, count: int) -> tuple[list[Hit], bool]:
        """Hits start .. start + count, ranks counted through; and whether there are more behind them."""
        with self._lock:
            while not self._is_whole and len(self._hits) <= start + count:
                self._ask(max(self._asked * GROWTH, start + count + 1))
            return self._hits[start : start + count], len(self._hits) > start + count

    def _ask(self, k: int) -> None:
        found = self._search(k)
        given = {hit.id for hit in self._hits}
        fresh = [hit for hit in found if hit.id not in given]
        self._hits += [hit._replace(rank=place) for place, hit in enumerate(fresh, len(self._hits) + 1)]
        self._asked, self._is_whole = k, len(found) < k
