"""Streams that change sides in the middle, on a real vLLM pair: the client's token ids are those of one unit alone."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Dict, List, Sequence, Tuple

import psutil
import pytest

from syshaxd.cli.client import Client
from tests.fakes.daemon import Daemon
from tests.vllm.pairs import START, Stream, externals, greedy, quiet

pytestmark = pytest.mark.timeout(1800)
NEW_PAIR = pytest.mark.parametrize("running_pair", ["vllm_to_vllm"], indirect=True)

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TOKENS = 1000  # many seconds of work, so that they all still run when it happens
Call = Tuple[str, Dict[str, Any]]


def calls(salt: int) -> List[Call]:
    """Chat and completions, of several lengths."""
    plain = greedy(1, tokens=TOKENS)
    del plain["prompt"]
    asked = [f"{salt}: " + "the sand of the sea " * (3 + 9 * i) for i in range(3)]
    chats = [(CHAT, {**plain, "messages": [{"role": "user", "content": text}]}) for text in asked]
    return [*((COMPLETIONS, greedy(50 + 61 * i, salt + i, TOKENS)) for i in range(3)), *chats]


def whole(daemon: Daemon, made: Sequence[Call]) -> List[List[int]]:
    """Token ids of the decode unit, left alone."""
    with ThreadPoolExecutor(len(made)) as threads:
        return list(threads.map(lambda call: streamed(daemon, call, "cpu").read().tokens, made))


def streamed(daemon: Daemon, call: Call, route: str) -> Stream:
    """One call over one route, not read yet."""
    path, body = call
    return Stream(daemon, path, body, {"x-syshax-route": route})


def struck(daemon: Daemon, made: Sequence[Call], strike: Callable[[], None]) -> List[Stream]:
    """Streams of the prefill unit, to which something happens when each has some tokens. Few: the unit runs ahead of
    a starved reader, and an answer that is complete in the daemon's socket has nothing left to move."""
    streams = [streamed(daemon, call, "accelerator") for call in made]
    for number, stream in enumerate(streams):
        stream.read(5 + 2 * number)
    with ThreadPoolExecutor(len(made) + 1) as threads:
        struck: Future[None] = threads.submit(strike)
        list(threads.map(lambda stream: stream.read(), streams))
        struck.result(START)
    return streams


def handoffs(daemon: Daemon, kind: str) -> float:
    """Streams that went on elsewhere."""
    return daemon.metrics().get(f'syshax_handoffs_total{{kind="{kind}",result="ok"}}', 0)


@NEW_PAIR
def test_a_restart_gives_running_streams_away_with_their_kv(daemon: Daemon) -> None:
    """Moves at k = n: aborted by id on the one side, loaded on the other."""
    made = calls(50)
    before, moves = externals(daemon), handoffs(daemon, "drain")
    client = Client(str(daemon.folder / "control.sock"), START)
    streams = struck(daemon, made, lambda: client.post("units", "gpu", "restart"))
    taken = externals(daemon) - before
    assert handoffs(daemon, "drain") - moves == len(made)
    assert [stream.finish for stream in streams] == ["length"] * len(made)
    assert [stream.tokens for stream in streams] == whole(daemon, made)
    prompts = 50 + 111 + 172 + 3 * 60
    assert taken >= prompts + 5 * len(made)


def processes(daemon: Daemon, name: str) -> List[psutil.Process]:
    """Those of the prefill unit; vLLM gives them names."""
    server = psutil.Process(daemon.units["gpu"]["pid"])
    if name == "server":
        return [server]
    return [child for child in server.children(recursive=True) if name in " ".join(child.cmdline()[:1])]


@NEW_PAIR
@pytest.mark.parametrize("name, number", [
    ("server", signal.SIGKILL), ("EngineCore", signal.SIGKILL), ("Worker", signal.SIGKILL),
    ("EngineCore", signal.SIGSTOP),
])  # fmt: skip
def test_streams_outlive_each_process_of_their_unit(daemon: Daemon, name: str, number: int) -> None:
    """SIGSTOP: the server still says 200 to /health while its engine stands still."""
    made = calls(60 + 10 * number + len(name))
    (victim,) = processes(daemon, name)
    family = [victim, *processes(daemon, "server"), *processes(daemon, "EngineCore"), *processes(daemon, "Worker")]
    failovers, restarts = handoffs(daemon, "failover"), daemon.units["gpu"]["restarts"]
    streams = struck(daemon, made, lambda: os.kill(victim.pid, number))
    assert [stream.finish for stream in streams] == ["length"] * len(made)
    assert [stream.tokens for stream in streams] == whole(daemon, made)
    assert handoffs(daemon, "failover") - failovers == len(made)
    quiet(daemon)
    assert daemon.units["gpu"]["restarts"] == restarts + 1
    assert not [process for process in family if process.is_running() and process.status() != "zombie"]
