"""Verbs that talk to the daemon: the real client and server over a real socket, in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from syshaxd.conductor.control import PATH_LIMIT, listen
from syshaxd.errors import SysHaxError

ROOT = Path(__file__).resolve().parents[2]


def syshax(*words: str, path: Path, code: int = 0) -> str:
    """Run a verb against a socket; returns stdout, or stderr where it has to fail."""
    command = [sys.executable, "-m", "syshaxd.cli", *words, "--socket", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if not done.stderr else done.stderr


@contextlib.contextmanager
def running(path: Path, *flags: str) -> Iterator[Path]:
    """A scripted daemon."""
    command = [sys.executable, "-m", "testbed.fake_control_socket", str(path), *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield path
        finally:
            process.kill()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One daemon for all tests that only ask."""
    with running(tmp_path_factory.mktemp("daemon") / "control.sock") as path:
        yield path


def test_status(daemon: Path) -> None:
    page = syshax("status", path=daemon)
    assert "sysHAX 1.2.3: ready, up 2h" in page
    assert "requests 2 running, 1 queued; pd off: no CPU unit" in page
    assert "cpu: exited with code 3" in page
    assert "pending, needs systemctl restart syshaxd: state_dir: /a -> /b" in page
    assert any(line.split()[:5] == ["gpu", "accelerator", "sysinfer", "process", "ready"] for line in page.splitlines())


def test_status_for_programs(daemon: Path) -> None:
    status = json.loads(syshax("status", "--json", path=daemon))
    assert [unit["url"] for unit in status["units"]] == ["http://127.0.0.1:8001", "http://127.0.0.1:8002"]


def test_reload_tells_what_it_did(daemon: Path) -> None:
    assert syshax("reload", "--wait", path=daemon).splitlines() == [
        "applied: log.level: info -> debug",
        "unit replaced: gpu",
    ]
    assert json.loads(syshax("reload", "--json", path=daemon))["replaced"] == ["gpu"]


def test_a_bad_reload_fails_with_every_fault(tmp_path: Path) -> None:
    with running(tmp_path / "c.sock") as path:
        Path(f"{path}.bad").touch()
        said = syshax("reload", "--wait", path=path, code=1)
    assert said.splitlines() == [
        "syshax: a.yaml:3:4: x.y: found 1; allowed is 2",
        "syshax: b.yaml: no unit",
        "syshax: 2 faults in the configuration; nothing was changed",
    ]


def test_units(daemon: Path) -> None:
    listed = json.loads(syshax("units", "list", "--json", path=daemon))["units"]
    assert [unit["name"] for unit in listed] == ["gpu", "cpu"]
    assert "out of memory" in syshax("units", "show", "cpu", path=daemon)
    assert syshax("units", "show", "gpu", "--command", path=daemon) == "python3 -m sysinfer --name 'gpu unit'\n"
    assert syshax("units", "logs", "gpu", "-n", "2", path=daemon) == "gpu line 198\ngpu line 199\n"
    assert syshax("units", "restart", "cpu", path=daemon, code=1) == "syshax: unit cpu does not stop\n"
    said = syshax("units", "show", "tpu", path=daemon, code=1)
    assert said == "syshax: no unit tpu; units are: gpu, cpu\n"
    assert "needs the NAME" in syshax("units", "stop", path=daemon, code=2)


def test_a_stopped_daemon_of_stopped_units_is_a_failure_for_scripts(tmp_path: Path) -> None:
    with running(tmp_path / "c.sock") as path:
        assert json.loads(syshax("units", "stop", "gpu", "--json", path=path))["state"] == "stopped"
        syshax("status", path=path, code=1)


def test_drain(tmp_path: Path) -> None:
    with running(tmp_path / "c.sock", "--left", "3") as path:
        syshax("drain", "--timeout", "1", path=path, code=1)
        assert json.loads(syshax("drain", "--json", "--timeout", "2.5", path=path, code=1))["timeout"] == 2.5


def test_a_self_check_that_is_asked_for_tells_why_splits_are_off(daemon: Path) -> None:
    assert syshax("pd", "check", path=daemon, code=1) == "splits are off: no CPU unit\n"
    assert json.loads(syshax("pd", "check", "--json", path=daemon, code=1)) == {
        "enabled": False,
        "reason": "no CPU unit",
    }


