"""KV handed over between two sysinfer processes through a real pool."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import os
import random
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from syshax_kernels.pool import read_stats
from tests.sysinfer import models
from tests.sysinfer.conftest import Tiny
from tests.sysinfer.process import Unit, wait_for

COMPLETION = "/v1/completions"
SOURCES = {
    s: f'vllm:prompt_tokens_by_source_total{{source="{s}"}}'
    for s in ("external_kv_transfer", "local_compute", "local_cache_hit")
}
LENGTHS = (1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 513, 1500)
OUTPUT = 10
numbers = itertools.count()


class Pair(NamedTuple):
    """A unit that hands over and one that takes; `hf` computes what both should say."""

    giver: Unit
    taker: Unit
    folder: Path
    model: Path
    hf: Any


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    tiny: Tiny = request.getfixturevalue(f"tiny_{request.param}")
    options = ("--threads", "1", "--kv-dtype", "f32", "--no-prefix-cache", "--max-num-batched-tokens", "256")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        with Unit.start(tiny.path, folder, *options, pool="giver.pool") as giver:
            with Unit.start(tiny.path, folder, *options, "--block-size", "64", pool="taker.pool") as taker:
                yield Pair(giver, taker, folder, tiny.path, tiny.hf)
                wait_for("nothing left", lambda: giver.idle() and taker.idle())


def prompt_of(length: int) -> list[int]:
    """A prompt that no other test has."""
    rng = random.Random(next(numbers))
    return [rng.randrange(4, 300) for _ in range(length)]


def ask(unit: Unit, context: list[int], count: int, status: int = 200, **syshax: Any) -> Any:
    body = {"prompt": "", "max_tokens": count, "temperature": 0, "ignore_eos": True, "return_token_ids": True,
            "kv_transfer_params": {"prompt_token_ids": context, "syshax": syshax}}  # fmt: skip
    reply = unit.post(COMPLETION, body, status)
    return reply["choices"][0]["token_ids"] if status == 200 else reply


def ticket() -> str:
    return secrets.token_hex(16)


def load_from(name: str, generation: int = 0, pool: str = "giver.pool") -> dict[str, Any]:
    return {"ticket": name, "pool": pool, "generation": generation}


def growth(unit: Unit, before: dict[str, float]) -> dict[str, float]:
    after = unit.metrics()
    return {k: v - before.get(k, 0) for k, v in after.items() if v != before.get(k, 0)}


def free_chunks(pair: Pair) -> int:
    return read_stats(str(pair.folder / "giver.pool")).pool_chunks_free


def failures(reason: str) -> str:
    return f'syshax_handoff_load_failures_total{{reason="{reason}"}}'


@pytest.mark.parametrize("length", LENGTHS)
def test_k_0_gives_the_whole_prompt(pair: Pair, length: int) -> None:
    """The taker computes only the last token; the giver generates one token."""
    prompt, name = prompt_of(length), ticket()
    expected = models.greedy(pair.hf, prompt, OUTPUT)
    gave, took = pair.giver.metrics(), pair.taker.metrics()
    assert ask(pair.giver, prompt, 1, save=name) == expected[:1]
    assert ask(pair.taker, prompt, OUTPUT, load=load_from(name)) == expected
    taken = growth(pair.taker, took)
    assert taken.get(SOURCES["external_kv_transfer"], 0) == length - 1
    assert taken[SOURCES["local_compute"]] == 1
    given = growth(pair.giver, gave)
    assert given["vllm:generation_tokens_total"] == 1
    assert given["syshax_handoff_saved_tokens_total"] == length


@pytest.mark.parametrize("length", [1, 63, 64, 65, 300])
def test_k_1_goes_on_after_the_first_token(pair: Pair, length: int) -> None:
    prompt, name = prompt_of(length), ticket()
    expected = models.greedy(pair.hf, prompt, OUTPUT)
    took = pair.taker.metrics()
    first = ask(pair.giver, prompt, 1, save=name)
    assert first + ask(pair.taker, prompt + first, OUTPUT - 1, load=load_from(name)) == expected
    taken = growth(pair.taker, took)
    assert taken[SOURCES["external_kv_transfer"]] == length and taken[SOURCES["local_compute"]] == 1


@pytest.mark.parametrize("length, before", [(1, 5), (40, 24), (60, 70), (100, 200)])
def test_k_n_moves_a_running_request_by_abort(pair: Pair, length: int, before: int) -> None:
    """Abort by id publishes what a request has computed; the other unit goes on from there, and gives it back."""
    prompt, name, back = prompt_of(length), ticket(), ticket()
    said = stream_and_abort(pair.giver, prompt, name, before)
    assert len(said) >= before
    took = pair.taker.metrics()
    more = ask(pair.taker, prompt + said, 20, load=load_from(name), save=back)
    taken = growth(pair.taker, took)
    assert taken[SOURCES["external_kv_transfer"]] == length + len(said) - 1 and taken[SOURCES["local_compute"]] == 1
    last = ask(pair.giver, prompt + said + more, 5, load=load_from(back, pool="taker.pool"))
    assert models.is_greedy(pair.hf, prompt, said + more + last)


def stream_and_abort(unit: Unit, prompt: list[int], name: str, before: int) -> list[int]:
    """Token ids of a streamed answer that is aborted once `before` of them have come."""
    body = {"model": "demo", "prompt": "", "max_tokens": 1900 - len(prompt), "temperature": 0, "ignore_eos": True,
            "stream": True, "return_token_ids": True,
            "kv_transfer_params": {"prompt_token_ids": prompt,
                                   "syshax": {"save": name, "save_on": "abort"}}}  # fmt: skip
    connection = unit.connect()
    connection.request("POST", COMPLETION, json.dumps(body).encode(), {"X-Request-Id": name})
    said: list[int] = []
    asked = False
    for line in connection.getresponse():
        if line.startswith(b"data: {"):
            choice = json.loads(line[6:])["choices"][0]
            said.extend(choice["token_ids"])
            if choice["finish_reason"] is not None:
                assert choice["finish_reason"] == "abort"
                break
        if len(said) >= before and not asked:
            asked = True
            unit.post("/inference/v1/abort_requests", {"request_ids": [f"cmpl-{name}-0"]})
    connection.close()
    return said


def test_a_preempted_request_is_resumed_elsewhere_with_its_kv(pair: Pair) -> None:
    """Its blocks are gone, its ticket is not: aborted by id while it waits, it goes on at the taker."""
    options = ("--threads", "1", "--kv-dtype", "f32", "--no-prefix-cache", "--kv-blocks", "24", "--max-num-seqs", "2")
    first, second, name = prompt_of(200), prompt_of(200), ticket()
    with Unit.start(pair.model, pair.folder, *options, pool="short.pool") as short:
        with open_raw(short, {**stream_of(first, 500), "max_tokens": 500}):
            said = stream_until_preempted(short, second, name)
            took = pair.taker.metrics()
            more = ask(pair.taker, second + said, 20, load=load_from(name, pool="short.pool"))
        assert short.metrics()["vllm:num_preemptions_total"] == 1
    taken = growth(pair.taker, took)
    assert taken[SOURCES["external_kv_transfer"]] == 200 + len(said) - 1 and taken[SOURCES["local_compute"]] == 1
    assert models.is_greedy(pair.hf, second, said + more)


def stream_of(prompt: list[int], count: int, **syshax: Any) -> dict[str, Any]:
    return {"model": "demo", "prompt": "", "max_tokens": count, "temperature": 0, "ignore_eos": True, "stream": True,
            "return_token_ids": True,
            "kv_transfer_params": {"prompt_token_ids": prompt, "syshax": syshax}}  # fmt: skip


def stream_until_preempted(unit: Unit, prompt: list[int], name: str) -> list[int]:
    """Token ids of an answer that is aborted by id once it has been preempted."""
    connection = unit.connect()
    body = stream_of(prompt, 500, save=name, save_on="abort")
    connection.request("POST", COMPLETION, json.dumps(body).encode(), {"X-Request-Id": name})
    reply = connection.getresponse()
    data = reply.readline()
    wait_for("a preemption", lambda: unit.metrics()["vllm:num_preemptions_total"])
    unit.post("/inference/v1/abort_requests", {"request_ids": [f"cmpl-{name}-0"]})
    data += reply.read()
    events = [json.loads(line[6:])["choices"][0] for line in data.split(b"\n") if line.startswith(b"data: {")]
    connection.close()
    assert events[-1]["finish_reason"] == "abort"
    return [token for event in events for token in event["token_ids"]]


def test_a_ticket_is_discarded_at_once(pair: Pair) -> None:
    """Published or still filled: its chunks come back long before its lease is over."""
    before, ready, filling, prompt = free_chunks(pair), ticket(), ticket(), prompt_of(200)
    ask(pair.giver, prompt, 1, save=ready)
    with open_raw(pair.giver, stream_of(prompt, 1500, save=filling)):
        assert free_chunks(pair) < before
        pair.giver.post("/inference/v1/abort_requests", {"request_ids": [], "discard": [ready, filling, ticket()]})
        wait_for("all chunks are free", lambda: free_chunks(pair) >= before, 10)
    assert "32 hex digits" in str(pair.giver.post("/inference/v1/abort_requests", {"discard": "xyz"}, 400))


def test_save_on_length_leaves_no_ticket_after_a_stop(pair: Pair) -> None:
    prompt, name = prompt_of(100), ticket()
    expected = models.greedy(pair.hf, prompt, 2)
    handoff = {"prompt_token_ids": prompt, "syshax": {"save": name, "save_on": "length"}}
    body = {"prompt": "", "max_tokens": 1, "temperature": 0, "kv_transfer_params": handoff}
    pair.giver.post(COMPLETION, {**body, "stop_token_ids": expected[:1]})
    took = pair.taker.metrics()
    assert ask(pair.taker, prompt, 2, load=load_from(name)) == expected
    assert growth(pair.taker, took)[failures("missing")] == 1
    assert ask(pair.giver, prompt, 1, save=name, save_on="length") == expected[:1]
    assert ask(pair.taker, prompt, 2, load=load_from(name)) == expected
    assert growth(pair.taker, took)[SOURCES["external_kv_transfer"]] == 99


def test_save_on_abort_is_dropped_when_the_request_ends_by_itself(pair: Pair) -> None:
    prompt, name = prompt_of(100), ticket()
    ask(pair.giver, prompt, 3, save=name, save_on="abort")
    took = pair.taker.metrics()
    ask(pair.taker, prompt, 3, load=load_from(name))
    assert growth(pair.taker, took)[failures("missing")] == 1


def test_eight_at_once(pair: Pair) -> None:
    prompts = [prompt_of(50 + 20 * i) for i in range(8)]

    def split(prompt: list[int]) -> list[int]:
        name = ticket()
        ask(pair.giver, prompt, 1, save=name)
        return list(ask(pair.taker, prompt, OUTPUT, load=load_from(name)))

    expected = [models.greedy(pair.hf, p, OUTPUT) for p in prompts]
    took = pair.taker.metrics()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(split, prompts)) == expected
    assert growth(pair.taker, took)[SOURCES["local_compute"]] == 8


def damage(folder: Path, prompt: list[int]) -> None:
    """Flips a bit in the middle of each used chunk of the giver's pool."""
    path = folder / "giver.pool"
    data = path.read_bytes()
    at = len(data) - 1
    with open(path, "r+b") as file:
        for start in range(1 << 16, at, 4096):
            page = data[start : start + 4096]
            if any(page):
                offset = start + next(i for i, b in enumerate(page) if b)
                file.seek(offset)
                file.write(bytes([data[offset] ^ 0x40]))


