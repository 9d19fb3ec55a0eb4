"""Units as child processes of the daemon, each in a session of its own. They end with the daemon, even with kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil

from syshaxd.errors import BackendError

from .backend import Adopted, Capabilities, Exit, LaunchSpec, LineSplitter, OnLine, PipeReader, Running
from .pidfd import has_ended

LAUNCHER = Path(__file__).with_name("launch.py")
TRACKER = "multiprocessing.resource_tracker"  # removes what the Python it belongs to leaves in /dev/shm, then ends
TRACKER_TIME = 2.0  # seconds for that
LAST_WORDS = 1.0  # seconds to read what a unit wrote before it ended, when a child of it keeps the pipe open


class ProcessBackend:
    """Backend for kind `process`."""

    capabilities = Capabilities(survives_daemon=False, reports_activity=True)

    async def start(self, spec: LaunchSpec, on_line: OnLine) -> Running:
        """See Backend."""
        read_end, write_end = os.pipe()
        try:
            transport, reader = await _open_reader(read_end, on_line)
        except BaseException:
            os.close(write_end)
            raise
        try:
            process = await _spawn(spec, write_end)
        except BaseException:
            transport.close()
            raise
        finally:
            os.close(write_end)
        return ChildProcess(process, transport, reader)

    async def adopt(self, spec: LaunchSpec, on_line: OnLine) -> Adopted | None:
        """Children never outlive the daemon: there is nothing to adopt."""
        return None

    async def close(self) -> None:
        """Holds nothing."""


async def _open_reader(read_end: int, on_line: OnLine) -> tuple[asyncio.ReadTransport, PipeReader]:
    pipe = os.fdopen(read_end, "rb", 0)
    loop = asyncio.get_running_loop()
    try:
        transport, reader = await loop.connect_read_pipe(lambda: PipeReader(LineSplitter(on_line)), pipe)
    except BaseException:
        pipe.close()
        raise
    return transport, reader


async def _spawn(spec: LaunchSpec, output: int) -> asyncio.subprocess.Process:
    cpus, nodes = (",".join(str(number) for number in sorted(numbers)) for numbers in (spec.cpus, spec.memory_nodes))
    argv = (sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), cpus, nodes, *spec.argv)
    try:
        return await asyncio.create_subprocess_exec(
            *argv,
            env=dict(spec.env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    except OSError as err:
        raise BackendError(f"unit {spec.unit}: cannot start {argv[0]}: {err.strerror}") from err


class ChildProcess:
    """Running, for a child. Its end is watched by one task, which also reaps the group."""

    container = ""

    def __init__(
        self, process: asyncio.subprocess.Process, transport: asyncio.ReadTransport, reader: PipeReader
    ) -> None:
        self._process = process
        self._transport = transport
        self._reader = reader
        self._asked = False
        self._ended = asyncio.get_running_loop().create_task(self._watch(), name=f"process.{process.pid}")

    @property
    def pid(self) -> int | None:
        """See Running."""
        return self._process.pid

    async def wait(self) -> Exit:
        """See Running."""
        return await asyncio.shield(self._ended)

    async def stop(self, grace: float) -> Exit:
        """See Running."""
        self._signal(signal.SIGTERM)
        await asyncio.wait({self._ended}, timeout=grace)
        return await self.kill()

    async def kill(self) -> Exit:
        """See Running."""
        if not self._ended.done():
            self._note_asked()
            _signal(self._process.pid, signal.SIGKILL)  # the watcher ends the rest of its group
        return await self.wait()

    def activity(self) -> int | None:
        """See Running. CPU time in milliseconds plus bytes read, of the process and what it started."""
        return tree_activity(self._process.pid)

    async def release(self) -> None:
        """A child can't be let go."""
        await self.kill()

    def _signal(self, number: int) -> None:
        if not self._ended.done():
            self._note_asked()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _note_asked(self) -> None:
        self._asked = self._asked or not (self._process.returncode is not None or has_ended(self._process.pid))

    async def _watch(self) -> Exit:
        code = await self._process.wait()
        await end_group(self._process.pid)  # what the unit left behind in its session
        await asyncio.wait({self._reader.closed}, timeout=LAST_WORDS)
        self._transport.close()
        return Exit(code, self._asked)


async def end_group(group: int) -> None:
    """Kills what is left of a process group; a resource tracker in it gets a moment for what those have left."""
    for pid in workers(group):
        _signal(pid, signal.SIGKILL)
    loop = asyncio.get_running_loop()
    until = loop.time() + TRACKER_TIME
    while members(group) and loop.time() < until:
        await asyncio.sleep(0.02)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def members(group: int) -> list[int]:
    """Living processes of a process group."""
    return [pid for pid in psutil.pids() if _group_of(pid) == group and not has_ended(pid)]


def workers(group: int) -> list[int]:
    """Those that compute something: no resource trackers."""
    return [pid for pid in members(group) if not _is_tracker(pid)]


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


def _is_tracker(pid: int) -> bool:
    try:
        return any(TRACKER in word for word in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def tree_activity(pid: int) -> int | None:
    """CPU time in milliseconds plus bytes read, of a process and what it started; None when it is gone."""
    try:
        leader = psutil.Process(pid)
        return sum(_activity(process) for process in (leader, *leader.children(recursive=True)))
    except psutil.Error:
        return None


def _activity(process: psutil.Process) -> int:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0
    busy = int(1000 * (times.user + times.system))
    try:
        return busy + int(process.io_counters().read_chars)
    except psutil.Error:  # root's process, seen by a daemon that is not root: what it reads is not told
        return busy