def test_interfaces_and_model(daemon: Path) -> None:
    page = syshax("interfaces", path=daemon)
    assert "http://127.0.0.1:8010/v1/chat/completions" in page
    assert f"unix:{daemon}" in page
    models = json.loads(syshax("model", "--json", path=daemon))["models"]
    assert models == [{"name": "m", "max_model_len": 512, "units": ["gpu", "cpu"], "ready": ["gpu"]}]


def test_explain(daemon: Path) -> None:
    assert syshax("explain", "abc", path=daemon) == "request abc\n0.0 ms admitted\n"
    assert json.loads(syshax("explain", "abc", "--chrome-trace", path=daemon)) == {"traceEvents": []}
    assert json.loads(syshax("explain", "abc", "--json", path=daemon))["events"][0]["event"] == "admitted"
    assert syshax("explain", "no/such", path=daemon, code=1) == "syshax: no request no/such\n"


def test_no_daemon(tmp_path: Path) -> None:
    assert "does not run" in syshax("status", path=tmp_path / "absent.sock", code=69)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    assert "does not run" in syshax("reload", path=tmp_path / "dead.sock", code=69)


def test_a_daemon_that_hangs_or_talks_nonsense(tmp_path: Path) -> None:
    with running(tmp_path / "a.sock", "--hang") as path:
        assert "no answer within 0.2 s" in syshax("reload", "--timeout", "0.2", path=path, code=69)
    with running(tmp_path / "b.sock", "--garbage") as path:
        assert "not HTTP" in syshax("status", path=path, code=1)


def test_watch_ends_when_its_reader_does(daemon: Path) -> None:
    command = [sys.executable, "-m", "syshaxd.cli", "status", "--watch", "--interval", "0.1", "--socket", str(daemon)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        pages = 0
        while pages < 2:
            pages += process.stdout.readline().startswith("sysHAX")
        process.stdout.close()
        assert process.wait(10) == 0
        assert process.stderr.read() == ""


def test_the_socket_is_for_owner_and_group_only(daemon: Path) -> None:
    assert stat.S_IMODE(daemon.stat().st_mode) == 0o660


def test_a_second_daemon_does_not_take_the_socket(daemon: Path) -> None:
    with pytest.raises(SysHaxError, match="another syshaxd"):
        listen(daemon)


def test_what_a_killed_daemon_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    listen(path).close()
    assert path.exists()
    with listen(path):
        assert path.is_socket()


def test_paths_that_do_not_work_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SysHaxError, match="is no socket"):
        listen(tmp_path / "file")
    with pytest.raises(SysHaxError, match="can't listen"):
        listen(tmp_path / "file" / "c.sock")
    with pytest.raises(SysHaxError, match=f"{PATH_LIMIT} bytes"):
        listen(tmp_path / ("x" * PATH_LIMIT))


def raw(path: Path, request: bytes) -> bytes:
    """One request, byte by byte as given."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(os.fspath(path))
        connection.sendall(request)
        return connection.makefile("rb").read()


@pytest.mark.parametrize(
    ("request_line", "body", "status"),
    [
        ("GET /v1/nothing", "", b"404"),
        ("DELETE /v1/status", "", b"405"),
        ("POST /v1/drain", "{", b"400"),
        ("POST /v1/drain", "[]", b"400"),
        ("POST /v1/drain", '{"timeout": -1}', b"400"),
        ("POST /v1/drain", '{"timeout": 1e999}', b"400"),
        ("POST /v1/units/gpu/explode", "", b"404"),
        ("GET /v1/units/gpu/logs?lines=0", "", b"400"),
    ],
)
def test_bad_requests_are_refused_in_json(daemon: Path, request_line: str, body: str, status: bytes) -> None:
    text = f"{request_line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    head, _, answer = raw(daemon, text.encode()).partition(b"\r\n\r\n")
    assert head.split()[1] == status
    assert json.loads(answer)["error"]["message"]


def test_many_callers_at_once(daemon: Path) -> None:
    answers: list[bytes] = []
    call = b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    threads = [threading.Thread(target=lambda: answers.append(raw(daemon, call))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [answer.split()[1] for answer in answers] == [b"200"] * 20
