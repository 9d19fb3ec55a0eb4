"""The main job with real units: text does not depend on the route, KV moves, and nothing leaks when things go wrong."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from testbed import daemon_real_units as house
from testbed.daemon_real_units import MODEL, ROUTES, Daemon
from testbed.processes import wait_for
from testbed.small_gguf import CONTEXT, write_model

# Around the sizes of KV blocks (16) and handoff chunks (64), and longer than one step's share of prefill.
LENGTHS = (1, 2, 3, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 127, 128, 129, 257, 600, 1000, 1500)
EXTERNAL = 'vllm:prompt_tokens_by_source_total{source="external_kv_transfer"}'
OUTPUT = 16
GREEDY = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests of an architecture."""
    model = write_model(tmp_path_factory.mktemp("model") / f"{request.param}.gguf", request.param)
    with house.running(model) as running:
        yield running


def prompt(length: int, salt: int = 0) -> list[int]:
    """Token ids of that many bytes; other lengths and salts begin otherwise, so that no prefix cache helps."""
    return [4 + (7 * length + 101 * salt + 31 * i + i * i) % 250 for i in range(length)]


def complete(daemon: Daemon, length: int, route: str, stream: bool, salt: int = 0) -> str:
    """Greedy text of one prompt over one route."""
    body = {"prompt": prompt(length, salt), "max_tokens": OUTPUT, "stream": stream, **GREEDY}
    answer = daemon.ask("/v1/completions", body, {"x-syshax-route": route})
    assert answer.status == 200, answer.body
    assert answer.headers["x-syshax-route"] == route
    return answer.text


@pytest.mark.timeout(120)
def test_text_is_the_same_over_every_route(daemon: Daemon) -> None:
    # The split comes first: afterwards the CPU unit has the prompt in its prefix cache and needs no handoff.
    for stream in (False, True):
        rows = [[complete(daemon, n, route, stream, stream) for route in reversed(ROUTES)] for n in LENGTHS]
        assert [len(set(row)) for row in rows] == [1] * len(LENGTHS)
        assert len({row[0] for row in rows}) > len(LENGTHS) / 2, "the model repeats itself: this proves nothing"
    with ThreadPoolExecutor(8) as pool:
        columns = [
            [*pool.map(lambda n, route=route: complete(daemon, n, route, n % 2 == 0, 2), LENGTHS)]
            for route in reversed(ROUTES)
        ]
    assert columns[0] == columns[1] == columns[2]
    assert columns[0] == [complete(daemon, n, "cpu", False, 2) for n in LENGTHS]
    wait_for("idle", daemon.idle, 5)
    wait_for("empty pools", daemon.pools_empty, 5)


@pytest.mark.parametrize("length", [2, 16, 65, 700])
def test_a_split_moves_the_prompt(daemon: Daemon, length: int) -> None:
    before = {unit: daemon.metrics(unit) for unit in ("gpu", "cpu")}
    complete(daemon, length, "accelerator>cpu", True, 3)
    after = {unit: daemon.metrics(unit) for unit in ("gpu", "cpu")}

    def grown(unit: str, name: str) -> float:
        return after[unit].get(name, 0) - before[unit].get(name, 0)

    assert grown("cpu", EXTERNAL) >= length - 1
    assert grown("gpu", "vllm:generation_tokens_total") <= 1
    assert grown("cpu", "vllm:generation_tokens_total") >= OUTPUT - 1


def test_explain_tells_the_bytes_handed_over(daemon: Daemon) -> None:
    body = {"prompt": prompt(70, 9), "max_tokens": OUTPUT, **GREEDY}
    route = {"x-syshax-route": "accelerator>cpu", "x-request-id": "told"}
    assert daemon.ask("/v1/completions", body, route).status == 200
    command = ["explain", "told", "--json", "--socket", str(daemon.folder / "control.sock")]
    said = subprocess.run([sys.executable, "-m", "syshaxd.cli", *command], capture_output=True, check=True).stdout
    events = json.loads(said)["events"]
    (leg,) = [event for event in events if event["event"] == "leg" and event["unit"] == "cpu"]
    assert leg["with_kv"] and leg["kv_bytes"] > 0 and leg["kv_bytes"] % 70 == 0
    (done,) = [event for event in events if event["event"] == "handed_over"]
    assert done["gap_ms"] > 0


