"""Stock vLLM under the daemon: output does not depend on the route, KV moves, and what goes wrong is computed again."""

from __future__ import annotations

import os
import secrets
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from testbed.daemon_real_units import ROUTES, Daemon
from testbed.processes import wait_for
from tests.vllm import pool
from tests.vllm.pairs import Stream, complete, externals, failures, greedy, ids

pytestmark = pytest.mark.timeout(1200)
BOTH_WAYS = ["vllm_to_vllm", "sysinfer_to_vllm", "vllm_to_sysinfer", "old_to_old"]
EVERY = pytest.mark.parametrize("running_pair", BOTH_WAYS, indirect=True)
VLLM_ONLY = pytest.mark.parametrize("running_pair", ["vllm_to_vllm", "old_to_old"], indirect=True)

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
# Around the sizes of KV blocks (32 to 128) and handoff chunks (64), and far longer than one step's share of prefill.
LENGTHS = (1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257, 1000, 1499)


@EVERY
def test_tokens_are_the_same_over_every_route(daemon: Daemon) -> None:
    for salt in (0, 1):
        same_over_routes(daemon, salt)


def same_over_routes(daemon: Daemon, salt: int) -> None:
    """Prompts of all lengths, one after the other; all but their last tokens come from the pool."""
    before = externals(daemon)
    # The split comes first: afterwards the decode unit has the prompt in its prefix cache and needs no handoff.
    rows = [[complete(daemon, n, route, salt) for route in reversed(ROUTES)] for n in LENGTHS]
    assert [len(set(row)) for row in rows] == [1] * len(LENGTHS)
    assert len({row[0] for row in rows}) > len(LENGTHS) / 2, "the model repeats itself: this proves nothing"
    assert externals(daemon) - before >= sum(LENGTHS) - len(LENGTHS)


@EVERY
def test_eight_at_once(daemon: Daemon) -> None:
    eight_at_once(daemon)


def eight_at_once(daemon: Daemon) -> None:
    """Eight prompts together over each route."""
    lengths = [100 + 37 * i for i in range(8)]
    before = externals(daemon)
    with ThreadPoolExecutor(8) as threads:
        rows = [
            [*threads.map(lambda n, route=route: complete(daemon, n, route, 2), lengths)] for route in reversed(ROUTES)
        ]
    assert rows[0] == rows[1] == rows[2]
    assert externals(daemon) - before >= sum(lengths) - 8


@EVERY
def test_a_warm_prefix_cache(daemon: Daemon) -> None:
    first = complete(daemon, 300, "accelerator>cpu", 3)
    assert first == complete(daemon, 300, "accelerator>cpu", 3) == complete(daemon, 300, "cpu", 3)
    # Half of it is in the decode unit's cache, the other half comes by handoff.
    before, half = externals(daemon), greedy(256, 5)["prompt"]
    daemon.ask_unit("cpu", COMPLETIONS, {**greedy(256, 5), "prompt": half})
    longer = {**greedy(256, 5), "prompt": half + greedy(200, 6)["prompt"]}
    rows = [ids(daemon.ask(COMPLETIONS, longer, {"x-syshax-route": route})) for route in reversed(ROUTES)]
    assert len(set(rows)) == 1
    assert 200 - 1 <= externals(daemon) - before <= 200 + 128


@EVERY
def test_chat(daemon: Daemon) -> None:
    body = {
        **greedy(0),
        "messages": [{"role": "user", "content": "Tell me of the sea, the sand, and the old harbour."}],
    }
    del body["prompt"]
    before = externals(daemon)
    rows = [ids(daemon.ask(CHAT, body, {"x-syshax-route": route})) for route in reversed(ROUTES)]
    assert len(set(rows)) == 1
    assert externals(daemon) > before


def saved(daemon: Daemon, length: int, salt: int) -> dict[str, Any]:
    """Has the prefill unit save a prompt's KV; what the decode unit has to load."""
    ticket = secrets.token_hex(16)
    save = {"kv_transfer_params": {"syshax": {"save": ticket}}}
    ids(daemon.ask_unit("gpu", COMPLETIONS, {**greedy(length, salt, 1), **save}))
    return {"ticket": ticket, "pool": "gpu.pool", "generation": 0}


