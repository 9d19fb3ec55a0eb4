"""Maps what aiohttp raises to UnitError, once."""

from __future__ import annotations

import asyncio
import errno

import aiohttp

from syshaxd.errors import DeadlineError, UnitError, UnitErrorKind

FAILURES = (aiohttp.ClientError, asyncio.TimeoutError, DeadlineError, OSError)
_RESETS = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, OSError)

_OWN = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}


def from_exception(err: BaseException, unit: str, doing: str) -> UnitError:
    """For anything in FAILURES; the caller raises the result `from err`."""
    detail = f"{doing}: {str(err) or type(err).__name__}"
    if getattr(err, "errno", None) in _OWN:
        return UnitError(unit, UnitErrorKind.OWN, detail)
    if isinstance(err, (asyncio.TimeoutError, DeadlineError)):  # aiohttp's ServerTimeoutError is one too
        return UnitError(unit, UnitErrorKind.TIMEOUT, f"{doing}: no answer in time")
    if isinstance(err, aiohttp.ClientConnectorError):
        return UnitError(unit, UnitErrorKind.CONNECT, detail)
    # A read after the connection was closed raises ClientConnectionError itself.
    if isinstance(err, _RESETS) or type(err) is aiohttp.ClientConnectionError:
        return UnitError(unit, UnitErrorKind.RESET, detail)
    return UnitError(unit, UnitErrorKind.GARBAGE, detail)
