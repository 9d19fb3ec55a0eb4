"""One process of the benchmark: `ours.py SHAPE TYPE CPUS` measures the native core, prints tokens a second as JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Dict, List

import numpy as np
from shapes import BATCHES, CONTEXTS, PROMPTS, SHAPES, STEPS, Shape

from syshax_kernels.context import Context
from syshax_kernels.matrix import row_bytes
from syshax_kernels.model import Model, ModelShape, Seq
from syshax_kernels.types import DType, Role

BLOCK = 16


def model_shape(s: Shape) -> ModelShape:
    blocks = max(b * ((c + 2 * STEPS) // BLOCK + 2) for b, c in CONTEXTS)
    freqs = [10000.0 ** (-2 * i / s.head_dim) for i in range(s.head_dim // 2)]
    sizes = (s.layers, s.d_model, s.heads, s.kv_heads, s.head_dim, s.d_ff, s.vocab)
    return ModelShape(*sizes, freqs, 1e-6, 8192, blocks, BLOCK)


def fill(model: Model, s: Shape, kind: DType) -> None:
    """Random quants, scales of about 0.004."""
    rng = np.random.default_rng(0)
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim

    def put(role: Role, layer: int, rows: int, cols: int) -> None:
        data = rng.integers(0, 255, row_bytes(kind, cols) * rows, dtype=np.uint8)
        blocks = data.reshape(-1, 18 if kind == DType.Q4_0 else 34)
        blocks[:, 0], blocks[:, 1] = 0, 0x1C
        model.set_tensor(role, layer, kind, kind, rows, cols, data)

    ones = np.ones(s.d_model, np.float32)
    for layer in range(s.layers):
        for role, rows, cols in (
            (Role.WQ, q, s.d_model), (Role.WK, kv, s.d_model), (Role.WV, kv, s.d_model), (Role.WO, s.d_model, q),
            (Role.W_GATE, s.d_ff, s.d_model), (Role.W_UP, s.d_ff, s.d_model), (Role.W_DOWN, s.d_model, s.d_ff),
        ):
            put(role, layer, rows, cols)
        for role in (Role.ATTN_NORM, Role.FFN_NORM):
            model.set_tensor(role, layer, DType.F32, DType.F32, 1, s.d_model, ones)
    put(Role.TOKEN_EMBD, 0, s.vocab, s.d_model)
    model.set_tensor(Role.OUT_NORM, 0, DType.F32, DType.F32, 1, s.d_model, ones)
    model.finish()


def decode_rate(model: Model, batch: int, context: int) -> float:
    """Tokens a second, from the median step; the first step warms up."""
    per_seq = (context + STEPS) // BLOCK + 1
    out = np.empty((batch, model.shape.vocab), np.float32)
    seconds: List[float] = []
    for step in range(STEPS):
        seqs = [Seq([5 + b], context + step, range(b * per_seq, (b + 1) * per_seq)) for b in range(batch)]
        start = time.perf_counter()
        model.forward(seqs, out)
        seconds.append(time.perf_counter() - start)
    return batch / statistics.median(seconds[1:])


def prefill_rate(model: Model, n: int) -> float:
    seconds: List[float] = []
    for _ in range(3):
        start = time.perf_counter()
        model.forward([Seq([5] * n, 0, range(n // BLOCK))])
        seconds.append(time.perf_counter() - start)
    return n / statistics.median(seconds)


def main() -> None:
    shape, kind = SHAPES[sys.argv[1]], DType[sys.argv[2].upper()]
    cpus = [int(c) for c in sys.argv[3].split(",")]
    rates: Dict[str, float] = {}
    with Context(len(cpus), cpus) as context, Model(context, model_shape(shape)) as model:
        fill(model, shape, kind)
        for batch in BATCHES:
            rates[f"decode b{batch} c32"] = decode_rate(model, batch, 32)
        for batch, tokens in CONTEXTS:
            rates[f"decode b{batch} c{tokens}"] = decode_rate(model, batch, tokens)
        for n in PROMPTS:
            rates[f"prefill {n}"] = prefill_rate(model, n)
        print(json.dumps({"rates": rates, "note": context.describe().isa}))


if __name__ == "__main__":
    main()
