"""The process backend with real children."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Callable

import psutil
import pytest

from syshaxd.backends.backend import MAX_LINE, Exit, LaunchSpec, LineSplitter
from syshaxd.backends.external import ExternalBackend
from syshaxd.backends.process import ProcessBackend, _activity, members

ENV = {"PATH": os.environ["PATH"], "MARK": "1"}


def _spec(code: str, cpus: Sequence[int] = ()) -> LaunchSpec:
    argv = (sys.executable, "-u", "-c", textwrap.dedent(code))
    return LaunchSpec(unit="cpu", argv=argv, env=ENV, url="", cpus=frozenset(cpus))


async def _until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "condition did not come true in time"
        await asyncio.sleep(0.01)


async def test_lines_exit_status_and_environment() -> None:
    lines: list[str] = []
    spec = _spec("import os; print(sorted(os.environ)); print('é'); exit(3)")
    child = await ProcessBackend().start(spec, lines.append)
    ended = await asyncio.wait_for(child.wait(), 10)
    assert ended == Exit(3) and ended.reason == "exited with status 3"
    assert "MARK" in lines[0] and "NOTIFY_SOCKET" not in lines[0] and "HOME" not in lines[0]
    assert lines[1] == "é"
    assert await child.wait() == ended, "the end can be asked for again"


async def test_bound_before_the_first_instruction() -> None:
    cpu = min(os.sched_getaffinity(0))
    lines: list[str] = []
    child = await ProcessBackend().start(_spec("import os; print(os.sched_getaffinity(0))", [cpu]), lines.append)
    await asyncio.wait_for(child.wait(), 10)
    assert lines == [str({cpu})]


async def test_memory_comes_from_the_nodes_asked_for_from_the_first_instruction() -> None:
    lines: list[str] = []
    code = "print(open('/proc/self/numa_maps').readline().split()[1])"
    spec = replace(_spec(code), memory_nodes=(0,))
    await asyncio.wait_for((await ProcessBackend().start(spec, lines.append)).wait(), 10)
    assert lines in (["bind:0"], _REFUSED), "a container without CAP_SYS_NICE may refuse it; the unit runs and says so"
    absent: list[str] = []
    await asyncio.wait_for((await ProcessBackend().start(replace(spec, memory_nodes=(999,)), absent.append)).wait(), 10)
    assert absent[0].startswith("memory is not bound to nodes [999]: set_mempolicy: ") and absent[1] == "default"


_REFUSED = ["memory is not bound to nodes [0]: set_mempolicy: Operation not permitted", "default"]


async def test_cpus_that_cannot_be_had_are_named() -> None:
    lines: list[str] = []
    ended = await asyncio.wait_for((await ProcessBackend().start(_spec("", [9999]), lines.append)).wait(), 10)
    assert ended.code == 127 and lines[0].startswith("cannot bind to CPUs 9999: Invalid argument")


async def test_polite_stop() -> None:
    lines: list[str] = []
    code = """
        import signal, sys
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print('up')
        signal.pause()
    """
    child = await ProcessBackend().start(_spec(code), lines.append)
    await _until(lambda: lines == ["up"])
    assert await asyncio.wait_for(child.stop(10), 10) == Exit(0, asked=True)


async def test_a_unit_that_ignores_sigterm_is_killed_with_its_children() -> None:
    lines: list[str] = []
    code = """
        import signal, subprocess, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)
        signal.pause()
    """
    child = await ProcessBackend().start(_spec(code), lines.append)
    await _until(lambda: bool(lines))
    ended = await asyncio.wait_for(child.stop(0.05), 10)
    assert ended == Exit(-signal.SIGKILL, asked=True) and ended.reason == "killed by SIGKILL"
    await _until(lambda: not psutil.pid_exists(int(lines[0])) or psutil.Process(int(lines[0])).status() == "zombie")


@pytest.mark.parametrize("outside", [False, True])
async def test_a_killed_unit_leaves_no_shared_memory(outside: bool) -> None:
    """Python removes it by a process of its own, which outlives the others for a moment."""
    lines: list[str] = []
    code = """
        import signal, subprocess, sys
        from multiprocessing.shared_memory import SharedMemory
        subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
        print(SharedMemory(create=True, size=64).name)
        signal.pause()
    """
    child = await ProcessBackend().start(_spec(code), lines.append)
    await _until(lambda: bool(lines))
    assert child.pid and len(members(child.pid)) == 3 and Path("/dev/shm", lines[0]).exists()
    if outside:
        os.kill(child.pid, signal.SIGKILL)
    await asyncio.wait_for(child.wait() if outside else child.kill(), 10)
    assert not Path("/dev/shm", lines[0]).exists()
    assert not members(child.pid)


async def test_killed_from_outside_gives_the_hint() -> None:
    child = await ProcessBackend().start(_spec("import signal; signal.pause()"), lambda line: None)
    assert child.pid
    os.kill(child.pid, signal.SIGKILL)
    ended = await asyncio.wait_for(child.wait(), 10)
    assert ended.reason == "killed by SIGKILL, probably out of memory: see the kernel's log"


async def test_a_command_that_does_not_exist_says_so() -> None:
    lines: list[str] = []
    spec = LaunchSpec(unit="cpu", argv=("/nowhere/engine",), env=ENV, url="")
    child = await ProcessBackend().start(spec, lines.append)
    assert (await asyncio.wait_for(child.wait(), 10)).code == 127
    assert lines == ["cannot run /nowhere/engine: No such file or directory"]


async def test_activity_grows_while_it_computes() -> None:
    child = await ProcessBackend().start(_spec("while True: pass"), lambda line: None)
    try:
        first = child.activity()
        assert first is not None
        await _until(lambda: (child.activity() or 0) > first)
    finally:
        await child.kill()


async def test_no_descriptor_is_left() -> None:
    backend = ProcessBackend()
    await (await backend.start(_spec("pass"), lambda line: None)).wait()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await (await backend.start(_spec("print('x')"), lambda line: None)).wait()
    await _until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_a_start_cut_off_at_any_step_leaves_nothing() -> None:
    for turns in range(12):
        start = asyncio.ensure_future(ProcessBackend().start(_spec("import signal; signal.pause()"), lambda line: None))
        for _ in range(turns):
            await asyncio.sleep(0)
        start.cancel()
        await asyncio.wait({start})
        if not start.cancelled():
            await start.result().kill()
    await _until(lambda: not psutil.Process().children())


def test_units_die_with_a_killed_daemon(tmp_path: Path) -> None:
    daemon = tmp_path / "daemon.py"
    daemon.write_text(
        textwrap.dedent(f"""
            import asyncio, sys
            from syshaxd.backends.backend import LaunchSpec
            from syshaxd.backends.process import ProcessBackend

            async def main():
                argv = (sys.executable, "-u", "-c", "print(1); import time; time.sleep(600)")
                up = asyncio.Event()
                child = await ProcessBackend().start(LaunchSpec("u", argv, {ENV!r}, ""), lambda line: up.set())
                await up.wait()
                print(child.pid, flush=True)
                await child.wait()

            asyncio.run(main())
            """),
        encoding="utf-8",
    )
    root = str(Path(__file__).resolve().parents[3])
    with subprocess.Popen(
        [sys.executable, str(daemon)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}
    ) as process:
        assert process.stdout
        unit = psutil.Process(int(process.stdout.readline()))
        process.kill()
    unit.wait(timeout=10)
    assert not unit.is_running()


@pytest.mark.parametrize("size", [1, 7, MAX_LINE * 3])
def test_lines_are_bounded_however_they_arrive(size: int) -> None:
    data = b"one\r\n" + b"x" * (2 * MAX_LINE + 5) + b"\n\n\xff\nlast"
    lines: list[str] = []
    splitter = LineSplitter(lines.append)
    for at in range(0, len(data), size):
        splitter.feed(data[at : at + size])
    splitter.end()
    assert lines[0] == "one" and lines[-2:] == ["\ufffd", "last"]
    assert "".join(lines[1:-2]) == "x" * (2 * MAX_LINE + 5)


async def test_external_units_are_only_let_go() -> None:
    unit = await ExternalBackend().start(_spec(""), lambda line: None)
    waiting = asyncio.ensure_future(unit.wait())
    assert await unit.stop(1) == Exit(0, asked=True)
    assert (await asyncio.wait_for(waiting, 5)).asked


class _Foreign:
    """A process of root, as a daemon that is not root sees it."""

    def cpu_times(self) -> object:
        return SimpleNamespace(user=1.5, system=0.5)

    def io_counters(self) -> object:
        raise psutil.AccessDenied()


def test_what_may_not_be_read_does_not_hide_that_it_computes() -> None:
    assert _activity(_Foreign()) == 2000  # type: ignore[arg-type]