BROKEN = ("missing", "stale", "consumed", "corrupt", "foreign", "no file", "bad name", "other tokens")


@pytest.mark.parametrize("how", BROKEN)
def test_a_ticket_that_is_no_good_is_recomputed_and_counted(pair: Pair, how: str) -> None:
    prompt, name = prompt_of(150), ticket()
    expected = models.greedy(pair.hf, prompt, OUTPUT)
    ask(pair.giver, prompt if how != "other tokens" else prompt_of(150), 1, save=name)
    load: dict[str, Any] | None = load_from(name)
    reason: str | None = "missing"
    if how == "missing":
        load = load_from(ticket())
    elif how == "stale":
        load, reason = load_from(name, generation=999), "stale"
    elif how == "consumed":
        ask(pair.taker, prompt, 1, load=load)
        reason = None  # missing or stale: whether the owner has freed it yet is its affair
    elif how == "corrupt":
        damage(pair.folder, prompt)
        reason = "corrupt"
    elif how == "foreign":
        (pair.folder / "foreign.pool").write_bytes(os.urandom(1 << 16))
        load, reason = load_from(name, pool="foreign.pool"), "corrupt"
    elif how == "no file":
        load = load_from(name, pool="nobody.pool")
    elif how == "bad name":
        load, reason = load_from(name, pool="../giver.pool"), "error"
    took = pair.taker.metrics()
    assert ask(pair.taker, prompt, OUTPUT, load=load) == expected
    taken = growth(pair.taker, took)
    assert taken[SOURCES["local_compute"]] == 150 and SOURCES["external_kv_transfer"] not in taken
    failed = {k: v for k, v in taken.items() if "load_failures" in k}
    if how == "other tokens":
        assert failed == {}
    elif reason is None:
        assert sum(failed.values()) == 1
    else:
        assert failed == {failures(reason): 1}


