"""Pairs of units, at least one of them a real vLLM, under a real daemon, and what the tests ask of them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from testbed import daemon_real_units as house
from testbed import twin_models as twins
from testbed.daemon_real_units import MODEL, ROUTES, Daemon
from testbed.processes import wait_for

PATIENCE = 300.0  # seconds; a small host that does something else as well may be slow
START = 600.0
NEW = Path(os.environ.get("VLLM_VENV", ".venv-vllm"), "bin/python").absolute()
OLD = Path(os.environ.get("VLLM_OLD_VENV", ".venv-vllm-old"), "bin/python").absolute()
FLAGS = ("--dtype=float32", "--enforce-eager", "--max-num-seqs=16")


SHORT = 70  # blocks of a KV cache that holds one request of the longest kind and little more
DEEP = 48  # layers that make a step take tens of milliseconds: the unit is the slowest, not the daemon or the client
OLD_LAYERS = int(os.environ.get("VLLM_OLD_LAYERS", DEEP))  # moves need slow steps, the rest does not


@dataclass(frozen=True)
class Vllm:
    """A vLLM unit on the safetensors form of the model.

    `blocks`: size of its KV cache, None: 1 GiB; `ranks`: of tensor parallelism; `budget`: tokens of a step at most.
    """

    block: int
    python: Path = NEW
    blocks: int | None = None
    ranks: int = 1
    budget: int = 256

    def unit(self, model: twins.Twins) -> dict[str, Any]:
        """Its part of the configuration."""
        return {
            "kind": "vllm", "python": str(self.python), "model_path": str(model.folder), "max_model_len": 2048,
            "block_size": self.block, "kv_blocks": self.blocks, "start_timeout": "10m",
            "env": {"VLLM_CPU_KVCACHE_SPACE": "1"}, "tensor_parallel_size": self.ranks,
            "extra_args": [*FLAGS, f"--max-num-batched-tokens={self.budget}"],
        }  # fmt: skip


@dataclass(frozen=True)
class Sysinfer:
    """A sysinfer unit on the GGUF form."""

    def unit(self, model: twins.Twins) -> dict[str, Any]:
        """Its part of the configuration."""
        return {"kind": "sysinfer", "extra_args": ["--kv-dtype=f32"]}


@dataclass(frozen=True)
class Kind:
    """A pair by its architecture, its prefill and its decode unit."""

    arch: str
    gpu: "Vllm | Sysinfer"
    cpu: "Vllm | Sysinfer"
    auto_offload: bool = False
    layers: int = 0  # 0: as few as they come


KINDS = {
    "vllm_to_vllm": Kind("llama", Vllm(32), Vllm(64)),
    "sysinfer_to_vllm": Kind("qwen2", Sysinfer(), Vllm(32)),
    "vllm_to_sysinfer": Kind("llama", Vllm(128), Sysinfer()),
    "old_to_old": Kind("qwen2", Vllm(64, OLD), Vllm(128, OLD), layers=OLD_LAYERS),
    "sysinfer_to_vllm_llama": Kind("llama", Sysinfer(), Vllm(64)),
    "vllm_to_sysinfer_qwen2": Kind("qwen2", Vllm(32), Sysinfer()),
    "one_to_two_ranks": Kind("llama", Vllm(128, budget=96), Vllm(32, ranks=2)),
    "two_to_one_rank": Kind("llama", Vllm(64, ranks=2, budget=96), Vllm(128)),
    "short_of_kv": Kind("qwen2", Vllm(32, blocks=SHORT), Vllm(64), auto_offload=True, layers=DEEP),
}


def config(kind: Kind, model: twins.Twins) -> str:
    """The daemon's configuration, with {folder} to be filled in."""
    bound = {"cpu": {"affinity": "none", "threads": 1}, "restart": {"backoff": "100ms"}}
    pd = {"pool_dir": "FOLDER/pool", "pool_size": "256MiB", "auto_offload": kind.auto_offload}
    whole = {
        "services": {"conductor": {"host": "127.0.0.1", "port": 0}},
        "models": {"default": MODEL, "path": str(model.gguf)},
        "units": {
            "gpu": {"role": "accelerator", **bound, **kind.gpu.unit(model)},
            "cpu": {"role": "cpu", **bound, **kind.cpu.unit(model)},
        },
        "pd": pd,
        "monitor": {"interval": 0.05},
        "scheduler": {"decider": "threshold", "threshold": {"waiting": 64}},  # not by how fast this machine is
        "control_socket": "FOLDER/control.sock",
        "state_dir": "FOLDER/state",
    }
    for unit in whole["units"].values():  # type: ignore[attr-defined]
        unit.pop("kv_blocks", None) if unit.get("kv_blocks") is None else None
    return json.dumps(whole, indent=1).replace("{", "{{").replace("}", "}}").replace("FOLDER", "{folder}")


