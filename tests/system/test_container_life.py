"""Life and death of units in containers of both engines, under a real daemon, with real sysinfer units inside.

The tests share one daemon an engine; each leaves two ready units behind.
"""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syshaxd.backends.container_spec import EngineKind
from testbed.container_engines import IMAGE, RealEngine
from testbed.daemon_containers import LONG, ROUTES, House, alive, resident
from testbed.processes import run, wait_for
from testbed.unit_image import UNIT_IMAGE

pytestmark = pytest.mark.timeout(150, func_only=True)
SERVE = (
    "python3 -m sysinfer serve {model} --served-model-name {served_name} --host {host} --port {port} "
    "--api-key-file {api_key_file} --threads 1"
)


@pytest.fixture(scope="module", params=list(EngineKind), ids=lambda kind: str(kind.value))
def engine(
    request: pytest.FixtureRequest, archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealEngine]:
    found = RealEngine(request.param, tmp_path_factory.mktemp(request.param.value)).start()
    try:
        found.import_image()
        found.import_archive(archive, UNIT_IMAGE)
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def house(engine: RealEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    one = House(tmp_path_factory.mktemp("life"), engine).start()
    try:
        yield one
    finally:
        one.close()


def change(house: House, container: dict[str, Any] = {}, **more: Any) -> None:
    """Another configuration of the CPU unit."""
    house.config["units"]["cpu"] = house.unit("cpu", container, **more)
    house.reload()


def replace(house: House, **more: Any) -> dict[str, str]:
    """The same, until the unit serves again in another container."""
    before = house.ready()["cpu"]
    change(house, **more)
    wait_for("another cpu unit", lambda: house.unit_status("cpu").get("container") not in ("", before), 60)
    return house.ready()


def shell(script: str) -> dict[str, Any]:
    """A unit that a shell starts."""
    return {"command": ["sh", "-c", script]}


def test_the_image_holds_sysinfer(engine: RealEngine) -> None:
    words = ("run", "--rm", "--network=none", UNIT_IMAGE, "python3", "-c", "import sysinfer.server.run; print('here')")
    assert engine.cli(*words).splitlines()[-1] == "here"


def test_split_over_the_mounted_pool(house: House) -> None:
    house.ready()
    answers = [house.tokens(route) for route in ROUTES]
    assert len(answers[0]) == 40 and answers == [answers[0]] * 3


@pytest.mark.parametrize("how", ["kill -9", "removed by hand"])
def test_a_unit_that_goes_under_a_stream(house: House, how: str) -> None:
    before, whole, failovers = house.ready(), house.tokens("accelerator", LONG), house.failovers()
    pid = house.unit_status("gpu")["pid"]
    stream = house.stream("accelerator").at(40)
    if how == "kill -9":
        os.kill(pid, signal.SIGKILL)
    else:
        now = ("--time", "0") if house.engine.kind is EngineKind.PODMAN else ()
        house.engine.cli("rm", "--force", *now, before["gpu"])
    assert stream.result() == whole, "the other unit went on"
    assert house.failovers() == failovers + 1, "from the last token of the one that went"
    after = house.ready()
    assert after["gpu"] != before["gpu"] and after["cpu"] == before["cpu"]
    failure = house.unit_status("gpu")["last_failure"]
    # A container that is gone has no status left: a failed look at it may come before the end of its process is seen.
    gone = "its container was removed|SIGKILL|^unhealthy: unit gpu: /health: Cannot connect"
    reason = "killed by SIGKILL, probably out of memory" if how == "kill -9" else gone
    assert re.search(reason, failure["reason"]) and failure["last_log"]


def test_the_daemon_is_killed(house: House) -> None:
    before = house.ready()
    house.end(signal.SIGKILL)
    house.start()
    assert house.ready() == before, "adopted: the same containers"
    assert len(house.tokens("accelerator>cpu")) == 40


def test_units_are_kept_over_a_stop(house: House) -> None:
    house.config["lifecycle"] = {"on_stop": "keep"}
    house.reload()
    before = house.ready()
    house.end()
    running = house.engine.cli("ps", "--no-trunc", "--quiet").split()
    assert set(before.values()) <= set(running)
    house.config["lifecycle"] = {"on_stop": "stop"}
    house.start()
    assert house.ready() == before


def test_a_reload_with_one_changed_unit_under_a_stream(house: House) -> None:
    before, whole, failovers = house.ready(), house.tokens("accelerator", LONG), house.failovers()
    stream = house.stream("accelerator", again=True).at(40)
    change(house, env={"CHANGED": "1"})
    cpu = before["cpu"]
    wait_for("the cpu unit is gone", lambda: house.unit_status("cpu").get("container", cpu) != cpu, 60)
    gone = stream.count
    after = house.ready()
    assert stream.count > gone, "the other one went on meanwhile"
    assert all(answer == whole for answer in stream.more().results())
    assert after["gpu"] == before["gpu"] and after["cpu"] != before["cpu"]
    assert house.failovers() == failovers, "and lost nothing that another one had to make good"


def test_the_engines_service_is_restarted_under_a_stream(house: House) -> None:
    before, whole, failovers = house.ready(), house.tokens("accelerator", LONG), house.failovers()
    if house.engine.kind is EngineKind.PODMAN:
        stream = house.stream("accelerator", again=True).at(40)
        house.engine.stop()
        stream.more()
        house.engine.start()
        assert all(answer == whole for answer in stream.more().results())
        assert house.ready() == before and house.failovers() == failovers, "containers do not need the service"
        return
    stream = house.stream("accelerator").at(40)
    house.engine.stop()  # Docker stops its containers with itself, as it has no live-restore here
    house.engine.start()
    assert stream.result() == whole, "it waited for a unit, and went on from its last token"
    assert house.failovers() > failovers
    assert not set(house.ready().values()) & set(before.values())


def test_sigterm_ignored_and_a_shell_that_forks(house: House) -> None:
    replace(house, **shell(f"trap '' TERM; {SERVE} & wait; wait"), stop_timeout="1s")
    pid = house.unit_status("cpu")["pid"]
    house.end()
    assert not alive(pid, 5) and "cpu" not in house.engine.cli("ps", "--all", "--format", "{{.Names}}")
    house.config["units"]["cpu"] = house.unit("cpu")
    house.start().ready()


def test_a_flood_of_lines_and_a_line_without_end(house: House) -> None:
    flood = "(yes 'a line of a flood' | head -c 40000000; head -c 100000000 /dev/zero | tr '\\0' x) & "
    before = resident(house.pid)
    replace(house, **shell(f"{flood} exec {SERVE}"))
    assert len(house.tokens("accelerator>cpu")) == 40
    wait_for("the flood is over", lambda: "x" * 100 in "".join(house.ask_control("units", "cpu", "logs")["lines"]), 90)
    assert resident(house.pid) - before < 64 << 20
    assert len(house.log) < 16 << 20 and "lines left out" in house.log


def test_out_of_memory(house: House) -> None:
    hungry = "import time; x = bytearray(1 << 30); x[:] = bytes(1 << 30); time.sleep(600)"
    more = {"command": ["python3", "-c", hungry], "restart": {"limit": 1}}
    change(house, {"memory": "128m"}, **more)
    unit = house.failed("cpu")
    assert "out of memory" in unit["reason"]
    assert len(house.tokens("")) == 40, "the other one serves"


def wrong(house: House, taken: int) -> dict[str, Any]:
    """Faults of one unit's configuration or surroundings: what it says, and the changes that make it so."""
    return {
        "image localhost/nothing:1 is not here, and pull is never": {"container": {"image": "localhost/nothing:1"}},
        "cannot run its container of .*python3": {"container": {"image": IMAGE}},
        "exited with status 7": shell("echo first; echo last words; exit 7"),
        "its port is taken": {"port": taken},
        "is there already and is not ours": {"container": {"name": f"{house.tag}-other"}},
        "/no/such/folder": {"container": {"mounts": ["/no/such/folder:/x:ro"]}},
    }


def test_what_a_person_got_wrong_is_said(house: House) -> None:
    house.engine.cli("run", "--detach", "--network=none", f"--name={house.tag}-other", UNIT_IMAGE, "sleep", "600")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for reason, changes in wrong(house, taken.getsockname()[1]).items():
            change(house, **changes, restart={"limit": 1})
            wait_for(reason, lambda: re.search(reason, str(house.unit_status("cpu").get("reason"))), 30)
            assert house.failed("cpu")["container"] == ""
            if "status 7" in reason:
                assert house.unit_status("cpu")["last_log"][-2:] == ["first", "last words"]
            assert len(house.tokens("")) == 40, "the other one serves"
    change(house)
    house.ready()


def test_a_committed_image_is_not_taken_for_the_unit(house: House) -> None:
    before = house.ready()
    image, name = "localhost/syshax-committed:1", f"{house.tag}-copy"
    house.engine.cli("commit", before["cpu"], image)
    try:
        house.engine.cli("run", "--detach", "--network=none", f"--name={name}", "--entrypoint=sleep", image, "600")
        house.end(signal.SIGKILL)
        house.start()
        assert house.ready() == before
        replace(house, env={"CHANGED": "2"})
        assert name in house.engine.cli("ps", "--format", "{{.Names}}").split(), "a person's own container stays"
    finally:
        house.engine.cli("rm", "--force", name, check=False)
        house.engine.cli("rmi", "--force", image, check=False)


def test_two_daemons_with_the_same_unit_names(house: House, tmp_path: Path) -> None:
    before = house.ready()
    other = House(tmp_path, house.engine)
    other.config["units"]["gpu"]["container"]["name"] = house.config["units"]["gpu"]["container"]["name"]
    other.config["units"]["gpu"]["restart"] = {"limit": 1}
    other.start()
    try:
        assert "is there already and is not ours" in other.failed("gpu")["reason"]
        wait_for("its other unit serves", lambda: other.unit_status("cpu").get("state") == "ready")
    finally:
        other.close()
    assert house.ready() == before


def test_shared_memory_is_full(engine: RealEngine, tmp_path: Path) -> None:
    small = tmp_path / "shm"
    small.mkdir()
    one = House(tmp_path, engine, pd={"pool_dir": str(small)})
    run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small)
    try:
        one.start().ready(pd=False)
        wait_for("the split was tried", lambda: "under way" not in one.ask_control("status")["pd"]["reason"])
        reason = one.ask_control("status")["pd"]["reason"]
        assert re.search(r"no room for .*gpu\.pool: 8 MiB left there \(pd\.pool_size\)", reason), reason
        assert len(one.tokens("")) == 40
    finally:
        one.close()
        run("umount", "--lazy", small, check=False)


def test_stop_ends_the_units(house: House) -> None:
    house.ready()
    house.end()
    names = house.engine.cli("ps", "--all", "--format", "{{.Names}}").split()
    assert [name for name in names if name.startswith(house.tag) and not name.endswith("-other")] == []
    stops = re.findall(r"unit has stopped unit=(\w+)", house.log)
    assert stops[-2:] == ["cpu", "gpu"], "in reverse order"
