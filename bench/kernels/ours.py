"""`python -m bench.kernels.ours SHAPE TYPE CPUS [lengths]`, one process of the benchmark: the native core, as JSON.

With `lengths`: decode of one sequence at the lengths of the user's tables, as the whole model would take it: the time
of a layer is that of the stack without output matrix, divided by its height.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from syshax_kernels.context import Context
from syshax_kernels.matrix import row_bytes
from syshax_kernels.model import KvSlice, Model, ModelShape, Seq
from syshax_kernels.types import DType, Role

from .shapes import BLOCK_BYTES, LENGTHS, LONG, PROMPT, SHAPES, SHORT, Case, Shape, decode_name
from .timing import step_seconds

BLOCK = 16
STEPS_ROOM = 80  # tokens that a case may add to its context


def blocks_of(case: Case) -> int:
    return (case[1] + STEPS_ROOM) // BLOCK + 1


def model_shape(s: Shape, cases: list[Case]) -> ModelShape:
    blocks = max(PROMPT // BLOCK, *(b * blocks_of((b, c)) for b, c in cases))
    freqs = [] if s.alibi else [10000.0 ** (-2 * i / s.head_dim) for i in range(s.head_dim // 2)]
    slopes = [2.0 ** (-8 * (i + 1) / s.heads) for i in range(s.heads)] if s.alibi else None
    sizes = (s.stack, s.d_model, s.heads, s.kv_heads, s.head_dim, s.d_ff, s.vocab)
    return ModelShape(*sizes, freqs, 1e-6, 8192, blocks, BLOCK, alibi_slopes=slopes)


def fill(model: Model, s: Shape, kind: DType) -> None:
    """Random quants, scales of about 0.004; one array of them serves every tensor."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 255, row_bytes(kind, s.head_weights), dtype=np.uint8)
    data.reshape(-1, BLOCK_BYTES[kind.name.lower()])[:, :2] = 0, 0x1C
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim

    def put(role: Role, layer: int, rows: int, cols: int) -> None:
        model.set_tensor(role, layer, kind, kind, rows, cols, data[: rows * row_bytes(kind, cols)])

    ones = np.ones(s.d_model, np.float32)
    for layer in range(s.stack):
        for role, rows, cols in (
            (Role.WQ, q, s.d_model), (Role.WK, kv, s.d_model), (Role.WV, kv, s.d_model), (Role.WO, s.d_model, q),
            (Role.W_GATE, s.d_ff, s.d_model), (Role.W_UP, s.d_ff, s.d_model), (Role.W_DOWN, s.d_model, s.d_ff),
        ):  # fmt: skip
            put(role, layer, rows, cols)
        for role in (Role.ATTN_NORM, Role.FFN_NORM):
            model.set_tensor(role, layer, DType.F32, DType.F32, 1, s.d_model, ones)
    put(Role.TOKEN_EMBD, 0, s.vocab, s.d_model)
    model.set_tensor(Role.OUT_NORM, 0, DType.F32, DType.F32, 1, s.d_model, ones)
    model.finish()


def fill_cache(model: Model) -> None:
    """Random KV in every block: pages never written to would all be one page of zeros, read from the CPU's caches."""
    n, total = PROMPT, model.shape.kv_blocks * BLOCK
    chunk = np.random.default_rng(1).standard_normal(model.chunk_bytes(n, DType.F16) // 2).astype(np.float16)
    blocks = range(model.shape.kv_blocks)
    for first in range(0, total, n):
        part = KvSlice(blocks, first, min(n, total - first), n, wire_type=DType.F16)
        model.import_kv(part, chunk.view(np.uint8))


def decode_seconds(model: Model, case: Case, logits: int = 1) -> float:
    """Of the median step."""
    batch, context = case
    out = np.empty((batch, model.shape.vocab), np.float32)

    def step(i: int) -> None:
        tables = [range(b * blocks_of(case), (b + 1) * blocks_of(case)) for b in range(batch)]
        model.forward([Seq([5 + b], context + i, table, logits) for b, table in enumerate(tables)], out)

    return step_seconds(step)


def prefill_seconds(model: Model) -> float:
    """Of the median prompt, its last token's logits included."""

    def step(_: int) -> None:
        model.forward([Seq([5] * PROMPT, 0, range(PROMPT // BLOCK))])

    return step_seconds(step, least=2)


def all_rates(model: Model) -> dict[str, float]:
    """Tokens a second of every case."""
    rates = {decode_name(case): case[0] / decode_seconds(model, case) for case in SHORT + LONG}
    rates[f"prefill {PROMPT}"] = PROMPT / prefill_seconds(model)
    return rates


def length_rates(model: Model, s: Shape) -> dict[str, float]:
    """Tokens a second of the whole model, by length."""
    whole, stack = decode_seconds(model, (1, 32)), decode_seconds(model, (1, 32), logits=0)
    head, scale = max(whole - stack, 0.0), s.layers / s.stack
    return {decode_name((1, n)): 1 / (head + scale * decode_seconds(model, (1, n), logits=0)) for n in LENGTHS}


def main() -> None:
    shape, kind = SHAPES[sys.argv[1]], DType[sys.argv[2].upper()]
    cpus, lengths = [int(c) for c in sys.argv[3].split(",")], "lengths" in sys.argv[4:]
    cases = [(1, n) for n in LENGTHS] if lengths else list(SHORT + LONG)
    with Context(len(cpus), cpus) as context, Model(context, model_shape(shape, cases)) as model:
        fill(model, shape, kind)
        fill_cache(model)
        rates = length_rates(model, shape) if lengths else all_rates(model)
        print(json.dumps({"rates": rates, "note": context.describe().isa}))


if __name__ == "__main__":
    main()
