"""A language model whose next token is a function of every token before it, read back out of its KV cache.

A block table that is wrong anywhere gives another text, so that equality with `reference` shows the whole engine right.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from syshax_contract.transfer import HandoffParams
from syshax_kernels.pool import F16, Geometry, Outbox
from sysinfer.blocks import BlockPool
from sysinfer.core import EngineCore, Handoffs
from sysinfer.handoff import SequenceSaver
from sysinfer.output import Output
from sysinfer.runner import ALL_LOGITS, NO_LOGITS, Chunk, Row
from sysinfer.sampling import SamplingParams
from sysinfer.scheduler import Scheduler, SchedulerConfig
from sysinfer.sequence import Sequence as Seq
from sysinfer.stats import EngineStats
from tests.crc32c import crc32c

VOCAB = 64
GEOMETRY = Geometry(1, 1, 1, F16, b"toy".ljust(32, b"-"), 8, 1, F16)  # 4 bytes a token: its id


def next_token(tokens: Sequence[int]) -> int:
    return zlib.crc32(array("i", tokens).tobytes()) % VOCAB


def reference(context: Sequence[int], count: int) -> list[int]:
    """What the toy model says greedily."""
    tokens = list(context)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(context) :]


class ToyRunner:
    """A ModelRunner; its KV of a token is the token's id: the lower half is K, the upper one V."""

    def __init__(self, n_blocks: int, block_size: int) -> None:
        self.kv = np.full((n_blocks, block_size), -1, np.int32)
        self.steps: list[int] = []

    def forward(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        self.steps.append(sum(len(r.tokens) for r in rows))
        made = [self._row(row) for row in rows]
        return np.concatenate(made) if made else np.empty((0, VOCAB), np.float32)

    def _row(self, row: Row) -> NDArray[np.float32]:
        size = self.kv.shape[1]
        for i, token in enumerate(row.tokens, row.position):
            self.kv[row.blocks[i // size], i % size] = token
        known = self.kv[row.blocks].reshape(-1)[: row.position + len(row.tokens)].tolist()
        first = len(known) if row.logits == NO_LOGITS else row.position if row.logits == ALL_LOGITS else len(known) - 1
        logits = np.zeros((len(known) - first, VOCAB), np.float32)
        for i in range(first, len(known)):
            logits[i - first, next_token(known[: i + 1])] = 5.0
        return logits

    def export_kv(self, blocks: list[int], first: int, count: int, at: int, chunk: Chunk, wire_type: int) -> int:
        flat = self.kv[blocks].reshape(-1)[first : first + count]
        halves = chunk.view(np.uint16).reshape(2, 64)  # K, V: the id's halves
        halves[:, at : at + count] = flat.astype(np.int32).view(np.uint16).reshape(-1, 2).T
        return crc32c(halves[:, at : at + count].tobytes())

    def import_kv(self, blocks: list[int], first: int, count: int, at: int, chunk: Chunk, wire_type: int) -> int:
        size, halves = self.kv.shape[1], chunk.view(np.uint16).reshape(2, 64)[:, at : at + count]
        for i, token in enumerate(np.ascontiguousarray(halves.T).view(np.int32).ravel(), first):
            self.kv[blocks[i // size], i % size] = token
        return crc32c(halves.tobytes())


def toy_outbox(folder: Path, chunks: int = 64) -> Outbox:
    """A real pool file for the toy's KV."""
    return Outbox.create(str(folder / "toy.pool"), GEOMETRY, chunks=chunks, tickets=16, max_tokens=512)


class Letters:
    """Tokens that spell one character each."""

    def token_bytes(self, token: int, skip_special: bool = False) -> bytes:
        return chr(32 + token).encode()


class Bench:
    """An engine around the toy model."""

    def __init__(
        self,
        blocks: int = 32,
        size: int = 8,
        seqs: int = 4,
        budget: int = 32,
        longest: int = 200,
        caching: bool = True,
        outbox: Outbox | None = None,
    ) -> None:
        self.pool = BlockPool(blocks, size, caching)
        self.scheduler = Scheduler(SchedulerConfig(seqs, budget, min(longest, blocks * size)), self.pool)
        self.runner = ToyRunner(blocks, size)
        self.stats = EngineStats()
        self.saver = SequenceSaver(outbox, self.runner, self.stats) if outbox is not None else None
        handoffs = Handoffs(self.saver, None, load_budget=48)
        self.core = EngineCore(self.scheduler, self.runner, Letters(), self.stats, handoffs)
        self.made: dict[int, list[int]] = {}
        self.finish: dict[int, list[str]] = {}

    def add(self, key: int, context: Sequence[int], params: SamplingParams, save: bytes | None = None) -> None:
        self.made[key], self.finish[key] = [], []
        self.core.add(Seq(key, f"r{key}", 0, list(context), len(context), params, HandoffParams(save)))

    def step(self) -> None:
        self.take(self.core.step())

    def abort(self, key: int, publish: bool = False) -> None:
        self.take(self.core.abort([f"r{key}"], publish))

    def take(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            self.made[output.key].extend(output.tokens)
            if output.finish is not None:
                self.finish[output.key].append(output.finish)

    def drain(self, limit: int = 20000) -> None:
        while not self.core.idle:
            self.step()
            limit -= 1
            assert limit, "the engine makes no progress"