@pytest.mark.parametrize("how", ["loaded", "missing", "stale"])
def test_the_answer_says_what_was_taken_over(pair: Pair, how: str) -> None:
    """The daemon counts it; a stream says it in its usage."""
    prompt, name = prompt_of(150), ticket()
    ask(pair.giver, prompt, 1, save=name)
    load = load_from(ticket() if how == "missing" else name, generation=999 if how == "stale" else 0)
    transfer = {"prompt_token_ids": prompt, "syshax": {"load": load}}
    body = {"prompt": "", "max_tokens": 2, "temperature": 0, "kv_transfer_params": transfer}
    lost = {} if how == "loaded" else {"handoff_lost": how}
    expected = {"cached_tokens": 149 if how == "loaded" else 0, **lost}
    assert pair.taker.post(COMPLETION, body)["usage"]["prompt_tokens_details"] == expected
    if how == "stale":
        ask(pair.taker, prompt, 1, load=load_from(name))


def test_a_part_that_matches_is_taken(pair: Pair) -> None:
    """The longest common prefix counts, also in the middle of a chunk."""
    prompt, name = prompt_of(150), ticket()
    ask(pair.giver, prompt, 1, save=name)
    other = prompt[:100] + prompt_of(30)
    took = pair.taker.metrics()
    assert ask(pair.taker, other, OUTPUT, load=load_from(name)) == models.greedy(pair.hf, other, OUTPUT)
    assert growth(pair.taker, took)[SOURCES["external_kv_transfer"]] == next(
        i for i in range(100, 130) if i == 150 or other[i] != prompt[i]
    )


