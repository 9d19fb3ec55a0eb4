"""The notify protocol as a service manager sees it, on a real socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from syshaxd.sdnotify import Notifier


class Manager:
    """The receiving end."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(5)

    def message(self) -> list[str]:
        return self.socket.recv(65536).decode().split("\n")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.socket.close()


@pytest.fixture
def notifier(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notifier]:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.path)
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    monkeypatch.setenv("INVOCATION_ID", "0" * 32)
    made = Notifier.from_environment(os.environ)
    yield made
    made.close()


def test_messages(manager: Manager, notifier: Notifier) -> None:
    notifier.ready("2 units ready")
    assert manager.message() == ["READY=1", "STATUS=2 units ready"]
    notifier.reloading()
    state, stamp = manager.message()
    assert state == "RELOADING=1"
    assert stamp.startswith("MONOTONIC_USEC=") and int(stamp.split("=")[1]) > 0
    notifier.extend_timeout(1.5)
    assert manager.message() == ["EXTEND_TIMEOUT_USEC=1500000"]
    notifier.watchdog()
    assert manager.message() == ["WATCHDOG=1"]
    notifier.stopping()
    assert manager.message() == ["STOPPING=1"]


def test_status_only_when_it_changed(manager: Manager, notifier: Notifier) -> None:
    notifier.status("a")
    notifier.status("a")
    notifier.status("b")
    assert [manager.message(), manager.message()] == [["STATUS=a"], ["STATUS=b"]]


def test_nothing_is_left_for_units_to_inherit(notifier: Notifier) -> None:
    left = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "INVOCATION_ID", "JOURNAL_STREAM"} & set(os.environ)
    assert not left
    assert notifier.watchdog_seconds == 3.0


@pytest.mark.parametrize("environ", [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}])
def test_no_manager_no_watchdog(environ: dict[str, str]) -> None:
    notifier = Notifier.from_environment(environ)
    notifier.ready("nobody hears it")
    assert not notifier.present
    assert notifier.watchdog_seconds is None
