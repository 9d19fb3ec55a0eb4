"""What a reader of the log gets: text on a terminal, fields in the journal."""

from __future__ import annotations

import io
import logging
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syshaxd import log
from syshaxd.log import RepeatFilter, values_of


@pytest.fixture(autouse=True)
def clean_logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = tuple(root.handlers), root.level
    yield
    for handler in tuple(root.handlers):
        if handler not in before:
            root.removeHandler(handler)
            handler.close()
    for handler in before:
        root.addHandler(handler)
    root.setLevel(level)
    logging.getLogger(log.ROOT).setLevel(logging.NOTSET)


def _decode(entry: bytes) -> dict[str, str]:
    """A reader of the native protocol, as the journal has it."""
    fields = {}
    while entry:
        line, _, rest = entry.partition(b"\n")
        if b"=" in line:
            name, _, value = line.partition(b"=")
        else:
            name, length = line, struct.unpack("<Q", rest[:8])[0]
            value, rest = rest[8 : 8 + length], rest[8 + length + 1 :]
        fields[name.decode()] = value.decode()
        entry = rest
    return fields


def test_plain_text_names_part_and_values() -> None:
    stream = io.StringIO()
    log.setup("info", stream=stream)
    log.Log("engine").info("unit is ready", unit="gpu", seconds=1.23456, nothing=None)
    log.Log("engine").debug("not shown")
    log.Log("supervisor").warning("unit died", reason="out of memory")
    first, second = stream.getvalue().splitlines()
    assert first.split(" ", 1)[1] == "engine: unit is ready unit=gpu seconds=1.235"
    assert second.split(" ", 1)[1] == 'warning supervisor: unit died reason="out of memory"'


def test_traceback_of_a_fault_is_kept() -> None:
    stream = io.StringIO()
    log.setup("info", stream=stream)
    log.Log("engine").error("task failed", error=ValueError("broken"))
    assert stream.getvalue().rstrip().endswith("ValueError: broken")


def test_journal_fields(tmp_path: Path) -> None:
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    journal.bind(str(tmp_path / "journal"))
    journal.settimeout(5)
    handler = log.JournalHandler(str(tmp_path / "journal"))
    logging.getLogger().addHandler(handler)
    log.set_level("info")
    log.Log("supervisor").error("unit died", message_id=log.UNIT_DIED, unit="gpu", request_id="r1", last="a\nb")
    fields = _decode(journal.recv(65536))
    journal.close()
    assert fields["MESSAGE"] == 'supervisor: unit died unit=gpu request_id=r1 last="a\nb"'
    assert fields["PRIORITY"] == "3"
    assert fields["MESSAGE_ID"] == log.UNIT_DIED
    assert (fields["SYSHAX_UNIT"], fields["SYSHAX_REQUEST_ID"], fields["SYSHAX_LAST"]) == ("gpu", "r1", "a\nb")


def test_a_journal_that_is_gone_costs_only_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = log.JournalHandler(str(tmp_path / "gone"))
    logging.getLogger().addHandler(handler)
    log.set_level("info")
    log.Log("engine").info("into the void")
    assert capsys.readouterr().err == ""


def test_level_changes_while_running() -> None:
    stream = io.StringIO()
    log.setup("warning", stream=stream)
    log.Log("engine").info("hidden")
    log.set_level("debug")
    log.Log("engine").debug("shown")
    assert "hidden" not in stream.getvalue()
    assert "debug engine: shown" in stream.getvalue()


def test_equal_warnings_are_bounded_and_counted() -> None:
    def record(message: str, at: float, level: int = logging.WARNING, **values: Any) -> logging.LogRecord:
        made = logging.LogRecord("syshax.x", level, "", 0, "%s", (message,), None)
        made.created, made.syshax_values = at, values
        return made

    lines = RepeatFilter()
    assert sum(lines.filter(record("broke", 0.0)) for _ in range(100)) == 10
    assert lines.filter(record("broke", 1.0, unit="gpu")) and lines.filter(record("other", 1.0))
    assert all(lines.filter(record("request", 1.0, logging.INFO)) for _ in range(100))
    assert not lines.filter(record("broke", 9.9))
    later = record("broke", 10.0)
    assert lines.filter(later) and values_of(later) == {"left_out": 91}
    assert lines.filter(record("broke", 11.0)) and "left_out" not in values_of(record("broke", 11.0))
