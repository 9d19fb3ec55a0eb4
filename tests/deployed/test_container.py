"""vLLM in a container of a real engine, under the daemon: it gets the plugin, and takes KV out of the mounted pool.

On Podman as in the guides: the accelerator's unit (sysinfer plays it) in a container too, its IPC namespace joined. On
Docker next to a process unit.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from syshaxd.backends.container_spec import EngineKind
from testbed import daemon_real_units as house
from testbed import twin_models as twins
from testbed.container_engines import RealEngine
from testbed.daemon_real_units import ROUTES, Daemon
from testbed.processes import run, wait_for
from tests.deployed import image
from tests.vllm.pairs import NEW as VLLM_PYTHON
from tests.vllm.pairs import complete, externals, splits

MISSING = [name for name in ("podman", "dockerd", "runc", "mmdebstrap", "curl") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.skipif(not VLLM_PYTHON.exists(), reason="no environment with vLLM: run `make vllm-env`"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for the container engines"),
    pytest.mark.skipif(bool(MISSING), reason=f"apt-get install podman docker.io runc mmdebstrap curl: {MISSING}"),
    pytest.mark.timeout(900),
]
LENGTHS = (1, 33, 64, 257, 1000)
SHM = 1 << 30
VLLM = """{{kind: vllm, role: cpu, backend: ENGINE, python: PYTHON, model_path: FOLDER, max_model_len: 2048,
    block_size: 16, start_timeout: 10m, cpu: {{affinity: none, threads: 1}},
    env: {{VLLM_CPU_KVCACHE_SPACE: '1', TORCHDYNAMO_DISABLE: '1'}},
    extra_args: [--dtype=float32, --enforce-eager, --max-num-seqs=16, --swap_space=4, --preemption_mode=swap],
    container: {{image: IMAGE, pull: never, socket: SOCKET, name: TAG-cpu, ipc: IPC}}}}"""
INSIDE = """{{kind: sysinfer, role: accelerator, backend: ENGINE, python: PYTHON, cpu: {{affinity: none, threads: 1}},
    extra_args: [--kv-dtype=f32],
    container: {{image: IMAGE, pull: never, socket: SOCKET, name: TAG-gpu, ipc: shareable, shm_size: 1g}}}}"""
BESIDE = "{{kind: sysinfer, role: accelerator, cpu: {{affinity: none, threads: 1}}, extra_args: [--kv-dtype=f32]}}"
CONFIG = """\
services: {{conductor: {{host: 127.0.0.1, port: 0}}}}
models: {{default: {model}, path: "{path}"}}
units:
  gpu: GPU
  cpu: CPU
pd: {{pool_dir: POOL, pool_size: 64MiB}}
control_socket: "{folder}/control.sock"
state_dir: "{folder}/state"
"""


@pytest.fixture(scope="module", params=list(EngineKind), ids=lambda kind: str(kind.value))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    found = RealEngine(request.param, tmp_path_factory.mktemp(request.param.value)).start()
    try:
        found.import_folder(image.make_root(VLLM_PYTHON.parents[1]), image.IMAGE, image.WITHOUT)
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def daemon(engine: RealEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    model = twins.write(tmp_path_factory.mktemp("model"), "qwen2")
    joined, tag = engine.kind is EngineKind.PODMAN, f"syshax-{uuid.uuid4().hex[:8]}"
    values = {
        "GPU": INSIDE if joined else BESIDE, "CPU": VLLM, "IPC": "unit:gpu" if joined else "private", "TAG": tag,
        "PYTHON": image.PYTHON, "FOLDER": str(model.folder), "IMAGE": image.IMAGE, "SOCKET": engine.socket,
        "ENGINE": engine.kind.value, "POOL": f"/dev/shm/{tag}",
    }  # fmt: skip
    text = CONFIG
    for name, value in values.items():
        text = text.replace(name, value)
    try:
        with house.running(model.gguf, text, 600) as running:
            wait_for("a split", lambda: splits(running), 300)
            yield running
    finally:
        shutil.rmtree(f"/dev/shm/{tag}", ignore_errors=True)


def test_tokens_are_the_same_over_every_route(daemon: Daemon) -> None:
    before = externals(daemon)
    rows = [[complete(daemon, n, route) for route in reversed(ROUTES)] for n in LENGTHS]
    assert [len(set(row)) for row in rows] == [1] * len(LENGTHS)
    taken = externals(daemon) - before
    assert taken >= sum(LENGTHS) - len(LENGTHS), "the prompt's KV came through the pool"


def test_old_flags_are_said_anew(daemon: Daemon) -> None:
    assert "--swap_space=4: vLLM has this no more" in daemon.log
    assert "block_size 16: vLLM's CPU attention takes multiples of 32" in daemon.log


def test_only_the_daemon_may_end_requests(daemon: Daemon) -> None:
    path, body = "/inference/v1/abort_requests", {"request_ids": ["nobody"]}
    assert daemon.ask(path, body, base=daemon.units["cpu"]["url"]).status == 401
    assert daemon.ask_unit("cpu", path, body).status == 200
    port = int(daemon.units["cpu"]["url"].rpartition(":")[2])
    listening = run("ss", "--tcp", "--listening", "--numeric", "--no-header", f"sport = {port}").stdout.splitlines()
    assert {line.split()[3] for line in listening} == {f"127.0.0.1:{port}"}


def test_the_line_for_a_person_tells_the_same(daemon: Daemon, engine: RealEngine) -> None:
    socket = daemon.folder / "control.sock"
    line = run(sys.executable, "-m", "syshaxd.cli", "units", "show", "cpu", "--command", "--socket", socket).stdout
    assert line.startswith(f"{engine.kind.value} run --detach ") and "SYSHAX_POOL_NAME=cpu.pool" in line
    assert "--volume=/dev/shm/" in line and "/opt/syshax/python/syshax_vllm" in line


def _containers(daemon: Daemon) -> dict[str, str]:
    """Container ids by unit, of those that are ready."""
    daemon.status()
    return {name: unit["container"] for name, unit in daemon.units.items() if unit["state"] == "ready"}


def test_one_dev_shm_for_both(daemon: Daemon, engine: RealEngine) -> None:
    if engine.kind is EngineKind.DOCKER:
        return _own_dev_shm(daemon)
    first = _containers(daemon)
    pids = {name: int(unit["pid"]) for name, unit in daemon.units.items()}
    shms = {name: _shm(pid) for name, pid in pids.items()}
    assert shms["gpu"].stat().st_dev == shms["cpu"].stat().st_dev != Path("/dev/shm").stat().st_dev
    assert _size(shms["cpu"]) == SHM, "the donor's"
    assert psutil.Process(pids["gpu"]).create_time() < psutil.Process(pids["cpu"]).create_time()
    os.kill(pids["gpu"], signal.SIGKILL)

    def both_new() -> bool:
        now = _containers(daemon)
        return len(now) == 2 and not set(now.values()) & set(first.values())

    wait_for("the donor is new, and then who had joined it", both_new, 400)
    wait_for("a split", lambda: splits(daemon), 120)
    assert complete(daemon, 200, "accelerator>cpu", 5) == complete(daemon, 200, "cpu", 5)
    again = {name: _shm(unit["pid"]).stat().st_dev for name, unit in daemon.units.items()}
    assert again["gpu"] == again["cpu"]


def _own_dev_shm(daemon: Daemon) -> None:
    daemon.status()
    assert _size(_shm(daemon.units["cpu"]["pid"])) == SHM


def _shm(pid: object) -> Path:
    """The /dev/shm that a process sees."""
    return Path("/proc", str(pid), "root", "dev", "shm")


def _size(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize
