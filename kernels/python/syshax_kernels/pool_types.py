"""Values of the handoff pool: what a pool file is made for, and what is read from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from syshax_contract.gguf import BF16, F16, F32
from syshax_contract.pool_pages import CHUNK_TOKENS

__all__ = [
    "BF16", "CHUNK_TOKENS", "F16", "F32", "Geometry", "PinnedTicket", "PoolInfo", "TicketState", "UnitStats",
    "model_id",
]  # fmt: skip


class TicketState(IntEnum):
    """States of a ticket, as in pool.h."""

    FREE = 0
    FILLING = 1
    READY = 2
    LOADING = 3
    CONSUMED = 4
    FAILED = 5


@dataclass(frozen=True)
class Geometry:
    """What a chunk looks like. The first three and `model_id` must match between owner and consumer."""

    n_layers: int
    n_kv_heads: int
    head_size: int
    wire_type: int  # F32, F16 or BF16: element type in the chunks
    model_id: bytes  # 32 bytes, see model_id()
    block_size: int = 0  # tokens; this and the rest: for people, beside the match
    tp_size: int = 1  # ranks that write (and seal) a chunk
    kv_type: int = F16

    def __post_init__(self) -> None:
        if len(self.model_id) != 32:
            raise ValueError(f"model_id has {len(self.model_id)} bytes, expected 32")


@dataclass(frozen=True)
class PoolInfo:
    """Numbers of a pool file; `chunks_free` and `tickets_free` are known to the owner only (else 0)."""

    format: int
    n_chunks: int
    n_tickets: int
    max_tokens: int
    chunks_free: int
    tickets_free: int
    generation: int
    chunk_bytes: int
    chunks: int  # address of all chunks in this mapping, to register with a device
    chunks_size: int  # bytes there
    geometry: Geometry


@dataclass(frozen=True)
class UnitStats:
    """The stats page of a unit (sx_unit_stats). The second group is filled in by write_stats itself."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    kv_block_size: int = 0
    step_tokens: int = 0
    step_ns: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    waiting_prompt_tokens: int = 0
    kv_tokens: int = 0
    max_num_seqs: int = 0  # 0: not told; the page holds 16 bits of it, and of the next
    max_step_tokens: int = 0

    sequence: int = 0
    generation: int = 0
    time_ns: int = 0
    pool_chunks_free: int = 0
    pool_chunks_total: int = 0


@dataclass(frozen=True)
class PinnedTicket:
    """A pin as plain data: one rank of a consumer pins, the others attach() to it."""

    slot: int
    n_tokens: int
    n_chunks: int
    generation: int
    word: int
    deadline_ns: int
    ready_deadline_ns: int


def model_id(
    arch: str,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    d_model: int,
    rope_theta: float,
    rope_scaling: Mapping[str, Any] | None,
    tokens: Sequence[str],
) -> bytes:
    """SHA-256 that says "KV of the one fits the other" (docs/kv-handoff.md section 2).

    `rope_scaling`: as in a Hugging Face config (`rope_type` or `type`, `factor`); None or type "default": none.
    `tokens`: the vocabulary in id order, as tokenizer.json and GGUF spell it.
    """
    vocabulary = hashlib.sha256()
    for token in tokens:
        spelled = token.encode("utf-8")
        vocabulary.update(len(spelled).to_bytes(4, "little") + spelled)
    numbers = f"{n_layers}|{n_heads}|{n_kv_heads}|{head_dim}|{d_model}|{rope_theta:.6g}"
    text = f"{arch}|{numbers}|{_scaling_text(rope_scaling)}|{len(tokens)}|{vocabulary.hexdigest()}"
    return hashlib.sha256(text.encode("utf-8")).digest()


def _scaling_text(scaling: Mapping[str, Any] | None) -> str:
    """`null` or `type:factor`: what both a Hugging Face config and a GGUF file tell."""
    kind = None if scaling is None else scaling.get("rope_type", scaling.get("type"))
    if scaling is None or kind in (None, "default", "none"):
        return json.dumps(None)
    return f"{kind}:{float(scaling.get('factor', 1.0)):.6g}"
