"""Units as services: what is written for systemd, read from it, and run by the launcher. The rest: tests/system."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from syshaxd.backends import launch_file as launcher
from syshaxd.backends.backend import LaunchSpec
from syshaxd.backends.pidfd import has_ended, process_end
from syshaxd.backends.systemd import (
    ServiceState,
    Systemctl,
    SystemdBackend,
    available,
    launch_file,
    read_launch_file,
    write_launch_file,
)  # fmt: skip
from syshaxd.errors import BackendError

FAKE = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
    *show*) printf 'MainPID={pid}\\nExecMainCode=2\\nExecMainStatus=9\\nInvocationID=abc\\nActiveState={state}\\n' ;;
    *list-jobs*) echo '7 syshaxd.service restart running' ;;
    *broken*) echo 'Unit broken.service not found.' >&2; exit 5 ;;
esac
"""


def fake(folder: Path, state: str = "active", pid: int = 1) -> Systemctl:
    """A systemctl that says one thing, and a journalctl that writes one line."""
    program = folder / "systemctl"
    program.write_text(FAKE.format(log=folder / "log", state=state, pid=pid))
    journal = folder / "journalctl"
    journal.write_text("#!/bin/sh\necho a line; exec sleep 60\n")
    for path in (program, journal):
        path.chmod(0o755)
    return Systemctl(str(program), str(journal))


def spec(digest: str = "d") -> LaunchSpec:
    return LaunchSpec("cpu", ("/bin/true",), {"A": "1"}, "http://127.0.0.1:9", frozenset({0}), digest)


@pytest.mark.parametrize(("code", "status", "expected"), [(1, 3, 3), (2, 9, -9), (3, 11, -11), (0, 0, 0)])
def test_exit_codes(code: int, status: int, expected: int) -> None:
    assert ServiceState(code=code, status=status).exit_code == expected


def test_a_launch_file_is_private_and_reads_back(tmp_path: Path) -> None:
    path = launch_file(tmp_path / "units", "cpu")
    write_launch_file(path, spec())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_launch_file(path)["cpus"] == [0] and read_launch_file(path)["env"] == {"A": "1"}
    path.write_text("{")
    assert read_launch_file(path) == {} == read_launch_file(tmp_path / "nothing")


def test_a_launch_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "units").write_text("in the way")
    with pytest.raises(BackendError, match="cannot write .*cpu.launch"):
        write_launch_file(launch_file(tmp_path / "units", "cpu"), spec())


def run_launcher(path: Path) -> "subprocess.CompletedProcess[str]":
    """launch_file.py as the service runs it."""
    command = [sys.executable, "-I", "-S", str(launcher.__file__), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_the_launcher_binds_and_becomes_the_unit(tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    code = "import os, json; print(json.dumps([sorted(os.sched_getaffinity(0)), dict(os.environ).get('A')]))"
    path = tmp_path / "cpu.launch"
    what = {"argv": [sys.executable, "-c", code], "env": {"A": "1"}, "cpus": [cpu], "memory_nodes": []}
    path.write_text(json.dumps(what))
    assert json.loads(run_launcher(path).stdout) == [[cpu], "1"]


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"argv": ["/no/such/program"], "env": {}, "cpus": [], "memory_nodes": []}']
)
def test_the_launcher_says_what_is_wrong(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cpu.launch"
    path.write_text(text)
    result = run_launcher(path)
    assert result.returncode == launcher.CANNOT_RUN
    assert "cpu.launch" in result.stderr or "/no/such/program" in result.stderr


async def test_calls_fail_with_systemds_own_words(tmp_path: Path) -> None:
    systemctl = fake(tmp_path)
    assert (await systemctl.state("x")).pid == 1
    assert await systemctl.restarting()
    with pytest.raises(BackendError, match="Unit broken.service not found"):
        await systemctl.call("start", "broken")
    with pytest.raises(BackendError, match="cannot run .*nowhere"):
        await Systemctl(str(tmp_path / "nowhere")).call("show")


ADOPTIONS = [("active", "d", True), ("active", "e", False), ("failed", "d", False)]


@pytest.mark.parametrize(("state", "digest", "adopted"), ADOPTIONS)
async def test_adoption(tmp_path: Path, state: str, digest: str, adopted: bool) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        lines: list[str] = []
        backend = SystemdBackend(str(tmp_path), fake(tmp_path, state, process.pid))
        write_launch_file(launch_file(tmp_path / "units", "cpu"), replace(spec("d"), contract="0"))
        found = await backend.adopt(LaunchSpec("cpu", (), {}, "http://127.0.0.1:1", digest=digest), lines.append)
        assert (found is not None) is adopted
        if found is not None:
            assert found.url == "http://127.0.0.1:9" and found.running.pid == process.pid
            assert found.contract == "0", "that of its own start"
            for _ in range(500):
                if lines:
                    break
                await asyncio.sleep(0.01)
            await found.running.release()
            assert lines == ["a line"] and process.poll() is None
        process.kill()


async def test_a_foreign_process_is_seen_to_end() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        end = asyncio.ensure_future(process_end(process.pid))
        await asyncio.sleep(0)
        assert not end.done()
        assert not has_ended(process.pid)
        process.kill()
        await asyncio.wait_for(end, 10)
        assert has_ended(process.pid), "a zombie has ended"
    assert has_ended(process.pid)
    await process_end(0)


def test_only_a_service_gets_services(tmp_path: Path) -> None:
    results: dict[str, bool] = {"no service": available("", Path("/")), "no template": available("x", tmp_path / "no")}
    assert not any(results.values())
