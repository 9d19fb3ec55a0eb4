"""Server-sent events (WHATWG HTML, section 9.2) as units send them: only `data` matters."""

from __future__ import annotations

from typing import Optional

_FIELDS = (b"event", b"id", b"retry")


class SseError(ValueError):
    """The bytes are no event stream."""


class SseParser:
    """Bytes in any pieces in, whole `data` payloads out. Takes LF, CRLF and CR; skips comments and other fields."""

    def __init__(self, max_event: int = 16 * 1024 * 1024) -> None:
        self._tail = b""
        self._carriage = False
        self._max_event = max_event

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by `data`. Raises SseError on a line that is no field, or an event without end."""
        if self._carriage or b"\r" in data:
            data = self._line_feeds(data)
        *blocks, self._tail = (self._tail + data).split(b"\n\n")
        if len(self._tail) > self._max_event:
            raise SseError(f"an event of more than {self._max_event} bytes")
        payloads = (_payload(block) for block in blocks)
        return [payload for payload in payloads if payload is not None]

    def _line_feeds(self, data: bytes) -> bytes:
        # A CR at the very end may be half of a CRLF: it waits for the next byte.
        if self._carriage:
            data = b"\r" + data
        self._carriage = data.endswith(b"\r")
        if self._carriage:
            data = data[:-1]
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    @property
    def partial(self) -> bool:
        """Whether an event has begun and not ended."""
        return bool(self._tail.strip())


def _payload(block: bytes) -> Optional[bytes]:
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]
    lines = [part for part in map(_data_of, block.split(b"\n")) if part is not None]
    return b"\n".join(lines) if lines else None


def _data_of(line: bytes) -> Optional[bytes]:
    line = line[3:] if line.startswith(b"\xef\xbb\xbf") else line
    name, _, value = line.partition(b":")
    if name == b"data":
        return value[1:] if value.startswith(b" ") else value
    if not name or name in _FIELDS:
        return None
    raise SseError(f"expected an event-stream field, got {line[:60]!r}")
