"""The supervisor with real unit processes that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import psutil
import pytest

from syshaxd.backends.container import ContainerBackend
from syshaxd.backends.container_spec import EngineKind
from syshaxd.backends.external import ExternalBackend
from syshaxd.backends.process import ProcessBackend
from syshaxd.config.types import (
    Config,
    ContainerConfig,
    CpuConfig,
    HealthConfig,
    LifecycleConfig,
    LimitsConfig,
    PdConfig,
    RestartConfig,
    UnitConfig,
)  # fmt: skip
from syshaxd.errors import ConfigError, ControlError
from syshaxd.model.request import Endpoint, RequestInfo
from syshaxd.model.snapshot import InFlight
from syshaxd.model.unit import BackendKind, Role, UnitState, UnitView
from syshaxd.supervisor import Applied, Supervisor, desired_units
from syshaxd.supervisor.binding.configured import binding_plan
from syshaxd.supervisor.binding.host_tree import read_host
from syshaxd.unitclient import UnitClient

ROOT = Path(__file__).resolve().parents[3]
FAKE = str(ROOT / "testbed/small_unit.py")


class World:
    """A supervisor and everything around it."""

    def __init__(self, folder: Path, client: UnitClient) -> None:
        self.folder = folder
        self.in_flight: list[InFlight] = []
        self.failures: list[tuple[str, BaseException]] = []
        self.supervisor = Supervisor(
            backends={
                BackendKind.PROCESS: ProcessBackend(),
                BackendKind.EXTERNAL: ExternalBackend(),
                BackendKind.DOCKER: ContainerBackend(EngineKind.DOCKER, str(folder)),
            },
            client=client,
            in_flight=lambda: tuple(self.in_flight),
            environ={**os.environ, "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": "/nowhere"},
            on_failure=lambda name, error: self.failures.append((name, error)),
        )

    def unit(self, name: str, *flags: str, **more: object) -> UnitConfig:
        config = UnitConfig(
            name=name,
            role=Role.CPU,
            command=("{python}", FAKE, "--port", "{port}", "--api-key-file", "{api_key_file}", *flags),
            served_name="m",
            cpu=CpuConfig(affinity="none"),
            health=HealthConfig(interval=0.05, timeout=0.5, failures=2, canary_interval=60.0, canary_timeout=5.0),
            restart=RestartConfig(backoff=0.05, backoff_max=0.2, limit=3),
            stop_timeout=5.0,
            start_timeout=90.0,
        )
        return replace(config, **more)  # type: ignore[arg-type]

    def apply(self, *units: UnitConfig, **limits: float) -> Applied:
        config = Config(
            units=units,
            state_dir=str(self.folder / "state"),
            pd=PdConfig(pool_dir=str(self.folder / "pool"), pool_size=65536),
            limits=LimitsConfig(stall_timeout=limits.get("stall_timeout", 30.0)),
            lifecycle=LifecycleConfig(drain_timeout=limits.get("drain_timeout", 5.0)),
        )
        return self.supervisor.apply(desired_units(config, binding_plan(config, read_host())))

    def view(self, name: str) -> UnitView:
        return next(view for view in self.supervisor.views() if view.name == name)

    async def until(self, condition: Callable[[], bool], seconds: float = 90.0) -> None:
        try:
            await asyncio.wait_for(self.supervisor.wait_for(condition), seconds)
        except asyncio.TimeoutError:
            raise AssertionError(f"not in time; units: {self.supervisor.views()}") from None

    async def ready(self, *names: str) -> Sequence[UnitView]:
        await self.until(lambda: all(self.view(name).ready for name in names))
        return [self.view(name) for name in names]

    def steer(self, name: str) -> Path:
        folder = self.folder / "steer"
        folder.mkdir(exist_ok=True)
        return folder / name


pytestmark = pytest.mark.timeout(240)  # a busy machine takes seconds for each interpreter


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    client = UnitClient()
    await client.start()
    made = World(tmp_path, client)
    made.supervisor.start()
    children = {child.pid for child in psutil.Process().children()}
    yield made
    await made.supervisor.close()
    await client.close()
    assert made.failures == []
    assert {child.pid for child in psutil.Process().children()} <= children, "a unit was left behind"
    assert list((tmp_path / "pool").glob("*")) == [], "an outbox was left behind"


def _entry(unit: str, request_id: str) -> InFlight:
    info = RequestInfo(request_id, Endpoint.CHAT, "m", True, 10, None)
    return InFlight(info=info, unit=unit, started=0.0, first_token=1.0)


async def test_two_units_come_up_and_can_be_asked(world: World) -> None:
    assert world.apply(world.unit("gpu"), world.unit("cpu", "--slow-start", "0.3")) == Applied(("gpu", "cpu"), (), ())
    gpu, cpu = await world.ready("gpu", "cpu")
    assert [view.name for view in world.supervisor.views()] == ["gpu", "cpu"]
    assert gpu.abilities.serves("/v1/embeddings") and not gpu.abilities.serves("/v1/rerank"), "as it describes itself"
    assert gpu.max_model_len == 512 and gpu.model == "m" and gpu.epoch == 1 and gpu.restarts == 0
    assert gpu.url != cpu.url and gpu.pid != cpu.pid
    assert Path(gpu.pool_file).name == "gpu.pool" and Path(gpu.pool_file).exists()
    secret = world.folder / "state/units/gpu"
    assert world.supervisor.api_key("gpu") == secret.read_text(encoding="ascii").strip() != ""
    assert "loading weights" in world.supervisor.logs("gpu", 10)
    assert world.supervisor.command("gpu")[1] == FAKE


async def test_a_pool_folder_that_is_none_is_the_units_trouble_and_no_more(world: World) -> None:
    world.apply(world.unit("cpu", restart=RestartConfig(backoff=0.05, backoff_max=0.2, limit=1000)))
    (view,) = await world.ready("cpu")
    pool = world.folder / "pool"
    shutil.rmtree(pool)
    pool.write_text("in its place")
    os.kill(view.pid or 0, signal.SIGKILL)
    await world.until(lambda: "cannot make the pool file" in world.view("cpu").reason)
    assert "Not a directory" in world.view("cpu").reason
    pool.unlink()
    await world.until(lambda: world.view("cpu").ready)
    assert Path(world.view("cpu").pool_file).exists()


@pytest.mark.parametrize("damage", ["removed", "overwritten"])
async def test_a_lost_outbox_is_made_anew_one_unit_after_the_other(world: World, damage: str) -> None:
    world.apply(world.unit("gpu"), world.unit("cpu"))
    views = await world.ready("gpu", "cpu")
    if damage == "removed":
        shutil.rmtree(world.folder / "pool")
    for view in views if damage == "overwritten" else ():
        with open(view.pool_file, "r+b") as file:
            file.write(bytes(4096))
    lowest = 2

    def anew() -> bool:
        nonlocal lowest
        lowest = min(lowest, sum(world.view(name).ready for name in ("gpu", "cpu")))
        return all(world.view(name).epoch == 2 and world.view(name).ready for name in ("gpu", "cpu"))

    await world.until(anew)
    assert lowest == 1, "one of the two always serves"
    assert all(Path(view.pool_file).stat().st_size for view in views)


async def test_the_daemons_own_lack_of_descriptors_is_no_units_fault(world: World) -> None:
    world.apply(world.unit("cpu"))
    (view,) = await world.ready("cpu")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    with contextlib.ExitStack() as taken:
        taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with contextlib.suppress(OSError):
            while True:
                taken.enter_context(open(os.devnull, "rb"))  # noqa: SIM115
        for _ in range(4):
            world.supervisor.suspect("cpu", 1, "traffic saw EMFILE")
            await asyncio.sleep(0.3)
    await asyncio.sleep(0.3)
    assert world.view("cpu").ready and world.view("cpu").epoch == 1 and world.view("cpu").pid == view.pid


async def test_killed_unit_comes_back_as_another_epoch(world: World) -> None:
    world.apply(world.unit("cpu"))
    (view,) = await world.ready("cpu")
    assert view.pid
    with open(view.pool_file, "rb") as mapped:  # by a consumer, say; so the inode can't be used again
        os.kill(view.pid, signal.SIGKILL)
        await world.until(lambda: world.view("cpu").epoch == 2 and world.view("cpu").ready)
        assert os.fstat(mapped.fileno()).st_nlink == 0
    os.kill(world.view("cpu").pid or 0, signal.SIGKILL)
    await world.until(lambda: world.view("cpu").state is UnitState.FAILED)
    assert "killed by SIGKILL, probably out of memory" in world.view("cpu").reason
    await world.until(lambda: world.view("cpu").ready)
    after = world.view("cpu")
    assert (after.epoch, after.restarts, after.reason) == (3, 2, "")
    assert after.last_failure and "SIGKILL" in after.last_failure.reason, "kept while it serves again"
    assert "loading weights" in after.last_failure.last_log and after.last_failure.at > 0
    assert after.pid != view.pid


async def test_dying_at_once_ends_failed_with_reason_and_last_lines(world: World) -> None:
    world.apply(world.unit("cpu", "--die-at-once"))
    await world.until(lambda: world.view("cpu").state is UnitState.FAILED and world.view("cpu").epoch == 3)
    view = world.view("cpu")
    assert view.reason == "exited with status 1"
    assert view.last_log[-2:] == ("loading weights", "cannot read the model")
    with pytest.raises(ControlError, match="no unit named gpu; the units are: cpu"):
        await world.supervisor.action("gpu", "start")
    assert (await world.supervisor.action("cpu", "start")).state is UnitState.FAILED, "tried again, failed again"
    assert world.view("cpu").epoch > 3


async def test_what_a_unit_on_its_way_up_says_last(world: World) -> None:
    world.apply(world.unit("cpu", "--slow-start", "60"))
    await world.until(lambda: world.view("cpu").last_log == ("loading weights",))
    assert world.view("cpu").state is UnitState.STARTING


async def test_start_without_a_sign_of_life_is_given_up(world: World) -> None:
    world.apply(world.unit("cpu", "--hang-at-start", start_timeout=0.5, restart=RestartConfig(0.05, 0.1, 1)))
    await world.until(lambda: world.view("cpu").state is UnitState.FAILED)
    assert world.view("cpu").reason == "did not answer within 0.5 s (start_timeout)"


async def test_an_engine_that_is_away_is_no_fault_of_the_unit(world: World) -> None:
    section = ContainerConfig(image="x:1", socket=str(world.folder / "none.sock"))
    unit = world.unit("cpu", backend=BackendKind.DOCKER, container=section, restart=RestartConfig(0.01, 0.05, 2))
    world.apply(unit)
    await world.until(lambda: world.view("cpu").epoch > 5)
    assert "cannot talk to the container engine" in world.view("cpu").reason


async def test_another_model_than_configured_is_refused(world: World) -> None:
    world.apply(world.unit("cpu", "--served", "other", restart=RestartConfig(0.05, 0.1, 1)))
    await world.until(lambda: world.view("cpu").state is UnitState.FAILED)
    assert world.view("cpu").reason == "it serves other; the configuration expects m"


async def test_a_stall_shows_whatever_health_says(world: World) -> None:
    steer = world.steer("stall")
    world.apply(world.unit("cpu", "--steer", str(steer.parent)), stall_timeout=0.3)
    (view,) = await world.ready("cpu")
    steer.touch()
    async with _request(view, world.supervisor.api_key("cpu")):
        await world.until(lambda: world.view("cpu").epoch == 1 and not world.view("cpu").ready)
    assert "stalled: it holds 1 requests and has made no token" in world.view("cpu").reason
    steer.unlink()
    await world.until(lambda: world.view("cpu").ready and world.view("cpu").epoch == 2)


async def test_suspicion_leads_to_a_real_generation(world: World) -> None:
    steer = world.steer("mute")
    world.apply(world.unit("cpu", "--steer", str(steer.parent)))
    await world.ready("cpu")
    world.supervisor.suspect("cpu", 1, "reset in the middle of a stream")
    world.supervisor.suspect("cpu", 0, "from an older start")
    steer.touch()
    world.supervisor.suspect("cpu", 1, "reset in the middle of a stream")
    await world.until(lambda: not world.view("cpu").ready)
    reason = world.view("cpu").reason
    assert "does not generate" in reason and "(traffic: reset in the middle of a stream)" in reason
    steer.unlink()
    await world.until(lambda: world.view("cpu").ready)


async def test_a_sick_unit_is_replaced(world: World) -> None:
    steer = world.steer("sick")
    world.apply(world.unit("cpu", "--steer", str(steer.parent)))
    await world.ready("cpu")
    steer.touch()
    await world.until(lambda: not world.view("cpu").ready)
    assert "unhealthy: HTTP 503" in world.view("cpu").reason
    steer.unlink()
    await world.until(lambda: world.view("cpu").ready)


async def test_a_frozen_process_is_noticed(world: World) -> None:
    world.apply(world.unit("cpu"))
    (view,) = await world.ready("cpu")
    assert view.pid
    os.kill(view.pid, signal.SIGSTOP)
    await world.until(lambda: world.view("cpu").epoch == 2 and world.view("cpu").ready)


class _Looked(list[InFlight]):
    """Counts how often it was read."""

    looks = 0

    def __iter__(self) -> Iterator[InFlight]:
        self.looks += 1
        return super().__iter__()

    async def again(self, times: int) -> None:
        """Until it has been read so many times more."""
        until = self.looks + times
        while self.looks < until:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("where", [{"unit": "cpu"}, {"unit": "other", "kept_by": "cpu"}])
async def test_stop_drains_and_start_begins_anew(world: World, where: dict[str, Any]) -> None:
    """A request that has left fetches its KV from the unit still."""
    world.apply(world.unit("cpu", "--ignore-sigterm", stop_timeout=0.1))
    await world.ready("cpu")
    world.in_flight = seen = _Looked([replace(_entry("cpu", "r1"), **where)])
    stopping = asyncio.ensure_future(world.supervisor.action("cpu", "stop"))
    await world.until(lambda: world.view("cpu").state is UnitState.DRAINING)
    await asyncio.wait_for(seen.again(10), 10)
    assert world.view("cpu").state is UnitState.DRAINING, "a request still needs it"
    world.in_flight.clear()
    assert (await stopping).state is UnitState.STOPPED
    assert (await world.supervisor.action("cpu", "start")).ready
    assert (await world.supervisor.action("cpu", "restart")).epoch == 3


async def test_reload_replaces_only_changed_units_one_by_one(world: World) -> None:
    units = [world.unit(name) for name in ("a", "b", "c")]
    world.apply(*units)
    before = {view.name: view.pid for view in await world.ready("a", "b", "c")}
    down: list[int] = []

    def watch() -> bool:
        down.append(sum(not view.ready for view in world.supervisor.views()))
        return all(world.view(name).epoch == 2 and world.view(name).ready for name in ("a", "b"))

    changed = [replace(unit, env={"NEW": "1"}) if unit.name in ("a", "b") else unit for unit in units]
    assert world.apply(*changed) == Applied((), (), ("a", "b"))
    await world.until(watch)
    assert max(down) == 1, "two units were down at once"
    assert world.view("c").pid == before["c"]
    assert world.apply(*changed) == Applied((), (), ())


async def test_a_bad_change_takes_down_one_unit_not_all(world: World) -> None:
    units = [world.unit(name) for name in ("a", "b")]
    world.apply(*units)
    before = {view.name: view.pid for view in await world.ready("a", "b")}
    world.apply(*(world.unit(name, "--die-at-once") for name in ("a", "b")))
    await world.until(lambda: world.view("a").state is UnitState.FAILED and world.view("a").epoch > 3)
    assert world.view("b").pid == before["b"] and world.view("b").ready
    world.apply(*(world.unit(name, env={"GOOD": "1"}) for name in ("a", "b")))
    await world.until(lambda: all(world.view(name).ready for name in ("a", "b")) and world.view("b").epoch == 2)


async def test_a_change_during_a_replacement_is_not_lost(world: World) -> None:
    world.apply(world.unit("a"))
    await world.ready("a")
    world.apply(world.unit("a", "--slow-start", "0.5"))
    await world.until(lambda: world.view("a").epoch == 2 and world.view("a").state is UnitState.STARTING)
    world.apply(world.unit("a", env={"LAST": "1"}))
    await world.until(lambda: world.view("a").epoch == 3 and world.view("a").ready)
    assert "--slow-start" not in world.supervisor.command("a")


async def test_reload_adds_and_removes(world: World) -> None:
    world.apply(world.unit("a"), world.unit("b"))
    await world.ready("a", "b")
    assert world.apply(world.unit("b"), world.unit("c")) == Applied(("c",), ("a",), ())
    await world.until(lambda: [view.name for view in world.supervisor.views()] == ["b", "c"])
    await world.ready("b", "c")
    assert world.view("b").epoch == 1


async def test_settings_that_need_no_restart_do_not_cause_one(world: World) -> None:
    unit = world.unit("cpu")
    world.apply(unit)
    await world.ready("cpu")
    assert world.apply(replace(unit, health=HealthConfig(interval=0.2))) == Applied((), (), ())
    assert world.view("cpu").epoch == 1


async def test_a_removed_unit_may_come_back_while_it_drains(world: World) -> None:
    world.apply(world.unit("a"), world.unit("b"))
    await world.ready("a", "b")
    world.in_flight.append(_entry("a", "r1"))
    world.apply(world.unit("b"))
    await world.until(lambda: world.view("a").state is UnitState.DRAINING)
    world.apply(world.unit("a"), world.unit("b"))
    world.in_flight.clear()
    await world.until(lambda: world.view("a").ready and world.view("a").epoch == 2)


async def test_an_external_unit_is_used_and_left_alone(world: World, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, FAKE, "--port", str(port := _free_port())), env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        world.apply(world.unit("far", backend=BackendKind.EXTERNAL, url=url, command=(), served_name=""))
        (view,) = await world.ready("far")
        assert (view.url, view.model, view.pool_file, view.pid) == (url, "m", "", None)
        await world.supervisor.action("far", "stop")
        assert process.returncode is None
    finally:
        process.kill()
        await process.wait()


async def test_close_in_the_middle_of_a_start(world: World) -> None:
    world.apply(world.unit("a", "--hang-at-start"), world.unit("b"))
    await world.until(lambda: world.view("a").pid is not None)
    assert await asyncio.wait_for(world.supervisor.close(), 10) == ()


async def test_kill_needs_no_patience(world: World) -> None:
    world.apply(world.unit("a", "--ignore-sigterm", stop_timeout=600.0))
    await world.ready("a")
    await asyncio.wait_for(world.supervisor.kill(), 10)


def test_a_plan_that_the_host_cannot_serve_changes_nothing(tmp_path: Path) -> None:
    unit = UnitConfig(name="cpu", role=Role.CPU, cpu=CpuConfig(affinity="90000"))
    with pytest.raises(ConfigError, match="CPUs 90000 do not exist on this host"):
        binding_plan(Config(units=(unit,)), read_host())


def _free_port() -> int:
    from syshaxd.supervisor.files import free_port

    return free_port("127.0.0.1")


@contextlib.asynccontextmanager
async def _request(view: UnitView, api_key: str) -> AsyncIterator[None]:
    """One generation that hangs."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(view.url.rpartition(":")[2]))
    head = f"POST /v1/completions HTTP/1.1\r\nAuthorization: Bearer {api_key}\r\nContent-Length: 2\r\n\r\n" + "{}"
    writer.write(head.encode())
    await writer.drain()
    try:
        yield
    finally:
        writer.close()
