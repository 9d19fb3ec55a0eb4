"""The connector between vLLM engines of other degree, precision and block size, and what happens to its tickets.

Engines without servers and daemon; all of them run one model. Equality is by token ids, and of the KV itself: an engine
that loads and saves in one request shows what it has loaded.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from testbed import twin_models as twins
from tests.vllm.breadth.engine import PYTHON, Engine, Floats, rounded_to_bf16

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="no environment with vLLM: run `make vllm-env`"),
    pytest.mark.timeout(900),
]
BLOCKS = 40  # of 32 tokens: eight requests don't fit
LENGTHS = (1, 2, 31, 64, 65, 200, 700)


def prompt(length: int, salt: int = 0) -> list[int]:
    """Token ids; other lengths and salts begin otherwise."""
    return [4 + (7 * length + 101 * salt + 31 * i + i * i) % 250 for i in range(length)]


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Engine]]:
    """`one`, `two`: float32 on that many ranks; `brain`: bfloat16; `half`: float16, with a user's connector."""
    with tempfile.TemporaryDirectory(prefix="syshax-engines-", dir="/dev/shm") as name:
        folder = Path(name)
        model = twins.write(folder, "llama").folder
        (folder / "stored").mkdir()
        stored = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
        users = json.dumps({**stored, "kv_connector_extra_config": {"shared_storage_path": str(folder / "stored")}})
        started = {
            "one": Engine(folder, "one", model, block_size=32, num_gpu_blocks_override=BLOCKS, max_model_len=1024),
            "two": Engine(folder, "two", model, block_size=64, tensor_parallel_size=2),
            "brain": Engine(folder, "brain", model, block_size=128, dtype="bfloat16", enable_prefix_caching=True),
            "half": Engine(folder, "half", model, users, block_size=64, dtype="float16"),
        }
        try:
            yield {key: engine.ready() for key, engine in started.items()}
        finally:
            for engine in started.values():
                engine.stop()


@pytest.fixture
def one(engines: dict[str, Engine]) -> Engine:
    return engines["one"]


@pytest.fixture(autouse=True)
def nothing_left(engines: dict[str, Engine]) -> Iterator[None]:
    """After every test no engine holds a request, a block or a ticket, but READY ones that the test names."""
    yield
    for engine in engines.values():
        held = engine.ask("held")
        assert not any(held.values()), (engine.name, held)


def moved(source: Engine, target: Engine, ids: list[int]) -> tuple[int, ...]:
    """Tokens of `target` after a prompt that `source` prefilled."""
    ticket = secrets.token_hex(16)
    source.one(ids, max_tokens=1, save=ticket)
    return target.one(ids, load=source.load_from(ticket))


@pytest.mark.parametrize("source, target", [("one", "two"), ("two", "one")])
def test_other_degrees_of_tensor_parallelism(engines: dict[str, Engine], source: str, target: str) -> None:
    before = engines[target].counts("syshax_handoff_loaded_tokens")
    found = [moved(engines[source], engines[target], prompt(n)) for n in LENGTHS]
    assert engines[target].counts("syshax_handoff_loaded_tokens") - before == sum(LENGTHS) - len(LENGTHS)
    assert found == [engines["one"].one(prompt(n)) for n in LENGTHS]
    assert len(set(found)) > len(LENGTHS) / 2, "the model repeats itself: this proves nothing"


def exact(values: Floats) -> Floats:
    """As they are."""
    return values


STEPS: list[tuple[str, Callable[[Floats], Floats]]] = [
    ("two", exact), ("brain", rounded_to_bf16), ("half", lambda v: v.astype(np.float16).astype(np.float32)),
    ("one", exact),
]  # fmt: skip


def test_kv_goes_through_every_precision_and_block_size(engines: dict[str, Engine]) -> None:
    """f32 in blocks of 32 -> f32 on two ranks, 64 -> bf16, 128 -> f16, 64 -> f32, 32."""
    ids, source, ticket = prompt(300, 1), engines["one"], secrets.token_hex(16)
    source.one(ids, max_tokens=1, save=ticket)
    for name, convert in STEPS:
        expected = convert(source.kv(ticket)[: len(ids) - 1])
        following = secrets.token_hex(16)
        engines[name].one(ids, max_tokens=1, save=following, load=source.load_from(ticket))
        source, ticket = engines[name], following
        assert np.array_equal(source.kv(ticket)[: len(ids) - 1], expected), name
    engines["two"].one(ids, max_tokens=1, load=source.load_from(ticket))


def test_lower_precision_is_close(engines: dict[str, Engine]) -> None:
    """Greedy tokens of a bf16 engine hardly depend on where its context was computed."""
    brain, prompts = engines["brain"], [prompt(n, 2) for n in (40, 129, 300, 500)]
    split = [moved(engines["half"], brain, ids) for ids in prompts]
    alone = brain.generate(prompts)
    assert sum(a[0] == b[0] for a, b in zip(split, alone)) >= len(prompts) - 1


