"""Units of an earlier release go on, are adopted, and are replaced one after the other."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from syshaxd.backends.backend import Adopted, Capabilities, LaunchSpec, OnLine, Running
from syshaxd.backends.container import ContainerBackend
from syshaxd.backends.container_spec import EngineKind
from syshaxd.config.types import Config, ContainerConfig, CpuConfig, HealthConfig, PdConfig, UnitConfig
from syshaxd.model.unit import BackendKind, Role, UnitView
from syshaxd.supervisor import Supervisor, desired_units
from syshaxd.supervisor.binding.configured import binding_plan
from syshaxd.supervisor.binding.host_tree import read_host
from syshaxd.supervisor.recipes import CONTRACT
from syshaxd.unitclient import UnitClient

ROOT = Path(__file__).resolve().parents[3]
FAKE = str(ROOT / "testbed/small_unit.py")
pytestmark = pytest.mark.timeout(240)


class EarlierRelease:
    """A backend of a daemon whose units spoke another contract."""

    capabilities: Capabilities = ContainerBackend.capabilities

    def __init__(self, inner: ContainerBackend) -> None:
        self._inner = inner

    async def start(self, spec: LaunchSpec, on_line: OnLine) -> Running:
        return await self._inner.start(replace(spec, contract="0"), on_line)

    async def adopt(self, spec: LaunchSpec, on_line: OnLine) -> Adopted | None:
        return await self._inner.adopt(spec, on_line)

    async def close(self) -> None:
        await self._inner.close()


class Release:
    """One daemon's supervisor; notes what it shows at each change."""

    def __init__(self, folder: Path, client: UnitClient, earlier: bool) -> None:
        self.seen: list[tuple[UnitView, ...]] = []
        backend = ContainerBackend(EngineKind.DOCKER, str(folder))
        self.supervisor = Supervisor(
            backends={BackendKind.DOCKER: EarlierRelease(backend) if earlier else backend},
            client=client,
            in_flight=lambda: (),
            environ={**os.environ, "PYTHONPATH": str(ROOT / "kernels/python")},
            on_failure=lambda name, error: pytest.fail(f"{name}: {error}"),
            on_change=lambda: self.seen.append(self.supervisor.views()),
        )
        self.supervisor.start()
        config = _config(folder)
        self.supervisor.apply(desired_units(config, binding_plan(config, read_host())))

    async def settled(self) -> dict[str, str]:
        """Container ids, once all units are ready and nothing is pending."""

        def done() -> bool:
            return all(view.ready and not view.pending for view in self.supervisor.views())

        await asyncio.wait_for(self.supervisor.wait_for(done), 90)
        return {view.name: view.container for view in self.supervisor.views()}


def _config(folder: Path) -> Config:
    words = (sys.executable, FAKE, "--port", "{port}", "--api-key-file", "{api_key_file}")
    units = tuple(
        UnitConfig(
            name=name,
            role=Role.CPU,
            backend=BackendKind.DOCKER,
            command=words,
            served_name="m",
            env={"PYTHONPATH": str(ROOT)},
            cpu=CpuConfig(affinity="none"),
            health=HealthConfig(interval=0.05, timeout=5.0, canary_timeout=10.0),
            container=ContainerConfig(image="here:1", socket=str(folder / "engine.sock")),
        )
        for name in ("one", "two")
    )
    return Config(
        units=units, state_dir=str(folder / "state"), pd=PdConfig(pool_dir=str(folder / "pool"), pool_size=65536)
    )


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    """Where a container engine listens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "testbed.fake_container_engine", str(tmp_path / "engine.sock"),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), 20)
    yield tmp_path
    process.terminate()
    await asyncio.wait_for(process.wait(), 20)


async def test_units_of_another_release_are_replaced_one_by_one(folder: Path) -> None:
    async with UnitClient() as client:
        earlier = Release(folder, client, earlier=True)
        await asyncio.wait_for(
            earlier.supervisor.wait_for(lambda: all(v.ready for v in earlier.supervisor.views())), 90
        )
        before = {view.name: view.container for view in earlier.supervisor.views()}
        await earlier.supervisor.close(keep=True)
        later = Release(folder, client, earlier=False)
        try:
            after = await later.settled()
        finally:
            await later.supervisor.close()
    assert not set(before.values()) & set(after.values())
    words = f"replace: version 0 of the handoff contract, wanted {CONTRACT}"
    assert {view.pending for views in later.seen for view in views if view.container in before.values()} == {words}
    serving = [sum(view.ready for view in views) for views in later.seen]
    both = [number for number, count in enumerate(serving) if count == 2]
    assert min(serving[both[0] : both[-1]]) == 1, "the other one served all the time"
