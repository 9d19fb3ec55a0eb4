"""The routers that are compared: how each is started in front of the fake unit, and its version."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.origin import ROOT

MODEL = "fake-model"
ORDER = "@S000001 N2 R100@"
START_S, END_S = 90.0, 20.0
Command = Callable[["Place"], list[str]]

NGINX = """\
worker_processes 1; daemon off; error_log stderr; pid {folder}/nginx.pid;
events {{ worker_connections 20000; }}
http {{ access_log off;
 client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
 uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; upstream unit {{ server 127.0.0.1:{unit}; keepalive 4096; }}
 server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://unit; proxy_http_version 1.1;
 proxy_set_header Connection ""; proxy_buffering off; }} }} }}
"""
# As many streams at once as the benchmark opens: the thresholds' own limits are for units of ordinary size.
SYSHAX = """\
services: {{conductor: {{host: 127.0.0.1, port: {port}}}}}
units: {{gpu: {{role: accelerator, backend: external, kind: vllm, port: {unit}, max_num_seqs: 8192}}}}
models: {{default: fake-model}}
control_socket: {folder}/control.sock
state_dir: {folder}/state
limits: {{max_in_flight: 20000, max_queue: 10000}}
scheduler: {{threshold: {{max_num_seqs: 8192, waiting: 8192}}, slo: {{default: {{ttft: 60s, tpot: 10s}}}}}}
"""
LITELLM = """\
model_list:
- model_name: fake-model
  litellm_params: {{model: openai/fake-model, api_base: "http://127.0.0.1:{unit}/v1", api_key: none}}
"""


@dataclass(frozen=True)
class Place:
    """Where a contender runs: a folder of its own, its port, the unit's port, the folder of its environment."""

    folder: Path
    port: int
    unit: int
    environment: Path

    def write(self, name: str, text: str) -> str:
        """A file of its configuration."""
        path = self.folder / name
        path.write_text(text.format(folder=self.folder, port=self.port, unit=self.unit))
        return str(path)


@dataclass(frozen=True)
class Contender:
    """`program`: of an environment of that name below --environments, else on PATH. `most`: streams it can take."""

    name: str
    program: str
    command: Command
    version: tuple[str, ...]
    most: int = 100_000


def nginx(place: Place) -> list[str]:
    """One worker, no buffering."""
    return ["nginx", "-p", str(place.folder), "-c", place.write("nginx.conf", NGINX)]


def vllm_router(place: Place) -> list[str]:
    """Its own limit of requests at once lies below what is opened."""
    program = str(place.environment / "bin" / "vllm-router")
    worker = f"http://127.0.0.1:{place.unit}"
    options = ["--policy", "round_robin", "--max-concurrent-requests", "16000", "--host", "127.0.0.1"]
    return [program, "--worker-urls", worker, "--port", str(place.port), *options]


def litellm(place: Place) -> list[str]:
    """Its proxy, one worker."""
    program = str(place.environment / "bin" / "litellm")
    return [program, "--config", place.write("litellm.yaml", LITELLM), "--host", "127.0.0.1", "--port", str(place.port)]


def syshaxd(place: Place) -> list[str]:
    """The daemon of this tree, the fake unit as one that somebody else started."""
    return [sys.executable, "-m", "syshaxd", "--config", place.write("syshax.yaml", SYSHAX)]


CONTENDERS = (
    Contender("nginx", "nginx", nginx, ("nginx", "-v")),
    Contender("vllm-router", "vllm-router", vllm_router, ("pip", "vllm-router")),
    Contender("litellm", "litellm", litellm, ("pip", "litellm"), most=64),
    Contender("syshaxd", sys.executable, syshaxd, (sys.executable, "-m", "syshaxd.cli", "version")),
)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def installed(contender: Contender, environments: Path) -> bool:
    """Whether its program is there."""
    there = [environments / contender.name / "bin" / contender.program, Path(contender.program)]
    found = subprocess.run(("which", contender.program), capture_output=True, check=False).returncode == 0
    return found or any(path.is_file() for path in there)


def version(contender: Contender, environments: Path) -> str:
    """As it tells itself; "" where it does not."""
    words: tuple[str, ...] = contender.version
    if words[0] == "pip":
        code = f"import importlib.metadata as m; print(m.version({words[1]!r}))"
        words = (str(environments / contender.name / "bin" / "python"), "-c", code)
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, env=environ())
    return (done.stdout + done.stderr).strip().partition("\n")[0]


def environ(key: str = "") -> dict[str, str]:
    """For programs of this tree too. LiteLLM starts only with a key; the others take no notice of it."""
    ours = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels/python'}"}
    return {**os.environ, **ours, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": key}


@contextlib.contextmanager
def process(command: list[str], cpu: int, log: Path, key: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program on one CPU, in a group of its own that ends with it."""
    words = ["taskset", "-c", str(cpu), *command]
    with open(log, "wb") as out:
        child = subprocess.Popen(
            words, stdout=out, stderr=out, cwd=log.parent, env=environ(key), start_new_session=True
        )
    try:
        yield child
    finally:
        end(child)


def end(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM for its group, and SIGKILL where that does not help."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(END_S)
            return


def answers(port: int, key: str) -> bool:
    """Whether a streamed answer comes whole."""
    body = {"model": MODEL, "stream": True, "max_tokens": 2, "messages": [{"role": "user", "content": ORDER}]}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        return b"[DONE]" in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_until_it_answers(child: subprocess.Popen[bytes], port: int, log: Path, key: str) -> None:
    """RuntimeError with the end of its log where it does not."""
    until = time.monotonic() + START_S
    while not answers(port, key):
        if child.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"{log.stem} does not answer within {START_S:g} s: {log.read_text()[-2000:]}")
        time.sleep(0.2)


def pids(child: subprocess.Popen[bytes]) -> str:
    """Of the program and its descendants, as the client takes them."""
    root = psutil.Process(child.pid)
    return ",".join(str(one.pid) for one in (root, *root.children(recursive=True)))
