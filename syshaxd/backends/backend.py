"""What the supervisor asks of a backend. Every call may be repeated: stopping what has stopped is not an error."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Callable, Protocol

from .container_spec import ContainerSpec

OnLine = Callable[[str], None]
MAX_LINE = 8 * 1024  # bytes of one log line; the rest of a longer one follows as another line


@dataclass(frozen=True)
class LaunchSpec:
    """One start of a unit, complete: nothing else is read from anywhere."""

    unit: str
    argv: tuple[str, ...]
    env: Mapping[str, str]  # the whole environment
    url: str
    cpus: frozenset[int] = field(default_factory=frozenset)  # empty: not bound
    digest: str = ""
    contract: str = ""  # version of docs/kv-handoff.md that our packages in it speak; "" for other people's servers
    container: ContainerSpec | None = None  # for the container backends, which use nothing else but unit and digest
    memory_nodes: tuple[int, ...] = ()  # where its memory must come from; empty: anywhere


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do beyond starting and stopping."""

    survives_daemon: bool = False  # its units go on without the daemon and can be adopted
    reports_activity: bool = False
    keeps_log: bool = False  # what its units write is in the journal already, under their own service


@dataclass(frozen=True)
class Exit:
    """How a unit ended: exit status, or minus the signal's number; None where nobody knows."""

    code: int | None
    asked: bool = False  # we stopped it
    out_of_memory: bool = False  # the container engine says so
    detail: str = ""  # what the container engine adds

    @property
    def reason(self) -> str:
        """One sentence for a person."""
        if self.out_of_memory:
            return "killed by the kernel: out of memory (the container engine saw it)"
        if self.code is None:
            return "ended; its exit status is unknown" + self._more
        number = -self.code if self.code < 0 else self.code - 128 if self.code in (132, 134, 137, 139, 159) else 0
        if not number:
            return f"exited with status {self.code}{self._more}"
        return f"killed by {_signal_name(number)}" + ("" if self.asked else _HINTS.get(number, ""))

    @property
    def _more(self) -> str:
        return f": {self.detail}" if self.detail else ""


_HINTS: Mapping[int, str] = {
    signal.SIGKILL: ", probably out of memory: see the kernel's log",
    signal.SIGILL: ": this CPU lacks an instruction that the program was built for",
    signal.SIGSYS: ": the sandbox refused a system call",
}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Running(Protocol):
    """One started unit."""

    @property
    def pid(self) -> int | None:
        """Process id on this host."""

    @property
    def container(self) -> str:
        """Container id; "" for a process."""

    async def wait(self) -> Exit:
        """Until it has ended. May be awaited by several tasks, and again later."""

    async def stop(self, grace: float) -> Exit:
        """Ask it to end; kill it after `grace` seconds. Cancelling this kills nothing and loses nothing."""

    async def kill(self) -> Exit:
        """End it at once, with everything it started."""

    def activity(self) -> int | None:
        """A number that grows while it computes or reads (CPU time, I/O); None where the backend can't tell."""

    async def release(self) -> None:
        """Let go of it without ending it (the daemon stops, the unit stays)."""


@dataclass(frozen=True)
class Adopted:
    """A unit that ran already, and where it answers: its port was chosen at its own start. `contract`: as LaunchSpec's,
    of that start."""

    running: Running
    url: str
    contract: str = ""


class Backend(Protocol):
    """Starts units of one kind."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""

    async def start(self, spec: LaunchSpec, on_line: OnLine) -> Running:
        """Start the unit; `on_line` gets each line it writes. Raises BackendError.

        Cancelled, it leaves nothing running.
        """

    async def adopt(self, spec: LaunchSpec, on_line: OnLine) -> Adopted | None:
        """The unit of that name and digest if it runs already; None otherwise. Raises BackendError."""

    async def close(self) -> None:
        """Give back what the backend itself holds."""


class LineSplitter:
    """Cuts a unit's output into lines of bounded length."""

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._emit(line)
        while len(self._rest) >= MAX_LINE:
            self._emit(self._rest[:MAX_LINE])
            self._rest = self._rest[MAX_LINE:]

    def end(self) -> None:
        """The output is closed."""
        self._emit(self._rest)
        self._rest = b""

    def _emit(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            self._on_line(text)


class PipeReader(asyncio.Protocol):
    """Feeds what comes through a pipe to a LineSplitter; `closed` is done at its end."""

    def __init__(self, splitter: LineSplitter) -> None:
        self._splitter = splitter
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """From the transport."""
        self._splitter.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """From the transport, once."""
        self._splitter.end()
        if not self.closed.done():
            self.closed.set_result(None)
