"""What aiohttp and the kernel raise, as one kind of error."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from syshaxd.errors import UnitError, UnitErrorKind
from syshaxd.unitclient.failures import from_exception


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EADDRNOTAVAIL])
def test_what_the_daemon_lacks_blames_no_unit(number: int) -> None:
    error = from_exception(OSError(number, os.strerror(number)), "cpu", "/health")
    assert error.kind is UnitErrorKind.OWN and not error.blames_unit and not error.client_fault


def test_a_reset_and_a_timeout_blame_it() -> None:
    reset = from_exception(ConnectionResetError(errno.ECONNRESET, "reset"), "cpu", "/health")
    assert reset.kind is UnitErrorKind.RESET and reset.blames_unit
    assert from_exception(asyncio.TimeoutError(), "cpu", "/health").blames_unit


def test_what_the_client_did_or_the_daemon_ended_blames_none() -> None:
    assert not UnitError("cpu", UnitErrorKind.STATUS, "HTTP 400", status=400).blames_unit
    assert not UnitError("cpu", UnitErrorKind.GONE, "stopped").blames_unit
