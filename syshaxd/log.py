"""Logging: a constant message and named values. Plain text on a terminal, the journal's native protocol under systemd.

Protocol: https://systemd.io/JOURNAL_NATIVE_PROTOCOL. Values become fields: SYSHAX_UNIT=, SYSHAX_REQUEST_ID=, ...
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Mapping
from typing import TextIO, Union

JOURNAL_SOCKET = "/run/systemd/journal/socket"
ROOT = "syshax"
MAX_VALUE = 16 * 1024  # characters of one field; a datagram has to stay well below the socket's buffer

# MESSAGE_ID of events that an operator searches for: journalctl MESSAGE_ID=...
DAEMON_READY = "5b5a43a3dca7439e83726201b5b38ec9"
DAEMON_STOPPED = "cf6bb617f25244cea68960ff12cc7924"
CONFIG_RELOADED = "7841465fad4140178963f504c6bad34b"
CONFIG_REJECTED = "3cc83aa064004a17b2ee36bb74b2140d"
UNIT_READY = "7f498de62c994b919232c8297c801e95"
UNIT_DIED = "7c59e154f10143c38aac0298061f6b60"
UNIT_FAILED = "1aa568a82b814d36b65d3572aa5b2111"
UNIT_STOPPED = "05cb5415a8c84c48b1de4911c0914d1b"
PD_CHECKED = "369be4bbdae444dc88f56cfccd322015"

Value = Union[str, int, float, bool, None]
_PRIORITY = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.NOTSET, 7))


class Log:
    """Logger of one part: `Log("engine").info("unit is ready", unit="gpu", seconds=1.2)`. None values are left out."""

    def __init__(self, part: str) -> None:
        self._logger = logging.getLogger(f"{ROOT}.{part}")

    def debug(self, message: str, **values: Value) -> None:
        """For the developer."""
        self._emit(logging.DEBUG, message, None, values)

    def info(self, message: str, *, message_id: str = "", **values: Value) -> None:
        """An event in normal life."""
        self._emit(logging.INFO, message, None, values, message_id)

    def warning(self, message: str, *, message_id: str = "", **values: Value) -> None:
        """Works, but somebody should look."""
        self._emit(logging.WARNING, message, None, values, message_id)

    def error(self, message: str, *, message_id: str = "", error: BaseException | None = None, **values: Value) -> None:
        """Something does not work. `error` adds its traceback: for faults of the program, not of its input."""
        self._emit(logging.ERROR, message, error, values, message_id)

    def _emit(
        self,
        level: int,
        message: str,
        error: BaseException | None,
        values: Mapping[str, Value],
        message_id: str = "",
    ) -> None:
        if self._logger.isEnabledFor(level):
            known = {name: value for name, value in values.items() if value is not None}
            extra = {"syshax_values": known, "syshax_message_id": message_id}
            self._logger.log(level, "%s", message, exc_info=error, extra=extra)


class PlainFormatter(logging.Formatter):
    """`12:30:01 warning supervisor: unit died unit=gpu code=137`; the time is left out where the reader adds one."""

    def __init__(self, with_time: bool = True) -> None:
        super().__init__()
        self._with_time = with_time

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback below it where there is one."""
        stamp = time.strftime("%H:%M:%S ", time.localtime(record.created)) if self._with_time else ""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()} "
        values = "".join(f" {name}={_shown(value)}" for name, value in values_of(record).items())
        line = f"{stamp}{level}{_part(record)}: {record.getMessage()}{values}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info and record.exc_info[0] else line


class JournalHandler(logging.Handler):
    """Datagrams to the journal. A journal that is full or gone loses lines, never blocks the daemon."""

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Send one entry."""
        try:
            self._socket.sendto(encode_entry(journal_fields(record)), self._path)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Nothing to tell and nobody to tell it to."""

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


