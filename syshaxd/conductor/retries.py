"""Clients that come back after a refusal: since when they wait."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

KEPT = 4096  # refusals
FOR = 120.0  # seconds; `Retry-After` is never above 60 s


class Refusals:
    """When a body that was refused came first. One owner. A retry is told by the OpenAI SDKs' own header, so that two
    clients with the same prompt are not taken for one; the body names which request it is."""

    def __init__(self) -> None:
        self._first: "OrderedDict[bytes, float]" = OrderedDict()

    def note(self, digest: bytes, first: float) -> None:
        """A request with that body was refused; its client asked first at monotonic second `first`."""
        self._first[digest] = first
        self._first.move_to_end(digest)
        if len(self._first) > KEPT:
            self._first.popitem(last=False)

    def waited(self, digest: bytes, headers: Mapping[str, str], now: float) -> float:
        """Seconds since the first attempt of a retry; 0 for another request, or one that is not known (any more)."""
        if not is_retry(headers) or digest not in self._first:
            return 0.0
        waited = max(0.0, now - self._first.pop(digest))  # noted again if it is refused again
        return waited if waited <= FOR else 0.0


def is_retry(headers: Mapping[str, str]) -> bool:
    """Whether the client's SDK says that it sends the request another time."""
    count = headers.get("x-stainless-retry-count", "")
    return count.isascii() and count.isdigit() and int(count[:9]) > 0
