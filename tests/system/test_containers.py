"""The container backend on real engines: Podman and Docker as Debian packages them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest

from syshaxd.backends.backend import LaunchSpec, Running
from syshaxd.backends.container import ContainerBackend
from syshaxd.backends.container_spec import ContainerSpec, EngineKind, Mount, Publish
from syshaxd.config.types import Config, ContainerConfig, UnitConfig
from syshaxd.errors import BackendError
from syshaxd.model.unit import BackendKind, Role
from syshaxd.supervisor.binding.configured import binding_plan
from syshaxd.supervisor.binding.host_tree import read_host
from syshaxd.supervisor.binding.shortfalls import Allowed, allowed
from syshaxd.supervisor.recipes import launch_spec
from syshaxd.topology import format_cpu_list
from syshaxd.units import Surroundings
from testbed.container_engines import IMAGE, RealEngine

SLEEPER = "echo up; exec sleep 600"


@pytest.fixture(scope="module", params=list(EngineKind), ids=lambda kind: str(kind.value))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    found = RealEngine(request.param, tmp_path_factory.mktemp(request.param.value)).start()
    try:
        found.import_image()
        yield found
    finally:
        found.close()


class Bench:
    """A backend on a real engine, as one daemon would have it."""

    def __init__(self, engine: RealEngine, owner: str) -> None:
        self.engine = engine
        self.owner = owner
        self.tag = uuid.uuid4().hex[:8]
        self.lines: list[str] = []
        self.running: list[Running] = []
        self.backend = ContainerBackend(engine.kind, owner)

    def spec(self, script: str, unit: str = "cpu", **more: object) -> LaunchSpec:
        container = ContainerSpec(
            name=f"syshax-{self.tag}-{unit}", image=IMAGE, argv=("sh", "-c", script), mounts=(Mount("/usr", "/usr"),),
            cap_add=("SYS_NICE",), stop_timeout=5, pull="never", socket=self.engine.socket,
        )  # fmt: skip
        container = replace(container, **more)  # type: ignore[arg-type]
        return LaunchSpec(unit, (), {}, "http://127.0.0.1:1", digest="d1", container=container)

    async def start(self, script: str, unit: str = "cpu", **more: object) -> Running:
        started = await asyncio.wait_for(self.backend.start(self.spec(script, unit, **more), self.lines.append), 60)
        self.running.append(started)
        return started

    async def until_line(self, line: str) -> None:
        await _until(lambda: line in self.lines)

    async def close(self) -> None:
        for started in reversed(self.running):
            await asyncio.wait_for(started.kill(), 60)
        await self.backend.close()


async def _until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "condition did not come true in time"
        await asyncio.sleep(0.02)


@pytest.fixture
async def bench(engine: RealEngine, tmp_path: Path) -> AsyncIterator[Bench]:
    one = Bench(engine, str(tmp_path))
    yield one
    await one.close()


async def test_exit_status_and_all_lines_of_a_flood(bench: Bench) -> None:
    unit = await bench.start("i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; exit 3")
    assert (await asyncio.wait_for(unit.wait(), 60)).code == 3
    assert bench.lines == [f"line {number}" for number in range(5000)]


async def test_sigterm_ignored(bench: Bench) -> None:
    unit = await bench.start("trap '' TERM; echo up; while :; do sleep 0.1; done")
    await bench.until_line("up")
    ended = await asyncio.wait_for(unit.stop(1), 30)
    assert ended.asked and ended.code == 137


async def test_paused_by_somebody(bench: Bench) -> None:
    unit = await bench.start(SLEEPER)
    await bench.until_line("up")
    bench.engine.cli("pause", unit.container)
    assert (await asyncio.wait_for(unit.kill(), 60)).asked
    assert bench.engine.cli("ps", "--all", "--quiet", "--filter", f"id={unit.container}") == ""


async def test_kill_9(bench: Bench) -> None:
    unit = await bench.start(SLEEPER)
    await bench.until_line("up")
    assert unit.pid
    os.kill(unit.pid, signal.SIGKILL)
    assert "SIGKILL" in (await asyncio.wait_for(unit.wait(), 30)).reason


async def test_adoption_after_the_daemon_is_gone(bench: Bench) -> None:
    first = await bench.start(SLEEPER)
    await first.release()
    bench.running.clear()
    later = ContainerBackend(bench.engine.kind, bench.owner)
    try:
        began = time.monotonic()
        adopted = await later.adopt(bench.spec(SLEEPER), bench.lines.append)
        assert adopted is not None and adopted.running.container == first.container
        assert time.monotonic() - began < 5
        assert await later.adopt(replace(bench.spec(SLEEPER), digest="d2"), bench.lines.append) is None
        await adopted.running.kill()
    finally:
        await later.close()


async def test_what_a_container_gets(bench: Bench) -> None:
    cpu = min(os.sched_getaffinity(0))
    script = (
        "grep Cpus_allowed_list /proc/self/status; df -k /dev/shm | tail -1 | (read a b c; echo shm $b);"
        "touch /usr/x 2>/dev/null || echo read-only; echo unit=$UNIT; id -G"
    )
    unit = await bench.start(
        script, cpuset_cpus=str(cpu), cpuset_mems="0", shm_size=1 << 30, env={"UNIT": "cpu"}, groups=("4711",),
    )  # fmt: skip
    assert (await asyncio.wait_for(unit.wait(), 30)).code == 0
    text = "\n".join(bench.lines)
    assert f"Cpus_allowed_list:\t{cpu}\n" in text and f"shm {1 << 20}\n" in text
    assert "read-only" in text and "unit=cpu" in text and "4711" in text


BOUND = """
import ctypes, json, os
words = dict(line.split(":", 1) for line in open("/proc/1/status"))
mask = ctypes.c_ulong(1)
number = {"x86_64": 238, "aarch64": 237}[os.uname().machine]
refused = ctypes.CDLL(None, use_errno=True).syscall(number, 2, ctypes.byref(mask), 65)
policy = open("/proc/self/numa_maps").readline().split()[1]
names = ("OMP_NUM_THREADS", "GOMP_CPU_AFFINITY", "CUSTOM_CPU_AFFINITY", "VLLM_CPU_OMP_THREADS_BIND",
         "CPU_VISIBLE_MEMORY_NODES", "VLLM_CPU_NUM_OF_RESERVED_CPU")
