"""Maps what aiohttp and the loop raise, and what units answer, to UnitError, once."""

from __future__ import annotations

import asyncio
import errno
import json

import aiohttp

from syshaxd.errors import DeadlineError, UnitError, UnitErrorKind

MAX_MESSAGE = 500  # characters of a unit's error that are told on
MAX_BODY = 64 * 1024  # bytes of it that are passed on
FAILURES = (aiohttp.ClientError, asyncio.TimeoutError, DeadlineError, OSError)
_RESETS = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, OSError)

_OWN = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}


class NotConnected(OSError):
    """Nothing reached the unit."""


def from_exception(err: BaseException, unit: str, doing: str) -> UnitError:
    """For anything in FAILURES; the caller raises the result `from err`."""
    detail = f"{doing}: {str(err) or type(err).__name__}"
    if getattr(err, "errno", None) in _OWN:
        return UnitError(unit, UnitErrorKind.OWN, detail)
    if isinstance(err, (asyncio.TimeoutError, DeadlineError)):  # aiohttp's ServerTimeoutError is one too
        return UnitError(unit, UnitErrorKind.TIMEOUT, f"{doing}: no answer in time")
    if isinstance(err, (aiohttp.ClientConnectorError, NotConnected)):
        return UnitError(unit, UnitErrorKind.CONNECT, detail)
    # A read after the connection was closed raises ClientConnectionError itself.
    if isinstance(err, _RESETS) or type(err) is aiohttp.ClientConnectionError:
        return UnitError(unit, UnitErrorKind.RESET, detail)
    return UnitError(unit, UnitErrorKind.GARBAGE, detail)


def status_error(unit: str, status: int, body: bytes) -> UnitError:
    """For an answer whose status says that it is none. `body` is passed on where it is an error of OpenAI's form."""
    message = _message(body)
    text = f"HTTP {status}" + (f": {message[:MAX_MESSAGE]}" if message else "")
    return UnitError(unit, UnitErrorKind.STATUS, text, status=status, body=body[:MAX_BODY])


def _message(body: bytes) -> str:
    """Of an OpenAI error, in either form (vLLM before 0.10 leaves out the outer object); else ""."""
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        return ""  # not every server speaks JSON when it fails
    if isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]
    return str(error.get("message", "")) if isinstance(error, dict) else ""
