"""vLLM finds the plugin in one read-only folder through PYTHONPATH, and goes on after that folder was replaced.

One server without a daemon, which hands over to itself: a unit that outlives an upgrade is adopted, its mount is not.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syshaxd.units.vllm import transfer_config
from testbed import twin_models as twins
from tests.vllm.breadth.engine import PYTHON, ROOT, START_S

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="no environment with vLLM: run `make vllm-env`"),
    pytest.mark.timeout(900),
]
IDS = [4 + (31 * i + i * i) % 250 for i in range(300)]


class Server:
    """A running server and the folder that it found the plugin in."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.plugin, self.port = folder, folder / "plugin", port
        self.installed: dict[str, str] = {}

    def call(self, path: str, body: Any = None) -> tuple[int, bytes]:
        """GET, or POST of a JSON body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request("GET" if body is None else "POST", path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def healthy(self) -> bool:
        """Whether it serves."""
        try:
            return self.call("/health")[0] == 200
        except OSError:
            return False

    def tokens(self, **wish: Any) -> tuple[int, ...]:
        """Greedy tokens after IDS."""
        body = {"model": "m", "prompt": IDS, "max_tokens": 8, "temperature": 0, "return_token_ids": True}
        status, answer = self.call("/v1/completions", {**body, "kv_transfer_params": {"syshax": wish}})
        assert status == 200, answer
        return tuple(json.loads(answer)["choices"][0]["token_ids"])

    def loaded(self) -> float:
        """Tokens that it has taken from pools."""
        lines = self.call("/metrics")[1].decode().splitlines()
        return sum(
            float(line.rsplit(" ")[-1]) for line in lines if line.startswith("syshax_handoff_loaded_tokens_total")
        )


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def files(folder: Path) -> dict[str, str]:
    """Digests by name, without Python's caches: it leaves them out where it may not write, as root may."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def permit(folder: Path, write: bool) -> None:
    """Makes a folder and all in it writable or not; root may write in any case."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200 if write else path.stat().st_mode & ~0o222)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="syshax-folder-", dir="/dev/shm") as name:
        found = Server(Path(name), free_port())
        subprocess.run(["make", "-s", "plugin", f"PLUGIN={found.plugin}"], cwd=ROOT, check=True, timeout=300)
        found.installed = files(found.plugin)
        permit(found.plugin, write=False)
        env = {
            **{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")},
            "PYTHONPATH": str(found.plugin), "SYSHAX_POOL_DIR": name, "SYSHAX_POOL_NAME": "unit.pool",
            "SYSHAX_POOL_BYTES": str(32 << 20), "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
            "VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        model = str(twins.write(found.folder, "llama").folder)
        command = [
            str(PYTHON), "-m", "syshax_vllm.serve", "--model", model, "--served-model-name", "m", "--host", "127.0.0.1",
            "--port", str(found.port), "--dtype=float32", "--enforce-eager", "--max-model-len=1024", "--block-size=32",
            "--no-enable-prefix-caching", "--kv-transfer-config", transfer_config(""),
        ]  # fmt: skip
        with open(found.folder / "log", "wb") as log:
            process = subprocess.Popen(command, cwd=name, env=env, stdout=log, stderr=log)
        try:
            end = time.monotonic() + START_S
            while not found.healthy():
                assert process.poll() is None and time.monotonic() < end, (found.folder / "log").read_text()
                time.sleep(0.2)
            yield found
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def test_a_handoff_after_the_folder_was_replaced(server: Server) -> None:
    assert files(server.plugin) == server.installed, "something was written into the folder"
    permit(server.plugin, write=True)
    shutil.rmtree(server.plugin)
    server.plugin.mkdir()
    ticket = secrets.token_hex(16)
    first = server.tokens(save=ticket)
    assert server.loaded() == 0
    assert server.tokens(load={"ticket": ticket, "pool": "unit.pool", "generation": 0}) == first
    assert server.loaded() == len(IDS) - 1