class RepeatFilter(logging.Filter):
    """Lets AT_ONCE equal warnings or errors of a part pass within PERIOD seconds; the next one says how many were left
    out. Equal: the same constant message, about the same unit; requests' lines and those of units are no warnings."""

    AT_ONCE, PERIOD, KINDS = 10, 10.0, 1024

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str, Value], tuple[float, int]] = {}  # since when, how many

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        if record.levelno < logging.WARNING or record.name.startswith(f"{ROOT}.unit"):
            return True
        text = str(record.args[0]) if isinstance(record.args, tuple) and record.msg == "%s" else str(record.msg)
        kind = (record.name, text, values_of(record).get("unit"))
        since, count = self._seen.get(kind, (record.created, 0))
        if record.created - since >= self.PERIOD:
            left_out, since, count = max(0, count - self.AT_ONCE), record.created, 0
            if left_out:
                record.syshax_values = {**values_of(record), "left_out": left_out}
        if len(self._seen) >= self.KINDS:
            self._seen.clear()
        self._seen[kind] = (since, count + 1)
        return count < self.AT_ONCE


def values_of(record: logging.LogRecord) -> Mapping[str, Value]:
    """The named values of a record made by Log; none for records of libraries."""
    values: Mapping[str, Value] = getattr(record, "syshax_values", {})
    return values


def journal_fields(record: logging.LogRecord) -> dict[str, str]:
    """Entry of the journal. The message repeats the values, because `journalctl` shows nothing else by default."""
    shown = "".join(f" {name}={_shown(value)}" for name, value in values_of(record).items())
    fields = {
        "MESSAGE": f"{_part(record)}: {record.getMessage()}{shown}",
        "PRIORITY": str(next(priority for level, priority in _PRIORITY if record.levelno >= level)),
        "SYSLOG_IDENTIFIER": "syshaxd",
        "SYSHAX_PART": _part(record),
    }
    if record.exc_info and record.exc_info[0]:
        fields["MESSAGE"] += "\n" + logging.Formatter().formatException(record.exc_info)
    if getattr(record, "syshax_message_id", ""):
        fields["MESSAGE_ID"] = record.syshax_message_id  # type: ignore[attr-defined]
    fields.update({f"SYSHAX_{name.upper()}": str(value) for name, value in values_of(record).items()})
    return fields


def encode_entry(fields: Mapping[str, str]) -> bytes:
    """`KEY=value` lines; a value with a line end goes with its length (64 bits, little-endian) instead."""
    parts = []
    for name, text in fields.items():
        value = text[:MAX_VALUE].encode("utf-8", "replace")
        if b"\n" in value:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n")
        else:
            parts.append(name.encode() + b"=" + value + b"\n")
    return b"".join(parts)


def setup(level: str, journal_stream: str = "", stream: TextIO | None = None) -> logging.Handler:
    """Send everything to the journal where `journal_stream` ($JOURNAL_STREAM) is our stderr, else text to `stream`."""
    target = stream or sys.stderr
    handler: logging.Handler
    if _is_journal(journal_stream, target):
        handler = JournalHandler()
    else:
        handler = logging.StreamHandler(target)
        handler.setFormatter(PlainFormatter())
    root = logging.getLogger()
    for old in tuple(root.handlers):
        root.removeHandler(old)
        old.close()
    handler.addFilter(RepeatFilter())
    root.addHandler(handler)
    set_level(level)
    return handler


def set_level(level: str) -> None:
    """`debug`, `info`, `warning` or `error`; libraries stay at warning unless debugging."""
    number = logging.getLevelName(level.upper())
    logging.getLogger(ROOT).setLevel(number)
    logging.getLogger().setLevel(max(number, logging.WARNING) if number > logging.DEBUG else number)


def show_units(shown: bool) -> None:
    """Whether lines that units write go into the log (they are kept for `syshax units logs` either way)."""
    logging.getLogger(f"{ROOT}.unit").setLevel(logging.NOTSET if shown else logging.WARNING)


def _is_journal(journal_stream: str, stream: TextIO) -> bool:
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return journal_stream == f"{status.st_dev}:{status.st_ino}" and os.path.exists(JOURNAL_SOCKET)


def _part(record: logging.LogRecord) -> str:
    return record.name[len(ROOT) + 1 :] if record.name.startswith(f"{ROOT}.") else record.name


def _shown(value: Value) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f'"{text}"' if not text or any(character.isspace() for character in text) else text
