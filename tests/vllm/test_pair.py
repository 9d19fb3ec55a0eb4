"""Stock vLLM under the daemon: output does not depend on the route, KV moves, and what goes wrong is computed again.

VLLM_VENV names an environment with vLLM (`make vllm-env`). One pair at a time; a start takes minutes on a small host.
"""

from __future__ import annotations

import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import pytest

from tests.fakes import daemon as house
from tests.fakes.daemon import ROUTES, Daemon, wait_for
from tests.vllm import twins

PYTHON = Path(os.environ.get("VLLM_VENV", ".venv-vllm"), "bin/python").absolute()
pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="no environment with vLLM: run `make vllm-env`"),
    pytest.mark.timeout(900),
]

# Around the sizes of KV blocks (32) and handoff chunks (64), and longer than one step's share of prefill.
LENGTHS = (1, 31, 32, 33, 63, 64, 65, 257, 1000, 1499)
OUTPUT = 12
SETTINGS = "dtype=float32", "enforce-eager", "max-num-seqs=16", "max-num-batched-tokens=256"
VLLM = (
    "{{kind: vllm, role: ROLE, python: PYTHON, model_path: FOLDER, max_model_len: 2048, block_size: BLOCK,"
    " start_timeout: 10m, cpu: {{affinity: none, threads: 1}}, env: {{VLLM_CPU_KVCACHE_SPACE: '1'}},"
    " extra_args: FLAGS}}"
)
SYSINFER = "{{kind: sysinfer, role: ROLE, cpu: {{affinity: none, threads: 1}}, extra_args: [--kv-dtype=f32]}}"
PAIRS = {
    "vllm_to_vllm": ("llama", (VLLM, 32), (VLLM, 64)),
    "sysinfer_to_vllm": ("qwen2", (SYSINFER, 0), (VLLM, 32)),
    "vllm_to_sysinfer": ("llama", (VLLM, 128), (SYSINFER, 0)),
}


def unit(kind: str, role: str, folder: Path, block: int) -> str:
    """The YAML of one unit."""
    flags = ", ".join(f"--{setting}" for setting in SETTINGS)
    values = {"ROLE": role, "PYTHON": str(PYTHON), "FOLDER": str(folder), "BLOCK": str(block), "FLAGS": f"[{flags}]"}
    for name, value in values.items():
        kind = kind.replace(name, value)
    return kind


@pytest.fixture(scope="module", params=PAIRS)
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon on one pair of units; the prefill unit comes first."""
    arch, (first, first_block), (second, second_block) = PAIRS[request.param]
    model = twins.write(tmp_path_factory.mktemp("model"), arch)
    lines = [line for line in house.CONFIG.splitlines() if not line.startswith(("  gpu:", "  cpu:"))]
    at = lines.index("units:") + 1
    lines.insert(at, f"  gpu: {unit(first, 'accelerator', model.folder, first_block)}")
    lines.insert(at + 1, f"  cpu: {unit(second, 'cpu', model.folder, second_block)}")
    with house.running(model.gguf, "\n".join(lines) + "\n", 600) as running:
        wait_for("a split", lambda: splits(running), 300)
        yield running


def splits(daemon: Daemon) -> bool:
    """Whether the daemon has found that the pair may split."""
    body = {"prompt": [5, 6, 7], "max_tokens": 2}
    return daemon.ask("/v1/completions", body, {"x-syshax-route": ROUTES[2]}).status == 200


def prompt(length: int, salt: int = 0) -> List[int]:
    """Token ids; other lengths and salts begin otherwise, so that no prefix cache helps."""
    return [4 + (7 * length + 101 * salt + 31 * i + i * i) % 250 for i in range(length)]


GREEDY = {"max_tokens": OUTPUT, "temperature": 0, "ignore_eos": True, "return_token_ids": True}


def complete(daemon: Daemon, length: int, route: str, salt: int = 0) -> Tuple[int, ...]:
    """Greedy tokens after one prompt over one route. Random models make broken characters: text proves nothing."""
    answer = daemon.ask("/v1/completions", {"prompt": prompt(length, salt), **GREEDY}, {"x-syshax-route": route})
    assert answer.status == 200, answer.body
    assert answer.headers["x-syshax-route"] == route
    return tuple(answer.json["choices"][0]["token_ids"])


def externals(daemon: Daemon) -> float:
    """Prompt tokens that the decode unit took from the pool, whichever engine it is."""
    samples = daemon.metrics("cpu")
    wanted = ("tokens_by_source_total", '"external_kv_transfer"')
    return sum(value for name, value in samples.items() if all(part in name for part in wanted))


def test_tokens_are_the_same_over_every_route(daemon: Daemon) -> None:
    for salt in (0, 1):
        before = externals(daemon)
        # The split comes first: afterwards the decode unit has the prompt in its prefix cache and needs no handoff.
        rows = [[complete(daemon, n, route, salt) for route in reversed(ROUTES)] for n in LENGTHS]
        assert [len(set(row)) for row in rows] == [1] * len(LENGTHS)
        assert len({row[0] for row in rows}) > len(LENGTHS) / 2, "the model repeats itself: this proves nothing"
        assert externals(daemon) - before >= sum(LENGTHS) - len(LENGTHS)


def test_eight_at_once(daemon: Daemon) -> None:
    lengths = [100 + 37 * i for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        texts = [
            [*pool.map(lambda n, route=route: complete(daemon, n, route, 2), lengths)] for route in reversed(ROUTES)
        ]
    assert texts[0] == texts[1] == texts[2]


def test_a_warm_prefix_cache(daemon: Daemon) -> None:
    first = complete(daemon, 300, "accelerator>cpu", 3)
    assert first == complete(daemon, 300, "accelerator>cpu", 3) == complete(daemon, 300, "cpu", 3)


def test_a_missing_ticket_is_computed(daemon: Daemon) -> None:
    body = {"prompt": prompt(200, 4), **GREEDY}
    load: Dict[str, object] = {"ticket": secrets.token_hex(16), "pool": "gpu.pool", "generation": 0}
    transfer = {"kv_transfer_params": {"syshax": {"load": load}}}
    answer = daemon.ask_unit("cpu", "/v1/completions", {**body, **transfer})
    assert tuple(answer.json["choices"][0]["token_ids"]) == complete(daemon, 200, "accelerator", 4)
    failures = {name: value for name, value in daemon.metrics("cpu").items() if "load_failures_total" in name}
    assert sum(failures.values()) >= 1, failures


def test_nothing_is_left_behind(daemon: Daemon) -> None:
    wait_for("idle", daemon.idle, 30)
    wait_for("empty pools", daemon.pools_empty, 60)
