"""A unit on another host, which here is a network namespace: health, metrics, requests, and its link going down."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Iterator
from typing import Any, Callable
from urllib.parse import urlsplit

import pytest

from testbed import daemon_real_units as house
from testbed import small_gguf
from testbed.daemon_real_units import Daemon
from testbed.far_host import FarHost
from testbed.processes import ROOT, run, wait_for

FAILOVERS = 'syshax_handoffs_total{kind="failover",result="ok"}'
KEY, PORT, TOKENS = "a-key-of-the-other-host", 8002, 1500
CONFIG = """\
services: {{conductor: {{host: 127.0.0.1, port: 0}}}}
models: {{default: {model}, path: "{path}"}}
units:
  gpu: {{role: accelerator, kind: sysinfer, cpu: {{affinity: none, threads: 1}}}}
  cpu:
    kind: sysinfer
    backend: external
    url: "http://ADDRESS:PORT"
    api_key_file: KEYFILE
    health: {{interval: 200ms, timeout: 1s, failures: 2}}
monitor: {{metrics_interval: 200ms}}
limits: {{stall_timeout: 1s, connect_timeout: 1s}}
pd: {{pool_dir: "{folder}/pool", pool_size: 64MiB}}
control_socket: "{folder}/control.sock"
state_dir: "{folder}/state"
"""


@pytest.fixture(scope="module")
def far() -> Iterator[FarHost]:
    with FarHost() as host:
        yield host


@pytest.fixture(scope="module")
def daemon(far: FarHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("external")
    model, key = small_gguf.write_model(folder / "small.gguf", "llama", 1), folder / "key"
    key.touch(0o600)
    key.write_text(KEY + "\n")
    values = {"ADDRESS": far.address, "PORT": str(PORT), "KEYFILE": str(key)}
    text = CONFIG
    for name, value in values.items():
        text = text.replace(name, value)
    words = [sys.executable, "-m", "sysinfer", "serve", model, "--host", far.address, "--port", PORT, "--threads", 1]
    words += ["--served-model-name", house.MODEL, "--api-key-file", key]
    env = {"PYTHONPATH": str(ROOT / "kernels/python")}
    with far.running(*words, env=env) as process, house.running(model, text, 90) as found:
        yield found
        assert process.poll() is None, "nobody ended it"


def unit(daemon: Daemon) -> dict[str, Any]:
    """The far unit as the daemon sees it."""
    daemon.status()
    return daemon.units["cpu"]


def generate(daemon: Daemon, route: str, strike: Callable[[], None] = lambda: None) -> tuple[list[int], str]:
    """Greedy tokens of a stream, and its finish; `strike` is called at its first token."""
    body = {
        "model": house.MODEL, "prompt": [5, 6, 7, 8], "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True,
        "stream": True, "return_token_ids": True,
    }  # fmt: skip
    connection = http.client.HTTPConnection(urlsplit(daemon.url).netloc, timeout=60)
    tokens: list[int] = []
    finish = ""
    try:
        headers = {"Content-Type": "application/json", "x-syshax-route": route}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        assert response.status == 200
        for line in response:
            if line.startswith(b"data: {"):
                choice = json.loads(line[6:])["choices"][0]
                if not tokens:
                    strike()
                tokens += choice.get("token_ids") or []
                finish = choice["finish_reason"] or finish
    finally:
        connection.close()
    return tokens, finish


def test_it_is_watched_and_serves_but_is_not_started_or_stopped(daemon: Daemon, far: FarHost) -> None:
    assert unit(daemon)["backend"] == "external" and unit(daemon)["pid"] is None
    wait_for("its load", lambda: unit(daemon)["load_source"] == "metrics", 20)
    tokens, finish = generate(daemon, "cpu")
    assert (len(tokens), finish) == (TOKENS, "length")
    socket = daemon.folder / "control.sock"
    for verb in ("stop", "start"):
        run(sys.executable, "-m", "syshaxd.cli", "units", verb, "cpu", "--socket", socket)
    assert unit(daemon)["state"] == "ready", "we let go of it and took it up again; it ran all the time"


def test_its_link_goes_down_in_the_middle_of_a_stream(daemon: Daemon, far: FarHost) -> None:
    whole = generate(daemon, "accelerator")
    before = daemon.metrics().get(FAILOVERS, 0.0)
    assert generate(daemon, "cpu", far.cut) == whole, "the other unit went on from the last token"
    assert daemon.metrics()[FAILOVERS] == before + 1
    wait_for("it is seen to be away", lambda: unit(daemon)["state"] != "ready", 30)
    assert unit(daemon)["reason"]
    assert daemon.ask("/v1/completions", {"prompt": "x", "max_tokens": 2}).status == 200, "the near unit serves"
    far.mend()
    wait_for("it is back", lambda: unit(daemon)["state"] == "ready", 60)
    assert generate(daemon, "cpu") == whole
