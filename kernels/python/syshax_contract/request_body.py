"""The body of a request, from bytes to a JSON object: bounded in size, in count and depth of values, and in time.

Nothing a client sends here may hold others up: bytes being read count against one budget, and what takes longer than
a moment is parsed by one thread beside the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import zlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, NoReturn, TypeVar

from .error_form import BadBody

MAX_VALUES = 1 << 20  # of a body: a million token ids
MAX_DEPTH = 128  # of arrays and objects; a JSON Schema of tools has some ten
MAX_DIGITS = 400  # of a number: the largest double has 309
INLINE_BYTES = 64 << 10  # parsed on the event loop
_STRINGS_AND_MARKS = re.compile(rb'"[^"]*"|[,\[{]')
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONG_NUMBER = re.compile(rb"\d{%d}" % MAX_DIGITS)

T = TypeVar("T")


def parse_object(data: bytes) -> dict[str, Any]:
    """A body as a JSON object. Raises BadBody."""
    _check_count(data)
    try:
        long = _LONG_NUMBER.search(data) is not None
        number = _bounded_int if long else None
        body = json.loads(data.decode("utf-8-sig"), parse_int=number, parse_constant=_constant)
    except RecursionError as err:
        raise BadBody(f"the body is nested deeper than {MAX_DEPTH} levels", code="invalid_json") from err
    except ValueError as err:
        detail = str(err)[:200]
        if isinstance(err, json.JSONDecodeError):
            detail = f"{err.msg} at line {err.lineno} column {err.colno}"
        elif isinstance(err, UnicodeDecodeError):
            detail = f"it is not UTF-8 at byte {err.start}"
        raise BadBody(f"the body is not JSON: {detail}", code="invalid_json") from err
    if not isinstance(body, dict):
        raise BadBody(f"the body is {kind_of(body)}, expected a JSON object", code="invalid_json")
    _check_depth(data, body)
    if _SURROGATE.search(data) is not None:
        _check_text(body)
    return body


def _check_count(data: bytes) -> None:
    """Values of a sound body are at most its commas and opening brackets outside of strings, and one."""
    if data.count(b",") + data.count(b"[") + data.count(b"{") < MAX_VALUES:
        return
    marks = 0
    for match in _STRINGS_AND_MARKS.finditer(data.replace(b"\\\\", b"").replace(b'\\"', b"")):
        marks += match.end() - match.start() == 1
        if marks >= MAX_VALUES:
            raise BadBody(f"the body has more than {MAX_VALUES} values", code="invalid_json")


def _check_depth(data: bytes, body: dict[str, Any]) -> None:
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        inner = (value for held in level for value in (held.values() if isinstance(held, dict) else held))
        level = [value for value in inner if isinstance(value, (dict, list))]
        if not level:
            return
    raise BadBody(f"the body is nested deeper than {MAX_DEPTH} levels", code="invalid_json")


def _check_text(body: dict[str, Any]) -> None:
    """Half of a surrogate pair is no text: nothing that encodes UTF-8 can take it."""
    for name, value in body.items():
        try:
            json.dumps([name, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as err:
            shown = name.encode("utf-8", "replace").decode()
            text = f"{shown}: half of a surrogate pair, as of an emoji that was cut in two; expected whole characters"
            raise BadBody(text, shown) from err


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def kind_of(value: object) -> str:
    """JSON's name of a value's type, with its article."""
    if value is None:
        return "a null"
    names = ((bool, "a boolean"), (str, "a string"), ((int, float), "a number"), (list, "a list"), (dict, "an object"))
    return next((name for kind, name in names if isinstance(value, kind)), type(value).__name__)


def decoded(data: bytes, encoding: str, most: int) -> bytes:
    """A body as its Content-Encoding says, at most `most` bytes of it. Raises BadBody."""
    kind = encoding.strip().lower()
    if kind in ("", "identity"):
        return data
    if kind not in ("gzip", "x-gzip", "deflate"):
        raise BadBody(f"content-encoding is {kind[:40]!r}, expected gzip, deflate or identity", status=415)
    try:
        machine = zlib.decompressobj(47 if kind != "deflate" else 15)
        made = machine.decompress(data, most + 1)
        if len(made) <= most and not machine.eof:
            raise zlib.error("it is cut off")
    except zlib.error as err:
        raise BadBody(f"the body is not {kind}, as content-encoding says: {err}", "content-encoding") from err
    return too_large(most) if len(made) > most else made


def too_large(most: int) -> NoReturn:
    """Raises the BadBody of a body over its bound."""
    raise BadBody(f"the body is larger than {most} bytes", status=413)


class BodyShare:
    """What one request holds of the budget."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self.held = bodies, 0

    async def read(self, parts: AsyncIterator[bytes], most: int) -> bytes:
        """A whole body. Raises BadBody: 413 over `most`, 429 over the budget of all."""
        read: list[bytes] = []
        async for part in parts:
            self.held += len(part)
            self._bodies.held += len(part)
            if self.held > most:
                too_large(most)
            if self._bodies.held > self._bodies.budget:
                raise BadBody("too many large bodies are being read; try again later", status=429)
            read.append(part)
        return b"".join(read)


class Bodies:
    """The bodies that are being read and parsed: one budget of bytes, one thread. Close it."""

    def __init__(self, budget: int) -> None:
        self.budget, self.held = budget, 0
        self._thread = ThreadPoolExecutor(1, "body")

    @contextlib.contextmanager
    def share(self) -> Iterator[BodyShare]:
        """For one request, until its body has been parsed."""
        mine = BodyShare(self)
        try:
            yield mine
        finally:
            self.held -= mine.held

    async def run(self, size: int, work: Callable[..., T], *arguments: Any) -> T:
        """The work on a body of `size` bytes: at once where it is small, else in the thread."""
        if size <= INLINE_BYTES:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False)
