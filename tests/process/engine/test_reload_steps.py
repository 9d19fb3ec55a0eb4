"""A reload that is cut off at any step leaves the old or the new configuration in force, never a mixture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from syshaxd.config import Source
from syshaxd.engine import Engine, EngineSurroundings
from syshaxd.sdnotify import Notifier
from syshaxd.supervisor.binding.host_tree import read_host
from testbed.daemon_fake_units import free_port

TEXT = """
services: {{conductor: {{host: 127.0.0.1, port: {port}}}}}
models: {{default: {model}}}
units:
  far: {{role: cpu, kind: openai, backend: external, url: "http://127.0.0.1:{unit}"}}
  {extra}: {{role: accelerator, kind: openai, backend: external, url: "http://127.0.0.1:{unit}"}}
lifecycle: {{drain_timeout: 0s}}
control_socket: {folder}/control.sock
state_dir: {folder}/state
"""


class World:
    """An engine in this process whose configuration file changes between two versions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = (free_port(), free_port())
        self.file = folder / "syshax.yaml"
        self.unit = free_port()  # nobody listens there
        self.write(0)
        source = Source(self.file)
        around = EngineSurroundings(source=source, notifier=Notifier(), environ={}, look_at_host=read_host)
        self.engine = Engine(source.load(), around)
        self.run = asyncio.ensure_future(self.engine.run())

    def write(self, version: int) -> None:
        names = {"model": f"model{version}", "extra": f"extra{version}"}
        text = TEXT.format(port=self.ports[version], unit=self.unit, folder=self.folder, **names)
        self.file.write_text(text, encoding="utf-8")

    async def seen(self) -> Mapping[str, Any]:
        """What clients and administrators see of the version in force, each from another part."""
        status = self.engine.status()
        listening = [version for version in (0, 1) if await _models(self.ports[version]) is not None]
        models = await _models(self.ports[listening[0]])
        units = [view.name for view in self.engine.supervisor.views() if view.name.startswith("extra")]
        return {
            "listening": listening,
            "model": int(str(status["model"])[-1]),
            "served": int(str((models or [""])[0])[-1]),
            "units": int(units[0][-1]),
        }


async def _models(port: int) -> Any:
    try:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/v1/models") as answer:
                return [card["id"] for card in (await answer.json())["data"]]
    except aiohttp.ClientConnectorError:
        return None


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    while not made.engine.conductor.addresses:
        assert not made.run.done(), made.run
        await asyncio.sleep(0.01)
    yield made
    made.engine.stop()
    made.engine.stop()
    assert await asyncio.wait_for(made.run, 20) == 0


async def test_cut_off_at_every_step(world: World) -> None:
    version, outcomes = 0, set()
    steps = [*range(12), None]
    for step in steps:
        world.write(1 - version)
        reload = asyncio.ensure_future(world.engine.load_and_apply())
        await _let_run(reload, step)
        reload.cancel()
        await asyncio.wait({reload})
        seen = await world.seen()
        now = seen["model"]
        outcomes.add(now != version)
        assert seen == {"listening": [now], "model": now, "served": now, "units": now}, f"cut off at step {step}"
        assert reload.cancelled() == (now == version)
        version = now
    assert outcomes == {False, True}, "both were seen"


async def _let_run(reload: "asyncio.Future[Any]", step: Any) -> None:
    """`step` turns of the loop from the moment the file has been read on (the executor's time varies); None: all."""
    if step is None:
        await asyncio.wait({reload}, timeout=20)
        return
    for _ in range(step):
        await asyncio.sleep(0 if step < 6 else 0.002 * step)
        if reload.done():
            return


async def test_the_parts_agree_after_each_whole_reload(world: World) -> None:
    for version in (1, 0, 1):
        world.write(version)
        result = await world.engine.reload()
        assert result["added"] == [f"extra{version}"] and result["removed"] == [f"extra{1 - version}"]
        assert await world.seen() == {"listening": [version], "model": version, "served": version, "units": version}
