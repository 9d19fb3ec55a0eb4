"""Streams that change sides in the middle, on real vLLM pairs: the client's token ids are those of one unit alone.

The models are deep, so that the unit's steps are the slowest of all and a stream that still runs there is far from its
end. Where something happens to a unit, it is looked up just before that the unit runs them all; otherwise it is too
late, and the test says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import psutil
import pytest

from syshaxd.cli.client import Client
from testbed.daemon_real_units import Daemon
from testbed.processes import wait_for
from tests.vllm.pairs import PATIENCE, START, Stream, externals, greedy, quiet

pytestmark = pytest.mark.timeout(1800)
PAIRS = pytest.mark.parametrize("running_pair", ["short_of_kv", "old_to_old"], indirect=True)
NEW_PAIR = pytest.mark.parametrize("running_pair", ["short_of_kv"], indirect=True)

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TOKENS = 200  # seconds of work
BEGUN = 5  # tokens that every stream has when something happens
LENGTHS = (50, 111, 172)
Call = tuple[str, dict[str, Any]]


def calls(salt: int) -> list[Call]:
    """Chat and completions, of several lengths, that together fit into a short cache."""
    plain = greedy(1, tokens=TOKENS)
    del plain["prompt"]
    asked = [f"{salt}: " + "the sand of the sea " * (3 + 2 * i) for i in range(3)]
    chats = [(CHAT, {**plain, "messages": [{"role": "user", "content": text}]}) for text in asked]
    return [*((COMPLETIONS, greedy(length, salt, TOKENS)) for length in LENGTHS), *chats]


def streamed(daemon: Daemon, call: Call, route: str) -> Stream:
    """One call over one route, not read yet."""
    path, body = call
    return Stream(daemon, path, body, {"x-syshax-route": route})


def alone(daemon: Daemon, made: Sequence[Call]) -> list[list[int]]:
    """Token ids of the decode unit, left alone."""
    with ThreadPoolExecutor(len(made)) as threads:
        return list(threads.map(lambda call: streamed(daemon, call, "cpu").read().tokens, made))


def struck(daemon: Daemon, made: Sequence[Call], strike: Callable[[], None]) -> list[Stream]:
    """Streams of the prefill unit, all read at once, to which something happens when each has some tokens."""
    before = generated(daemon)
    streams = [streamed(daemon, call, "accelerator") for call in made]
    with ThreadPoolExecutor(len(streams)) as threads:
        ends = [threads.submit(stream.read) for stream in streams]
        wait_for("tokens of every stream", lambda: begun(streams) or any(end.done() for end in ends), PATIENCE)
        in_the_middle(daemon, streams, before)
        strike()
        for end in ends:
            end.result(START)
    return streams


def begun(streams: Sequence[Stream]) -> bool:
    return all(len(stream.tokens) >= BEGUN for stream in streams)


def generated(daemon: Daemon) -> float:
    """Tokens that the prefill unit says it has made."""
    return daemon.metrics("gpu")["vllm:generation_tokens_total"]


def in_the_middle(daemon: Daemon, streams: Sequence[Stream], before: float) -> None:
    """Fails when the unit itself does not run all of them any more, or has made most of what it is to make."""
    running, done = daemon.metrics("gpu")["vllm:num_requests_running"], generated(daemon) - before
    seen = f"the unit runs {running:g} of {len(streams)} and has made {done:g} of {TOKENS * len(streams)} tokens"
    assert running == len(streams) and done < TOKENS * len(streams) / 2, f"too late to strike in the middle: {seen}"


def handoffs(daemon: Daemon, kind: str) -> float:
    """Streams that went on elsewhere."""
    return daemon.metrics().get(f'syshax_handoffs_total{{kind="{kind}",result="ok"}}', 0)


def control(daemon: Daemon) -> Client:
    return Client(str(daemon.folder / "control.sock"), START)


def stories(daemon: Daemon, streams: Sequence[Stream]) -> str:
    """What the daemon tells of each of them."""
    return "\n".join(str(control(daemon).get("requests", stream.name)["text"]) for stream in streams)


@PAIRS
def test_a_restart_gives_running_streams_away_with_their_kv(daemon: Daemon) -> None:
    """Moves at k = n: aborted by id on the one side, loaded on the other."""
    made = calls(50)
    before, moves = externals(daemon), handoffs(daemon, "drain")
    streams = struck(daemon, made, lambda: control(daemon).post("units", "gpu", "restart"))
    taken = externals(daemon) - before
    assert handoffs(daemon, "drain") - moves == len(made), stories(daemon, streams)
    assert [stream.finish for stream in streams] == ["length"] * len(made)
    assert [stream.tokens for stream in streams] == alone(daemon, made)
    assert taken >= sum(LENGTHS) + 3 * 30 + BEGUN * len(made), stories(daemon, streams)


def processes(daemon: Daemon, name: str) -> list[psutil.Process]:
    """Those of the prefill unit; vLLM gives them names."""
    server = psutil.Process(daemon.units["gpu"]["pid"])
    if name == "server":
        return [server]
    return [child for child in server.children(recursive=True) if name in " ".join(child.cmdline()[:1])]


@contextlib.contextmanager
def impatient(daemon: Daemon) -> Iterator[None]:
    """A daemon that soon gives up on a unit that makes no tokens."""
    path = daemon.folder / "syshax.yaml"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "limits": {"stall_timeout": "8s"}}))
    control(daemon).post("reload")
    try:
        yield
    finally:
        path.write_text(before)
        control(daemon).post("reload")


@NEW_PAIR
@pytest.mark.parametrize("name, number", [
    ("EngineCore", signal.SIGSTOP),
    pytest.param("EngineCore", signal.SIGKILL, marks=pytest.mark.breadth),
    pytest.param("server", signal.SIGKILL, marks=pytest.mark.breadth),
    pytest.param("Worker", signal.SIGKILL, marks=pytest.mark.breadth),
])  # fmt: skip
def test_streams_outlive_each_process_of_their_unit(daemon: Daemon, name: str, number: int) -> None:
    """SIGSTOP: the server still says 200 to /health while its engine stands still."""
    made = calls(60 + 10 * number + len(name))
    (victim,) = processes(daemon, name)
    family = [victim, *processes(daemon, "server"), *processes(daemon, "EngineCore"), *processes(daemon, "Worker")]
    failovers, restarts = handoffs(daemon, "failover"), daemon.units["gpu"]["restarts"]
    with impatient(daemon):
        streams = struck(daemon, made, lambda: os.kill(victim.pid, number))
    assert [stream.finish for stream in streams] == ["length"] * len(made)
    assert handoffs(daemon, "failover") - failovers == len(made), stories(daemon, streams)
    assert [stream.tokens for stream in streams] == alone(daemon, made)
    quiet(daemon)
    assert daemon.units["gpu"]["restarts"] == restarts + 1
    assert not [process for process in family if process.is_running() and process.status() != "zombie"]