def test_the_consumer_waits_while_the_ticket_is_filled(pair: Pair) -> None:
    """Asked before the prefill has ended: it is taken as soon as it is there."""
    prompt, name = prompt_of(1500), ticket()
    expected = models.greedy(pair.hf, prompt, OUTPUT)
    took, gave = pair.taker.metrics(), pair.giver.metrics()
    started = threading.Thread(target=ask, args=(pair.giver, prompt, 1), kwargs={"save": name})
    started.start()
    wait_for("it runs", lambda: growth(pair.giver, gave).get("sysinfer:steps_total", 0) > 0)
    assert ask(pair.taker, prompt, OUTPUT, load=load_from(name)) == expected
    started.join()
    assert growth(pair.taker, took)[SOURCES["external_kv_transfer"]] == 1499


def test_a_full_pool_drops_the_save_and_serves(tiny_llama: Tiny, pair: Pair) -> None:
    prompt = prompt_of(600)
    options = ("--threads", "1", "--kv-dtype", "f32")
    with Unit.start(tiny_llama.path, pair.folder, *options, pool="small.pool", pool_bytes=250_000) as unit:
        tokens = unit.post(COMPLETION, {"prompt": prompt, "max_tokens": 3, "temperature": 0, "return_token_ids": True})
        assert ask(unit, prompt, 3, save=ticket()) == tokens["choices"][0]["token_ids"]
        assert unit.metrics()['syshax_handoff_save_failures_total{reason="full"}'] == 1


def test_only_the_tail_is_loaded_behind_the_prefix_cache(pair: Pair) -> None:
    """A unit that has the beginning in its own cache takes the rest from the ticket."""
    prompt, name = prompt_of(200), ticket()
    with Unit.start(pair.model, pair.folder, "--threads", "1", "--kv-dtype", "f32", pool="warm.pool") as warm:
        ask(warm, prompt[:100], 1)
        ask(pair.giver, prompt, 1, save=name)
        before = warm.metrics()
        assert ask(warm, prompt, OUTPUT, load=load_from(name)) == models.greedy(pair.hf, prompt, OUTPUT)
        taken = growth(warm, before)
    assert [taken[SOURCES[s]] for s in ("local_cache_hit", "external_kv_transfer", "local_compute")] == [96, 103, 1]


