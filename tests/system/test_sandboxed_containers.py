"""Units in containers of both engines, started by the daemon in the sandbox that the package ships."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from testbed.machine import Machine, at_work
from testbed.processes import wait_for
from testbed.unit_image import UNIT_IMAGE
from tests.system.test_package import ROUTES, ask, journal

pytestmark = pytest.mark.timeout(240, func_only=True)
CONFIG = "/etc/syshax/containers.yaml"


@pytest.fixture(scope="module", params=["podman", "docker"])
def engine(fresh: Machine, request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine's name; its image is there."""
    name = str(request.param)
    if name == "docker":
        fresh.run("systemctl start docker")
    fresh.run(f"{name} import /srv/images/unit.tar {UNIT_IMAGE}", timeout=200)
    yield name
    fresh.run(f"rm -f {CONFIG}; systemctl stop syshaxd.socket syshaxd")
    fresh.run(f"{name} rmi --force {UNIT_IMAGE}", check=False)


def containers(machine: Machine) -> dict[str, str]:
    """Container ids by unit, from the status."""
    units: Any = machine.status()["units"]
    return {unit["name"]: unit["container"] for unit in units}


def texts(machine: Machine) -> list[str]:
    """Answers over all routes."""
    return [ask(machine, route)["choices"][0]["message"]["content"] for route in ROUTES]


def test_units_in_containers_from_inside_the_sandbox(machine: Machine, engine: str) -> None:
    unit = {"backend": engine, "container": {"image": UNIT_IMAGE, "pull": "never"}}
    config = json.dumps({"units": {"gpu": unit, "cpu": unit}})
    machine.run(f"cat > {CONFIG} <<'END'\n{config}\nEND\nsystemctl reload syshaxd")
    wait_for("both units in containers", lambda: all(containers(machine).values()) and at_work(machine), 90)
    answers = texts(machine)
    assert answers[0] and answers == [answers[0]] * 3, "over the pool in /dev/shm"
    assert len(machine.output(f"{engine} ps --quiet").split()) == 2


def test_adopted_after_a_restart_and_a_kill(machine: Machine, engine: str) -> None:
    before = containers(machine)
    machine.run("systemctl restart syshaxd")
    wait_for("the daemon is back", lambda: at_work(machine), 60)
    assert containers(machine) == before
    machine.run("systemctl kill --signal=KILL --kill-who=main syshaxd")
    wait_for("a new daemon", lambda: at_work(machine), 60)
    assert containers(machine) == before


def test_what_a_container_writes_is_in_the_journal_under_its_units_name(machine: Machine, engine: str) -> None:
    said = [entry["MESSAGE"] for entry in journal(machine, "SYSHAX_UNIT=cpu", "SYSHAX_PART=unit")]
    assert any("loaded in" in str(line) for line in said), said[-5:]


def test_the_doctor_finds_nothing_wrong(machine: Machine, engine: str) -> None:
    said = machine.run("runuser -u syshax -- syshax doctor", check=False).stdout
    assert f"ok      {engine} socket" in said and "ok      cpu: image" in said, said
    assert said.splitlines()[-1].startswith("0 errors"), said


def test_stop_ends_the_containers(machine: Machine, engine: str) -> None:
    machine.run("systemctl stop syshaxd.socket syshaxd")
    assert machine.output(f"{engine} ps --all --quiet") == ""
    assert machine.output("ls /dev/shm/syshax") == ""