def test_a_users_own_connector_stays(engines: dict[str, Engine]) -> None:
    half, ids = engines["half"], prompt(256, 3)
    stored = half.pool.parent / "stored"
    before = len(list(stored.iterdir()))
    loaded = half.counts("syshax_handoff_loaded_tokens")
    ticket, again = secrets.token_hex(16), secrets.token_hex(16)
    half.one(ids, max_tokens=1, save=ticket)
    assert len(list(stored.iterdir())) > before, "the user's connector has saved nothing"
    text = half.one(ids, load=half.load_from(ticket), save=again)
    assert half.counts("syshax_handoff_loaded_tokens") - loaded == len(ids) - 1
    assert engines["brain"].one(ids, load=half.load_from(again))[0] == text[0]


def test_preempted_requests_take_their_kv_back(one: Engine) -> None:
    prompts = [prompt(120 + 9 * i, 4) for i in range(8)]
    alone = [one.one(ids, max_tokens=90) for ids in prompts]
    preempted, loaded = one.counts("num_preemptions"), one.counts("syshax_handoff_loaded_tokens")
    assert one.generate(prompts, 90) == alone
    preempted, loaded = one.counts("num_preemptions") - preempted, one.counts("syshax_handoff_loaded_tokens") - loaded
    assert preempted > 0 and loaded >= 100 * preempted


def test_aborted_requests_publish_what_they_have(engines: dict[str, Engine], one: Engine) -> None:
    ids, ticket = prompt(100, 5), secrets.token_hex(16)
    whole = one.one(ids, max_tokens=40)
    begun = one.one(ids, max_tokens=40, abort=10, save=ticket, save_on="abort")
    assert 10 <= len(begun) < 40 and begun == whole[: len(begun)]
    loaded = engines["two"].counts("syshax_handoff_loaded_tokens")
    rest = engines["two"].one([*ids, *begun], max_tokens=40 - len(begun), load=one.load_from(ticket))
    assert begun + rest == whole
    assert engines["two"].counts("syshax_handoff_loaded_tokens") - loaded >= len(ids) + len(begun) - 2


def test_a_handoff_is_consumed_once(engines: dict[str, Engine], one: Engine) -> None:
    ids, ticket, two = prompt(150, 6), secrets.token_hex(16), engines["two"]
    one.one(ids, max_tokens=1, save=ticket)
    failed, loaded = two.counts("load_failures"), two.counts("syshax_handoff_loaded_tokens")
    found = [two.one(ids, load=one.load_from(ticket)) for _ in range(2)]
    assert found[0] == found[1] == one.one(ids)
    assert two.counts("syshax_handoff_loaded_tokens") - loaded == len(ids) - 1
    assert two.counts("load_failures") - failed == 1


def damage(pool: Path, ticket: str, part: str) -> Callable[[], None]:
    """Changes one byte of a READY ticket where docs/kv-handoff.md section 2 has that part; gives what mends it."""
    data = pool.read_bytes()
    slot = next(at for at in range(8192, len(data), 64) if data[at + 16 : at + 32] == bytes.fromhex(ticket))
    number = int.from_bytes(data[slot + 64 : slot + 68], "little")
    records, chunks, stride = (int.from_bytes(data[at : at + 8], "little") for at in (112, 120, 128))
    record = records + number * 384
    at = {
        "id": slot + 16, "era": slot + 32, "tokens": slot + 36, "chunks": slot + 40,
        "crc": slot + 44, "chunk list": slot + 64, "owner": record, "seal": record + 8, "token id": record + 72,
        "KV": chunks + number * stride + 5,
    }[part]  # fmt: skip
    put(pool, at, data[at] ^ 0x40)
    return lambda: put(pool, at, data[at])


def put(path: Path, at: int, value: int) -> None:
    """Changes one byte of a file."""
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(bytes([value]))


PARTS = "id", "tokens", "crc", "chunk list", "owner", "seal", "token id", "KV"


@pytest.mark.parametrize("part", PARTS)
def test_damage_falls_back_to_computing(engines: dict[str, Engine], one: Engine, part: str) -> None:
    ids, ticket, two = prompt(90, 7), secrets.token_hex(16), engines["two"]
    expected = one.one(ids)
    one.one(ids, max_tokens=1, save=ticket)
    mend = damage(one.pool, ticket, part)
    failed, loaded = two.counts("load_failures"), two.counts("syshax_handoff_loaded_tokens")
    assert two.one(ids, load=one.load_from(ticket)) == expected
    assert two.counts("load_failures") - failed == 1
    assert two.counts("syshax_handoff_loaded_tokens") == loaded
    if part == "id":  # nobody has found it: it waits for its consumer until the lease ends
        mend()
        assert two.one(ids, load=one.load_from(ticket)) == expected
        assert two.counts("syshax_handoff_loaded_tokens") > loaded