@contextlib.contextmanager
def running(kind: Kind, folder: Path) -> Iterator[Daemon]:
    """The pair, once it splits. Ended at the end, with everything it started."""
    model = twins.write(folder, kind.arch, layers=kind.layers)
    with house.running(model.gguf, config(kind, model), START, PATIENCE) as daemon:
        wait_for("a split", lambda: splits(daemon), PATIENCE)
        yield daemon


def splits(daemon: Daemon) -> bool:
    """Whether the daemon has found that the pair may split."""
    body = {"prompt": [5, 6, 7], "max_tokens": 2}
    return daemon.ask("/v1/completions", body, {"x-syshax-route": ROUTES[2]}).status == 200


def prompt(length: int, salt: int = 0) -> list[int]:
    """Token ids; other lengths and salts begin otherwise, so that no prefix cache helps."""
    return [4 + n % 250 for n in (length, length // 250, salt, *(31 * i + i * i for i in range(3, length)))][:length]


def greedy(length: int, salt: int = 0, tokens: int = 12, **more: Any) -> dict[str, Any]:
    """Body of a completion. Random models make broken characters, so only token ids are compared."""
    wanted = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    return {"prompt": prompt(length, salt), **wanted, **more}


def ids(answer: house.Answer) -> tuple[int, ...]:
    """Generated token ids of an answer."""
    assert answer.status == 200, answer.body
    return tuple(answer.json["choices"][0]["token_ids"])


def complete(daemon: Daemon, length: int, route: str, salt: int = 0, tokens: int = 12) -> tuple[int, ...]:
    """Greedy tokens after one prompt over one route."""
    answer = daemon.ask("/v1/completions", greedy(length, salt, tokens), {"x-syshax-route": route})
    assert answer.status == 200, answer.body
    assert answer.headers["x-syshax-route"] == route
    return ids(answer)


def externals(daemon: Daemon, unit: str = "cpu") -> float:
    """Prompt tokens that a unit took from the pool, whichever engine it is."""
    wanted = ("tokens_by_source_total", '"external_kv_transfer"')
    return sum(value for name, value in daemon.metrics(unit).items() if all(part in name for part in wanted))


def failures(daemon: Daemon, unit: str = "cpu") -> dict[str, float]:
    """Loads that failed, by reason."""
    found = {name: value for name, value in daemon.metrics(unit).items() if "load_failures_total" in name}
    return {name.partition('reason="')[2].partition('"')[0]: value for name, value in found.items()}


class Stream:
    """One streamed answer, read event by event. Close it early to leave as a client does."""

    def __init__(self, daemon: Daemon, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        place = urlsplit(daemon.url)
        self._connection = http.client.HTTPConnection(place.netloc, timeout=PATIENCE)
        data = json.dumps({"model": MODEL, "stream": True, **body})
        self.name = secrets.token_hex(8)  # its request id
        named = {"Content-Type": "application/json", "x-request-id": self.name}
        self._connection.request("POST", path, data, {**named, **headers})
        self.tokens: list[int] = []
        self.finish = ""
        self._response: http.client.HTTPResponse | None = None

    def read(self, tokens: int = 1 << 30) -> "Stream":
        """Until it has so many tokens, or to its end."""
        if self._response is None:
            self._response = self._connection.getresponse()
            assert self._response.status == 200, self._response.read()
        while len(self.tokens) < tokens:
            if not self._event(self._response.readline()):
                self.close()
                break
        return self

    def _event(self, line: bytes) -> bool:
        if not line or line.startswith(b"data: [DONE]"):
            return False
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            assert "error" not in event, event
            for choice in event["choices"]:
                self.tokens += choice.get("token_ids") or ()
                self.finish = choice["finish_reason"] or self.finish
        return True

    def close(self) -> None:
        """Leaves."""
        self._connection.close()


def quiet(daemon: Daemon) -> None:
    """Nothing in flight anywhere, no block held, no chunk of a pool."""
    wait_for("both units", lambda: daemon.status() and all_ready(daemon), START)
    wait_for("idle", daemon.idle, 60)
    wait_for("empty pools", daemon.pools_empty, 60)


def all_ready(daemon: Daemon) -> bool:
    """Whether both units serve."""
    return len(daemon.units) == 2 and all(unit["state"] == "ready" for unit in daemon.units.values())