def test_a_dead_or_new_owner_is_noticed(pair: Pair) -> None:
    """kill -9 of the giver: its tickets still load; after its restart the old ones are stale, new ones load."""
    prompt, name = prompt_of(130), ticket()
    options = ("--threads", "1", "--kv-dtype", "f32", "--no-prefix-cache")
    expected = models.greedy(pair.hf, prompt, OUTPUT)
    with Unit.start(pair.model, pair.folder, *options, pool="mortal.pool") as mortal:
        ask(mortal, prompt, 1, save=name)
        other = ticket()
        ask(mortal, prompt, 1, save=other)
        mortal.process.kill()
        mortal.process.wait()
    assert ask(pair.taker, prompt, OUTPUT, load=load_from(name, pool="mortal.pool")) == expected
    with Unit.start(pair.model, pair.folder, *options, pool="mortal.pool") as mortal:
        took = pair.taker.metrics()
        assert ask(pair.taker, prompt, OUTPUT, load=load_from(other, pool="mortal.pool")) == expected
        assert sum(v for k, v in growth(pair.taker, took).items() if "load_failures" in k) == 1
        ask(mortal, prompt, 1, save=name)
        took = pair.taker.metrics()
        assert ask(pair.taker, prompt, OUTPUT, load=load_from(name, pool="mortal.pool")) == expected
        assert growth(pair.taker, took)[SOURCES["external_kv_transfer"]] == 129


def test_nothing_is_left_in_the_pool(pair: Pair) -> None:
    """Consumed tickets, dropped ones and those of clients that left give their chunks back."""
    total = read_stats(str(pair.folder / "giver.pool")).pool_chunks_total
    name, prompt = ticket(), prompt_of(300)
    ask(pair.giver, prompt, 1, save=name)
    assert free_chunks(pair) < total
    ask(pair.taker, prompt, 1, load=load_from(name))
    unloaded = [ticket() for _ in range(3)]
    for one in unloaded:
        ask(pair.giver, prompt, 1, save=one)
        ask(pair.taker, prompt, 1, load=load_from(one))
    before = free_chunks(pair)
    leaver = pair.giver.connect()
    body = {"model": "demo", "prompt": "x", "max_tokens": 1500, "ignore_eos": True, "stream": True,
            "kv_transfer_params": {"prompt_token_ids": prompt, "syshax": {"save": ticket()}}}  # fmt: skip
    leaver.request("POST", COMPLETION, json.dumps(body).encode())
    wait_for("chunks are taken", lambda: free_chunks(pair) < before)
    leaver.close()
    wait_for("chunks came back", lambda: free_chunks(pair) >= before)
    stats = read_stats(str(pair.folder / "giver.pool"))
    assert stats.running == 0 and stats.kv_blocks_used == 0 and stats.steps > 0


def test_a_ticket_that_stays_filling_is_given_up_when_its_owner_is_silent(pair: Pair) -> None:
    """A giver that has been stopped: the consumer computes by itself, and says so."""
    prompt, name = prompt_of(40), ticket()
    body = {"model": "demo", "prompt": "x", "max_tokens": 1900, "ignore_eos": True, "stream": True,
            "kv_transfer_params": {"prompt_token_ids": prompt, "syshax": {"save": name}}}  # fmt: skip
    with open_raw(pair.giver, body):
        os.kill(pair.giver.process.pid, signal.SIGSTOP)
        try:
            took, begin = pair.taker.metrics(), time.monotonic()
            assert ask(pair.taker, prompt, OUTPUT, load=load_from(name)) == models.greedy(pair.hf, prompt, OUTPUT)
            assert 1.5 < time.monotonic() - begin < 8
            assert growth(pair.taker, took)[failures("timeout")] == 1
        finally:
            os.kill(pair.giver.process.pid, signal.SIGCONT)
    wait_for("the giver is idle", pair.giver.idle)


@contextlib.contextmanager
def open_raw(unit: Unit, body: dict[str, Any]) -> Iterator[None]:
    """A streamed request whose first bytes have come; closed without reading the rest."""
    connection = unit.connect()
    connection.request("POST", COMPLETION, json.dumps(body).encode())
    response = connection.getresponse()
    assert response.read(10)
    yield
    response.close()
    connection.close()
