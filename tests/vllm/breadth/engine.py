"""Starts and asks one vLLM engine in a process of its own (tests/vllm/breadth/engine_main.py)."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from syshax_kernels.pool import BF16, CHUNK_TOKENS, F32, Geometry, Inbox
from syshaxd.units.vllm import transfer_config

PYTHON = Path(os.environ.get("VLLM_VENV", ".venv-vllm"), "bin/python").absolute()
ROOT = Path(__file__).resolve().parents[3]
START_S, ANSWER_S = 480.0, 240.0
Floats = NDArray[np.float32]


class Engine:
    """A unit's engine without its server. Start several, then wait for each with ready()."""

    def __init__(self, folder: Path, name: str, model: Path, users_transfer: str = "", **settings: Any) -> None:
        """`folder`: of the pools and the log; `settings`: of vllm.LLM."""
        self.name, self.pool, self._log = name, folder / f"{name}.pool", folder / f"{name}.log"
        defaults: Mapping[str, Any] = {
            "model": str(model), "dtype": "float32", "enforce_eager": True, "max_model_len": 2048, "max_num_seqs": 16,
            "max_num_batched_tokens": 256, "enable_prefix_caching": False, "seed": 0,
            "kv_transfer_config": json.loads(transfer_config(users_transfer)),
        }  # fmt: skip
        env = {
            **os.environ, "SYSHAX_POOL_DIR": str(folder), "SYSHAX_POOL_NAME": self.pool.name,
            "SYSHAX_POOL_BYTES": str(32 << 20), "PYTHONPATH": f"{ROOT / 'kernels/python'}", "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        command = [str(PYTHON), str(Path(__file__).with_name("engine_main.py")), json.dumps({**defaults, **settings})]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=env, cwd=folder
            )
        self._read = b""

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def ready(self) -> Engine:
        """Waits until it has started."""
        assert self._answer(START_S) == "ready"
        return self

    def refused(self) -> str:
        """Waits for its end at start; its log."""
        assert self._process.wait(START_S) != 0
        return self.log

    def ask(self, do: str, **order: Any) -> Any:
        """Calls a method of engine_main.Engine."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer(ANSWER_S)

    def _answer(self, timeout: float) -> Any:
        pipe, end = self._process.stdout, time.monotonic() + timeout
        assert pipe is not None
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._read:
                assert selector.select(max(0.0, end - time.monotonic())), f"no answer in {timeout:g} s\n{self.log}"
                data = os.read(pipe.fileno(), 1 << 16)
                assert data, f"{self.name} ended\n{self.log}"
                self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int = 12, **more: Any) -> list[tuple[int, ...]]:
        """Greedy tokens. `params` and `abort`: one for each prompt."""
        blank = [None] * len(prompts)
        order = {"params": blank, "abort": blank, **more, "prompts": prompts, "max_tokens": max_tokens}
        return [tuple(tokens) for tokens, _ in self.ask("generate", **order)]

    def one(
        self, prompt: Sequence[int], max_tokens: int = 12, abort: int | None = None, **wish: Any
    ) -> tuple[int, ...]:
        """generate() of one prompt, with the wish as kv_transfer_params.syshax."""
        return self.generate([prompt], max_tokens, params=[wish or None], abort=[abort])[0]

    def counts(self, name: str) -> float:
        """Sum of the counters with that text in their names."""
        return sum(value for key, value in self.ask("counts").items() if name in key)

    def load_from(self, ticket: str) -> dict[str, Any]:
        """The wish of a consumer of ours."""
        return {"ticket": ticket, "pool": self.pool.name, "generation": 0}

    def kv(self, ticket: str) -> Floats:
        """[token, layer, K or V, kv head, head size] of a READY ticket, which stays READY."""
        geometry = header(self.pool)
        with Inbox.open(str(self.pool), geometry) as inbox:
            view = inbox.pin(bytes.fromhex(ticket), lease_s=60)
            chunks = [as_floats(bytes(view.chunk(i)), geometry) for i in range(view.n_chunks)]
            view.release(consumed=False)
            return np.concatenate([chunk.transpose(2, 0, 1, 3, 4) for chunk in chunks])[: view.n_tokens]

    def stop(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def header(pool: Path) -> Geometry:
    """Of a pool file (docs/kv-handoff.md section 2.1)."""
    with pool.open("rb") as file:
        data = file.read(192)
    layers, heads, size = (int.from_bytes(data[at : at + 4], "little") for at in (16, 20, 24))
    return Geometry(layers, heads, size, int.from_bytes(data[28:32], "little"), data[32:64])


def as_floats(data: bytes, geometry: Geometry) -> Floats:
    """A chunk as [layer, K or V, token, kv head, head size]."""
    shape = geometry.n_layers, 2, CHUNK_TOKENS, geometry.n_kv_heads, geometry.head_size
    if geometry.wire_type == BF16:
        values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(data, np.float32 if geometry.wire_type == F32 else np.float16).astype(np.float32)
    return values[: int(np.prod(shape))].reshape(shape)


def rounded_to_bf16(values: Floats) -> Floats:
    """Round to nearest even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
