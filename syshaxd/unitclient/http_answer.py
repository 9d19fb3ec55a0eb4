"""One HTTP/1.1 answer, without I/O: bytes in any pieces in, status and the bytes of the body out."""

from __future__ import annotations

MAX_HEAD = 64 * 1024  # bytes of status line and headers
MAX_LINE = 4096  # bytes of a chunk's size line, or of a trailer


class HttpError(ValueError):
    """The bytes are no HTTP answer, or one that is too large."""


class HttpAnswer:
    """RFC 9112 as a client reads it: chunked, by Content-Length, or to the connection's end; one answer a connection.

    `status` is 0 until the head is there; `ended`: the body is complete.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.ended = False
        self._held = b""  # of the head, or of a line between chunks
        self._left: int | None = None  # bytes of the body, or of the present chunk, to come; None: until the end
        self._chunked = False
        self._in_chunk = False
        self._trailer = False

    def feed(self, data: bytes) -> bytes:
        """Bytes of the body that `data` brought. Raises HttpError."""
        if not self.status:
            rest = self._head(data)
            if rest is None:
                return b""
            data = rest
        if self._chunked:
            return self._chunks(data)
        if self._left is None:
            return data
        body = data[: self._left]
        self._left -= len(body)
        self.ended = self._left == 0
        return body

    def end(self) -> None:
        """The connection was closed; raises ConnectionResetError when more was to come."""
        if not self.status or (self._left is not None or self._chunked) and not self.ended:
            raise ConnectionResetError("closed in the middle of its answer")
        self.ended = True

    def _head(self, data: bytes) -> bytes | None:
        """What follows the head; None while it is not complete."""
        self._held += data
        while True:
            head, end, rest = self._held.partition(b"\r\n\r\n")
            if not end:
                if len(head) > MAX_HEAD:
                    raise HttpError(f"headers of more than {MAX_HEAD} bytes")
                return None
            first, *lines = head.split(b"\r\n")
            version, _, status = first.partition(b" ")
            if not version.startswith(b"HTTP/1.") or not status[:3].isdigit() or len(head) > MAX_HEAD:
                raise HttpError(f"expected an HTTP/1.1 answer, got {first[:40]!r}")
            self._held = rest
            if status[:3] < b"200":  # an interim answer
                continue
            self._fields(lines)
            self.status, self._held = int(status[:3]), b""
            return rest

    def _fields(self, lines: list[bytes]) -> None:
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon:
                raise HttpError(f"expected a header field, got {line[:40]!r}")
            self.headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
        self._chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise HttpError("an encoding that was not asked for")
        length = self.headers.get("content-length")
        if length is not None and not self._chunked:
            if not length.isdigit() or len(length) > 18:
                raise HttpError(f"a Content-Length of {length[:20]!r}")
            self._left = int(length)
            self.ended = self._left == 0

    def _chunks(self, data: bytes) -> bytes:
        if self._held:
            data, self._held = self._held + data, b""
        at, parts = 0, []
        while at < len(data) and not self.ended:
            if self._in_chunk:
                assert self._left is not None
                part = data[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                self._in_chunk = self._left > 0
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                self._held = data[at:]
                if len(self._held) > MAX_LINE:
                    raise HttpError("a chunk's size line without end")
                break
            self._line(data[at:end])
            at = end + 2
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _line(self, line: bytes) -> None:
        """A line between chunks: the end of one, the size of the next, a trailer."""
        if self._trailer:
            self.ended = not line
            return
        if not line and self._left == 0:  # ends a chunk's data
            self._left = None
            return
        digits = line.partition(b";")[0].strip()
        if self._left is not None or not 0 < len(digits) <= 15 or digits.strip(b"0123456789abcdefABCDEF"):
            raise HttpError(f"expected the size of a chunk, got {line[:20]!r}")
        self._left = int(digits, 16)
        self._in_chunk = self._left > 0
        if not self._in_chunk:
            self._trailer = True
