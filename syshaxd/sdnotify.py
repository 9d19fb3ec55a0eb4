"""systemd's notify protocol (sd_notify(3)) over the `sdnotify` package. Without a manager every call does nothing."""

from __future__ import annotations

import os
import time
from collections.abc import MutableMapping
from typing import Any

import sdnotify

NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "INVOCATION_ID", "JOURNAL_STREAM")


class Notifier:
    """Messages to the service manager. Owned by Engine."""

    def __init__(self, watchdog: float | None = None, transport: Any = None) -> None:
        self.watchdog_seconds = watchdog  # systemd kills the daemon after this long without `watchdog()`
        self._transport = transport
        self._status = ""

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Notifier:
        """Read and remove the protocol's variables, so that no unit inherits them."""
        transport = sdnotify.SystemdNotifier() if environ.get("NOTIFY_SOCKET") else None
        watchdog = _watchdog_seconds(environ)
        for name in NOT_INHERITED:
            environ.pop(name, None)
        return cls(watchdog, transport)

    @property
    def present(self) -> bool:
        """Whether a service manager listens."""
        return self._transport is not None

    def ready(self, status: str = "") -> None:
        """Start or reload is complete."""
        self._send("READY=1", status)

    def reloading(self) -> None:
        """A reload begins; the time stamp is in the same message, as Type=notify-reload demands."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "") -> None:
        """The daemon goes down."""
        self._send("STOPPING=1", status)

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent only when it changed."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def watchdog(self) -> None:
        """The daemon is alive."""
        self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Start, reload or stop needs that much longer from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def close(self) -> None:
        """Close the socket."""
        if self._transport is not None and self._transport.socket is not None:
            self._transport.socket.close()
        self._transport = None

    def _send(self, message: str, status: str = "") -> None:
        if status:
            self._status = status
            message += f"\nSTATUS={status}"
        if self._transport is not None:
            self._transport.notify(message)


def _watchdog_seconds(environ: MutableMapping[str, str]) -> float | None:
    for_us = environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
    value = environ.get("WATCHDOG_USEC", "")
    return int(value) / 1e6 if for_us and value.isdigit() and int(value) > 0 else None