print(json.dumps({
    "cpus": words["Cpus_allowed_list"].strip(), "mems": words["Mems_allowed_list"].strip(),
    "set_mempolicy": refused, "policy": policy, "env": {name: os.environ.get(name) for name in names},
}))
"""


@pytest.mark.parametrize("kind", ["vllm", "sysinfer"])
async def test_a_planned_binding_is_in_force_inside(bench: Bench, kind: str) -> None:
    """From the configuration through the plan to the engine: its own words, the kernel's, and the unit's."""
    host = read_host()
    cpu = str(max(host.usable))
    config = UnitConfig(
        "cpu", Role.CPU, kind, BackendKind(bench.engine.kind.value), model_path="/usr", command=("x",),
        env={"CUSTOM_CPU_AFFINITY": cpu, "OMP_NUM_THREADS": "1"}, container=ContainerConfig(image=IMAGE),
    )  # fmt: skip
    (binding,) = binding_plan(Config(units=(config,)), host).units
    spec = launch_spec(config, Surroundings("m", "/dev/shm/none", 0, binding, port=1)).container
    assert spec is not None
    names = ("cpuset_cpus", "cpuset_mems", "cap_add", "env")
    own: dict[str, Any] = {name: getattr(spec, name) for name in names}
    unit = await bench.start(f"python3 -c '{BOUND}'; echo up; exec sleep 600", **own)
    await bench.until_line("up")
    host_config = (await _inspect(bench.engine, unit.container))["HostConfig"]
    nodes = format_cpu_list(binding.memory_nodes)
    assert (host_config["CpusetCpus"], host_config["CpusetMems"]) == (cpu, ",".join(map(str, binding.memory_nodes)))
    assert any(name.endswith("SYS_NICE") for name in host_config["CapAdd"])
    assert allowed(unit.pid) == Allowed(binding.cpus, frozenset(binding.memory_nodes))
    inside = json.loads(next(line for line in bench.lines if line.startswith("{")))
    assert (inside["cpus"], inside["mems"]) == (cpu, nodes)
    assert (inside["set_mempolicy"], inside["policy"]) == (0, "bind:0"), "the capability is enough"
    expected = {"OMP_NUM_THREADS": "1", "GOMP_CPU_AFFINITY": cpu, "CUSTOM_CPU_AFFINITY": cpu}
    if kind == "vllm":
        expected["VLLM_CPU_OMP_THREADS_BIND"] = cpu
        expected.update(CPU_VISIBLE_MEMORY_NODES=nodes, VLLM_CPU_NUM_OF_RESERVED_CPU="0")
    assert {name: value for name, value in inside["env"].items() if value is not None} == expected


async def _inspect(engine: RealEngine, container: str) -> Any:
    """The engine's own words, from its API as `docker inspect` and `podman inspect` print them."""
    url = f"http://engine/v1.40/containers/{container}/json"
    curl = ("curl", "-sf", "--max-time", "30", "--unix-socket", engine.socket, url)
    process = await asyncio.create_subprocess_exec(*curl, stdout=asyncio.subprocess.PIPE)
    out, _ = await asyncio.wait_for(process.communicate(), 40)
    return json.loads(out)