def loaded(daemon: Daemon, length: int, salt: int, load: dict[str, Any]) -> tuple[int, ...]:
    """Greedy tokens of the decode unit, which is to load that."""
    wish = {"kv_transfer_params": {"syshax": {"load": load}}}
    return ids(daemon.ask_unit("cpu", COMPLETIONS, {**greedy(length, salt), **wish}))


@EVERY
@pytest.mark.parametrize("changed", [{"ticket": "0" * 32}, {"pool": "none.pool"}, {"generation": 5}])
def test_a_handoff_that_is_not_there_is_computed(daemon: Daemon, changed: dict[str, Any]) -> None:
    salt = 10 + len(str(changed))
    before, counted = externals(daemon), failures(daemon)
    load = saved(daemon, 200, salt)
    tokens = loaded(daemon, 200, salt, {**load, **changed})
    assert tokens == complete(daemon, 200, "accelerator", salt)
    assert externals(daemon) == before
    reason = "stale" if "generation" in changed else "missing"
    assert failures(daemon) == {**counted, reason: counted.get(reason, 0) + 1}
    loaded(daemon, 200, salt, load)  # so that the ticket need not wait for the end of its lease


@EVERY
def test_a_damaged_handoff_is_computed(daemon: Daemon) -> None:
    before, counted, load = externals(daemon), sum(failures(daemon).values()), saved(daemon, 200, 8)
    pool.spoil(daemon.folder / "pool" / "gpu.pool", str(load["ticket"]))
    assert loaded(daemon, 200, 8, load) == complete(daemon, 200, "accelerator", 8)
    assert externals(daemon) == before
    assert sum(failures(daemon).values()) == counted + 1


@EVERY
def test_a_handoff_is_taken_once(daemon: Daemon) -> None:
    """Whoever asks for the same ticket again computes."""
    before, load = externals(daemon), saved(daemon, 200, 9)
    rows = [loaded(daemon, 200, 9, load) for _ in range(2)]
    assert rows[0] == rows[1] == complete(daemon, 200, "accelerator", 9)
    assert externals(daemon) - before == 199


@pytest.mark.parametrize("running_pair", ["vllm_to_vllm", "vllm_to_sysinfer", "old_to_old"], indirect=True)
def test_a_prefill_legs_kv_is_there_when_its_answer_is(daemon: Daemon) -> None:
    """The engine is stopped as soon as it has answered, so that no step follows: its tail is sealed by then."""
    length = 300
    expected = complete(daemon, length, "accelerator", 40)
    (engine,) = engine_processes(daemon)
    before, counted, load = externals(daemon), failures(daemon), saved(daemon, length, 40)
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        assert loaded(daemon, length, 40, load) == expected
    finally:
        os.kill(engine.pid, signal.SIGCONT)
    assert externals(daemon) - before == length - 1 and failures(daemon) == counted


def engine_processes(daemon: Daemon) -> list[psutil.Process]:
    """Of the prefill unit."""
    children = psutil.Process(daemon.units["gpu"]["pid"]).children(recursive=True)
    return [child for child in children if "EngineCore" in " ".join(child.cmdline()[:1])]


@VLLM_ONLY
def test_clients_that_leave_in_every_state_leave_nothing_behind(daemon: Daemon) -> None:
    """Queued, in prefill, between the legs, while loading, in decode; over each route. The fixture looks for leaks."""
    leaving: list[tuple[Stream, int]] = []
    for number, read in enumerate((0, 0, 0, 0, 1, 1, 2, 5, 20)):
        for route in ROUTES:
            body = greedy(40 if number % 2 else 900, 20 + number, 400)
            leaving.append((Stream(daemon, COMPLETIONS, body, {"x-syshax-route": route}), read))
    for stream, read in leaving:
        if read:
            stream.read(read)
        stream.close()
    wait_for("idle", daemon.idle, 120)
    assert complete(daemon, 100, "accelerator>cpu", 30) == complete(daemon, 100, "cpu", 30)