def test_the_openai_client(daemon: Daemon) -> None:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client:
        texts = set()
        for route in ROUTES:
            ask: dict[str, Any] = dict(
                model=MODEL,
                messages=[{"role": "user", "content": "Tell me of the sea, 你好 🌊."}],
                max_tokens=OUTPUT,
                temperature=0,
                extra_headers={"x-syshax-route": route},
                extra_body={"ignore_eos": True},
            )
            texts.add(client.chat.completions.create(**ask).choices[0].message.content)
            with client.chat.completions.create(stream=True, **ask) as stream:
                texts.add("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))
        assert len(texts) == 1 and texts != {""}
        assert [model.id for model in client.models.list()] == [MODEL]


def test_curl(daemon: Daemon) -> None:
    curl = shutil.which("curl")
    assert curl is not None
    texts = set()
    for route in ROUTES:
        body = json.dumps({"model": MODEL, "prompt": "hello", "max_tokens": 8, "temperature": 0})
        command = [curl, "-sS", f"{daemon.url}/v1/completions", "-H", f"x-syshax-route: {route}", "-d", body]
        output = subprocess.run([*command, "-H", "Content-Type: application/json"], capture_output=True, check=True)
        texts.add(json.loads(output.stdout)["choices"][0]["text"])
    assert len(texts) == 1


BAD = {
    "not JSON": (b"{oops", 400),
    "not an object": (b"[1]", 400),
    "no prompt": ({}, 400),
    "unknown model": ({"model": "other", "prompt": "a"}, 404),
    "too long": ({"prompt": [5] * (CONTEXT + 1)}, 400),
    "wrong type": ({"prompt": "a", "max_tokens": "many"}, 400),
    "negative": ({"prompt": "a", "max_tokens": -1}, 400),
    "token out of range": ({"prompt": [10**6]}, 400),
    "huge": (b'{"prompt": "' + b"a" * (17 << 20) + b'"}', 413),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("route", ROUTES)
def test_bad_input_is_refused_in_openai_form(daemon: Daemon, case: str, route: str) -> None:
    body, status = BAD[case]
    answer = daemon.ask("/v1/completions", body, {"x-syshax-route": route})
    assert answer.status == status, answer.body
    assert set(answer.json["error"]) >= {"message", "type", "code"} and answer.json["error"]["message"]
    assert complete(daemon, 5, route, False)


@pytest.mark.parametrize("route", ROUTES)
def test_a_client_that_leaves_stops_both_legs(daemon: Daemon, route: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(daemon.url).netloc, timeout=30)
    body = {"model": MODEL, "prompt": prompt(40), "max_tokens": 1900, "stream": True, **GREEDY}
    connection.request("POST", "/v1/completions", json.dumps(body), {"x-syshax-route": route})
    response = connection.getresponse()
    assert response.read1(100).startswith(b"data:")
    response.close()
    connection.close()
    wait_for("both legs stop", daemon.idle, 1.5)  # 1 s, and what looking costs
    wait_for("empty pools", daemon.pools_empty, 5)


@pytest.mark.parametrize("victim", ["cpu", "gpu"])
def test_kill_9_of_a_unit(daemon: Daemon, victim: str) -> None:
    route = "cpu" if victim == "cpu" else "accelerator"
    daemon.status()
    pid = int(daemon.units[victim]["pid"])
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(stream_through_death, daemon, length, route) for length in (40, 41, 42, 43)]
        wait_for("streams run", lambda: daemon.status()["in_flight"] >= 1, 10)
        os.kill(pid, signal.SIGKILL)
        for future in running:
            future.result(60)

    def back() -> bool:
        daemon.status()
        return daemon.units[victim]["state"] == "ready" and daemon.units[victim]["pid"] != pid

    wait_for("the unit is back", back)
    wait_for("idle", daemon.idle, 5)
    wait_for("empty pools", daemon.pools_empty, 5)
    assert complete(daemon, 50, "accelerator>cpu", True) == complete(daemon, 50, route, False)


def stream_through_death(daemon: Daemon, length: int, route: str) -> None:
    """A stream that was running when its unit died goes on with the right text, or ends with an OpenAI error event."""
    body = {"prompt": prompt(length), "max_tokens": 1500, "stream": True, **GREEDY}
    answer = daemon.ask("/v1/completions", body, {"x-syshax-route": route})
    events = [json.loads(line[6:]) for line in answer.body.decode().split("\n\n") if line.startswith("data: {")]
    errors = [event["error"] for event in events if "error" in event]
    assert answer.body.rstrip().endswith(b"data: [DONE]")
    if errors:
        assert errors[0]["message"] and errors[0]["type"]
        return
    other = "accelerator" if route == "cpu" else "cpu"
    assert answer.text == daemon.ask("/v1/completions", {**body, "stream": False}, {"x-syshax-route": other}).text


def handed_over(daemon: Daemon, salt: int, ticket: str, spoil: Any = None, asked: str = "", generation: int = 0) -> str:
    """Two legs by hand, straight to the units: what the second one generates when its ticket is spoilt in between."""
    tokens = prompt(150, salt)
    leg = {"prompt": tokens, "max_tokens": 1, **GREEDY}
    save = {"syshax": {"save": ticket, "save_on": "finish"}}
    answer = daemon.ask_unit("gpu", "/v1/completions", {**leg, "kv_transfer_params": save})
    assert answer.status == 200, answer.body
    if spoil is not None:
        spoil()
    load = {"ticket": asked or ticket, "pool": "gpu.pool", "generation": generation}
    leg = {**leg, "max_tokens": OUTPUT, "kv_transfer_params": {"syshax": {"load": load}}}
    return daemon.ask_unit("cpu", "/v1/completions", leg).text


def load_failures(daemon: Daemon) -> float:
    """Over all reasons, at the decode unit."""
    name = "syshax_handoff_load_failures_total"
    return sum(value for sample, value in daemon.metrics("cpu").items() if sample.startswith(name))


def spoil_chunks(path: Path) -> None:
    """Change every word of the second half of a pool file that is in use."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(size // 64)
        data = file.read()
        file.seek(size // 64)
        file.write(bytes(byte ^ 1 if byte else 0 for byte in data))


@pytest.mark.parametrize("case", ["missing", "stale", "corrupt"])
def test_a_ticket_that_is_no_good_means_recompute(daemon: Daemon, case: str) -> None:
    before = load_failures(daemon)
    ticket = os.urandom(16).hex()
    salt = len(case)
    if case == "missing":
        text = handed_over(daemon, salt, ticket, asked="0" * 32)
    elif case == "stale":
        text = handed_over(daemon, salt, ticket, generation=10**6)
    else:
        text = handed_over(daemon, salt, ticket, lambda: spoil_chunks(daemon.folder / "pool" / "gpu.pool"))
    whole = {"prompt": prompt(150, salt), "max_tokens": OUTPUT, **GREEDY}
    assert text == daemon.ask_unit("gpu", "/v1/completions", whole).text
    assert load_failures(daemon) == before + 1