async def test_refusals(bench: Bench) -> None:
    with pytest.raises(BackendError, match="is not here, and pull is never"):
        await bench.start(SLEEPER, image="localhost/nothing:1")
    with pytest.raises(BackendError, match="no-such-program"):
        await bench.start("", argv=("no-such-program",))
    with pytest.raises(BackendError, match="/no/such/folder"):
        await bench.start(SLEEPER, mounts=(Mount("/no/such/folder", "/x"),))
    with pytest.raises(BackendError, match="no GPU for its container"):
        await bench.start(SLEEPER, gpus=("0",))


@pytest.fixture
def cdi(engine: RealEngine) -> Iterator[Path]:
    """A place for a CDI file that podman reads; its names are ours."""
    file = Path("/run/cdi/syshax-test.json")
    file.parent.mkdir(exist_ok=True)
    yield file
    file.unlink(missing_ok=True)


async def test_a_gpu_by_its_cdi_name_must_be_visible(bench: Bench, cdi: Path) -> None:
    if bench.engine.kind is EngineKind.DOCKER:  # knows no CDI before release 25: refused, loudly
        with pytest.raises(BackendError, match="no GPU for its container"):
            await bench.start(SLEEPER, devices=("nvidia.com/gpu=syshax-test",))
        return
    mount = {"hostPath": "/etc/hostname", "containerPath": "/dev/nvidiactl", "options": ["ro", "bind"]}
    devices = [
        {"name": "syshax-test", "containerEdits": {"mounts": [mount]}},
        {"name": "syshax-blind", "containerEdits": {"env": ["NVIDIA_VISIBLE_DEVICES=all"]}},
    ]
    cdi.write_text(json.dumps({"cdiVersion": "0.3.0", "kind": "nvidia.com/gpu", "devices": devices}))
    await bench.start("test -e /dev/nvidiactl && echo seen; exec sleep 600", gpus=("syshax-test",))
    await bench.until_line("seen")
    with pytest.raises(BackendError, match="a GPU was asked for, but there is none in the container"):
        await bench.start(SLEEPER, "gpu", gpus=("syshax-blind",))


async def test_name_in_use(bench: Bench, tmp_path: Path) -> None:
    await bench.start(SLEEPER)
    other = Bench(bench.engine, str(tmp_path / "other"))
    other.tag = bench.tag
    try:
        with pytest.raises(BackendError, match="is there already and is not ours"):
            await other.start(SLEEPER)
    finally:
        await other.close()


async def test_port_in_use(bench: Bench) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BackendError, match="its port is taken"):
            await bench.start(SLEEPER, publish=(Publish("127.0.0.1", taken.getsockname()[1], 8000),))


async def test_a_joined_dev_shm(bench: Bench) -> None:
    donor = await bench.start("echo mark > /dev/shm/mark; echo up; exec sleep 600", "gpu", ipc="shareable")
    await bench.until_line("up")
    joined = await bench.start("cat /dev/shm/mark; echo up2; exec sleep 600", ipc=f"container:{donor.container}")
    await bench.until_line("up2")
    assert "mark" in bench.lines
    await donor.kill()
    again = await bench.start("ls /dev/shm; echo up3; exec sleep 600", "gpu", ipc="shareable")
    await bench.until_line("up3")
    assert again.container != donor.container and joined.pid
    os.kill(joined.pid, 0)


async def test_the_engines_service_is_restarted(bench: Bench) -> None:
    unit = await bench.start(SLEEPER)
    ended = asyncio.ensure_future(unit.wait())
    bench.engine.stop()
    bench.engine.start()
    if bench.engine.kind is EngineKind.DOCKER:  # stops its containers, as it has no live-restore here
        assert (await asyncio.wait_for(ended, 40)).code in (137, 143)
        return
    assert not ended.done()
    assert (await asyncio.wait_for(unit.stop(1), 40)).asked
    assert await ended
