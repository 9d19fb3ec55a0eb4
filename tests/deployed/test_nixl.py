"""`kv.transport: nixl` with stock vLLM: prefill on this host, decode on another one (a network namespace), over TCP."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import daemon_real_units as house
from testbed import twin_models as twins
from testbed.daemon_real_units import ROOT, ROUTES, Daemon
from testbed.far_host import FarHost
from testbed.processes import wait_for
from tests.vllm.pairs import NEW as PYTHON
from tests.vllm.pairs import complete, splits

NIXL = os.environ.get("NIXL", "build/nixl")  # the folder with the package `nixl`
THERE = PYTHON.exists() and Path(NIXL, "nixl").is_dir()
PLUGIN = str(ROOT / "kernels" / "python")
pytestmark = [
    pytest.mark.skipif(not THERE, reason="no environment with vLLM and nixl: run `make test-deployed`"),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"),
    pytest.mark.timeout(900),
]
LENGTHS = (1, 31, 32, 33, 64, 257, 1000)
PORT, SIDE = 8003, 5601
TCP = {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "eth0"}  # no shared memory between the two: as on two hosts
FLAGS = ("--dtype=float32", "--enforce-eager", "--max-num-seqs=8", "--block-size=32", "--max-model-len=2048")
CONFIG = """\
services: {{conductor: {{host: 127.0.0.1, port: 0}}}}
models: {{default: {model}, path: "{path}"}}
kv: {{transport: nixl, side_channel_host: OURS}}
units:
  gpu: {{kind: vllm, role: accelerator, python: PYTHON, start_timeout: 10m, cpu: {{affinity: none, threads: 1}},
    env: {{VLLM_CPU_KVCACHE_SPACE: '1', TORCHDYNAMO_DISABLE: '1', PYTHONPATH: 'PACKAGES',
          UCX_TLS: tcp, UCX_NET_DEVICES: LINK}},
    extra_args: [FLAGS]}}
  cpu: {{kind: vllm, backend: external, url: "http://THEIRS:PORT", health: {{timeout: 10s}}}}
pd: {{pool_dir: "{folder}/pool", pool_size: 64MiB}}
control_socket: "{folder}/control.sock"
state_dir: "{folder}/state"
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    model = twins.write(tmp_path_factory.mktemp("model"), "llama").folder
    with FarHost() as far:
        values = {
            "FLAGS": ", ".join(FLAGS), "OURS": far.ours, "THEIRS:PORT": f"{far.address}:{PORT}",
            "python: PYTHON": f"python: {PYTHON}", "PACKAGES": f"{PLUGIN}:{NIXL}", "LINK": far.link,
        }  # fmt: skip
        text = CONFIG
        for name, value in values.items():
            text = text.replace(name, value)
        with far.running(*_server(model, far.address), env=_environment(far.address)):
            with house.running(model, text, 600) as running:
                wait_for("a split", lambda: splits(running), 300)
                yield running


def _server(model: Path, address: str) -> tuple[object, ...]:
    """As docs/containers.md tells the owner of the other host."""
    config = '{"kv_connector":"NixlConnector","kv_role":"kv_both","kv_buffer_device":"cpu"}'
    return (
        *(PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", address),
        *("--port", PORT, "--served-model-name", house.MODEL, "--kv-transfer-config", config, *FLAGS),
    )


def _environment(address: str) -> dict[str, str]:
    return {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": address, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(SIDE), "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1",
        "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": NIXL, **TCP,
    }  # fmt: skip


def taken(daemon: Daemon) -> float:
    """Prompt tokens that the far unit took from the near one."""
    lines = daemon.ask("/metrics", base=daemon.units["cpu"]["url"]).body.decode().splitlines()
    wanted = ("vllm:prompt_tokens_by_source_total", '"external_kv_transfer"')
    return sum(float(line.rpartition(" ")[2]) for line in lines if all(part in line for part in wanted))


def test_tokens_are_the_same_over_every_route(daemon: Daemon) -> None:
    before = taken(daemon)
    rows = [[complete(daemon, n, route) for route in reversed(ROUTES)] for n in LENGTHS]
    assert [len(set(row)) for row in rows] == [1] * len(LENGTHS)
    assert taken(daemon) - before >= sum(LENGTHS) - len(LENGTHS), "its KV came over the network"
