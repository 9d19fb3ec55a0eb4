"""What the doctor finds at an engine's socket, and at none."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from syshaxd.cli.doctor.engines import engine_findings
from syshaxd.cli.doctor.findings import Finding, Level
from syshaxd.config.types import Config, ContainerConfig, UnitConfig
from syshaxd.model.unit import BackendKind, Role

ROOT = Path(__file__).resolve().parents[3]


async def findings(socket: Path, unit: UnitConfig, *faults: str) -> list[Finding]:
    """With a fake engine of these faults behind the socket."""
    words = [word for fault in faults for word in ("--fault", fault)]
    command = (sys.executable, "-m", "testbed.fake_container_engine", str(socket), *words)
    engine = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        assert engine.stdout is not None
        assert await asyncio.wait_for(engine.stdout.readline(), 20) == b"READY\n"
        return await asyncio.to_thread(engine_findings, Config(units=(unit,)))
    finally:
        engine.terminate()
        await asyncio.wait_for(engine.wait(), 20)


def unit(socket: Path, image: str = "here:1", pull: str = "missing") -> UnitConfig:
    section = ContainerConfig(image=image, socket=str(socket), pull=pull)
    return UnitConfig("cpu", Role.CPU, "vllm", BackendKind.DOCKER, container=section)


async def test_an_engine_that_answers_and_an_image_that_is_here(tmp_path: Path) -> None:
    socket = tmp_path / "engine.sock"
    found = await findings(socket, unit(socket))
    assert [finding.level for finding in found] == [Level.OK, Level.OK]
    assert found[0].found == f"{socket}: 20.10, API 1.41" and found[1].found.startswith("here:1 (sha256:1")


@pytest.mark.parametrize(("pull", "level"), [("missing", Level.WARNING), ("never", Level.ERROR)])
async def test_an_image_that_is_not_here(tmp_path: Path, pull: str, level: Level) -> None:
    socket = tmp_path / "engine.sock"
    image = (await findings(socket, unit(socket, "there:2", pull=pull)))[1]
    assert image.level is level and "syshax image load FILE" in image.advice


async def test_an_engine_that_is_too_old_or_another(tmp_path: Path) -> None:
    socket = tmp_path / "engine.sock"
    (old,) = await findings(socket, unit(socket), "old-api")
    assert old.level is Level.ERROR and "API versions 1.12 to 1.24" in old.found
    (other,) = await findings(socket, replace(unit(socket), backend=BackendKind.PODMAN))
    assert other.level is Level.ERROR and other.found == f"{socket} is that of docker"


def test_no_engine(tmp_path: Path) -> None:
    (none,) = engine_findings(Config(units=(unit(tmp_path / "none.sock"),)))
    assert none.level is Level.ERROR and none.advice.startswith("systemctl start docker")
    assert engine_findings(Config()) == []
