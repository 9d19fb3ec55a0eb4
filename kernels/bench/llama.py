"""One process of the benchmark: `llama.py SHAPE TYPE CPUS` measures llama.cpp on the same shape and type.

The GGUF file (random weights) is made once, beside the other build output. Needs llama-cpp-python and gguf.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Dict, List

import gguf
import llama_cpp as lc
import numpy as np
from shapes import BATCHES, CONTEXTS, PROMPTS, SHAPES, STEPS, Shape

# One sequence only: filling the caches of eight with 4096 tokens each would take it a minute a round.
SINGLE = [(b, c) for b, c in CONTEXTS if b == 1]
FOLDER = Path(__file__).resolve().parents[2] / "build" / "bench"


def header(w: gguf.GGUFWriter, s: Shape) -> None:
    w.add_context_length(8192)
    w.add_embedding_length(s.d_model)
    w.add_block_count(s.layers)
    w.add_feed_forward_length(s.d_ff)
    w.add_head_count(s.heads)
    w.add_head_count_kv(s.kv_heads)
    w.add_key_length(s.head_dim)
    w.add_value_length(s.head_dim)
    w.add_rope_dimension_count(s.head_dim)
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_vocab_size(s.vocab)
    w.add_tokenizer_model("no_vocab")


def make_file(s: Shape, kind: str, path: Path) -> None:
    block, quant = (18, gguf.GGMLQuantizationType.Q4_0) if kind == "q4_0" else (34, gguf.GGMLQuantizationType.Q8_0)
    rng = np.random.default_rng(0)
    w = gguf.GGUFWriter(path, "llama")
    header(w, s)

    def put(name: str, rows: int, cols: int) -> None:
        data = rng.integers(0, 255, (rows, cols // 32, block), dtype=np.uint8)
        data[..., 0], data[..., 1] = 0, 0x1C
        w.add_tensor(name, data.reshape(rows, -1), raw_dtype=quant)

    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    for i in range(s.layers):
        for name, rows, cols in (
            ("attn_q", q, s.d_model), ("attn_k", kv, s.d_model), ("attn_v", kv, s.d_model),
            ("attn_output", s.d_model, q),
            ("ffn_gate", s.d_ff, s.d_model), ("ffn_up", s.d_ff, s.d_model), ("ffn_down", s.d_model, s.d_ff),
        ):
            put(f"blk.{i}.{name}.weight", rows, cols)
        for name in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"blk.{i}.{name}.weight", np.ones(s.d_model, np.float32))
    put("token_embd.weight", s.vocab, s.d_model)
    w.add_tensor("output_norm.weight", np.ones(s.d_model, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


class Session:
    """A llama.cpp context with room for every case; each case starts with an empty cache."""

    def __init__(self, path: Path, threads: int) -> None:
        lc.llama_backend_init()
        parameters = lc.llama_model_default_params()
        self.model: Any = lc.llama_model_load_from_file(str(path).encode(), parameters)
        options = lc.llama_context_default_params()
        options.n_ctx = max(b * (c + 64) for b, c in SINGLE + [(32, 64)])
        options.n_batch, options.n_ubatch, options.n_seq_max = 2048, 512, 32
        options.n_threads = options.n_threads_batch = threads
        options.kv_unified = True
        self.context: Any = lc.llama_init_from_model(self.model, options)
        self.batch = lc.llama_batch_init(2048, 0, 1)

    def decode(self, entries: List[Any], logits: bool) -> None:
        """entries: (sequence, position)."""
        self.batch.n_tokens = len(entries)
        for i, (seq, position) in enumerate(entries):
            self.batch.token[i], self.batch.pos[i] = 5 + seq, position
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, seq
            self.batch.logits[i] = logits
        if lc.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError(f"llama_decode refused a batch of {len(entries)}")
        lc.llama_synchronize(self.context)

    def clear(self) -> None:
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)


def decode_rate(s: Session, batch: int, context: int) -> float:
    s.clear()
    for seq in range(batch):
        for start in range(0, context, 512):
            s.decode([(seq, p) for p in range(start, min(context, start + 512))], False)
    seconds: List[float] = []
    for step in range(STEPS):
        start_time = time.perf_counter()
        s.decode([(seq, context + step) for seq in range(batch)], True)
        seconds.append(time.perf_counter() - start_time)
    return batch / statistics.median(seconds[1:])


def prefill_rate(s: Session, n: int) -> float:
    seconds: List[float] = []
    for _ in range(3):
        s.clear()
        start = time.perf_counter()
        s.decode([(0, p) for p in range(n)], False)
        seconds.append(time.perf_counter() - start)
    return n / statistics.median(seconds)


def main() -> None:
    shape, kind, cpus = SHAPES[sys.argv[1]], sys.argv[2], [int(c) for c in sys.argv[3].split(",")]
    os.sched_setaffinity(0, cpus)
    path = FOLDER / f"{sys.argv[1]}-{kind}.gguf"
    if not path.exists():
        make_file(shape, kind, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
    quiet = lc.llama_log_callback(lambda *_: None)  # named, so that it lives as long as llama.cpp may call it
    lc.llama_log_set(quiet, ctypes.c_void_p())
    session = Session(path, len(cpus))
    rates: Dict[str, float] = {f"decode b{b} c32": decode_rate(session, b, 32) for b in BATCHES}
    rates.update({f"decode b{b} c{c}": decode_rate(session, b, c) for b, c in SINGLE})
    rates.update({f"prefill {n}": prefill_rate(session, n) for n in PROMPTS})
    note = f"llama-cpp-python {lc.__version__}; {lc.llama_print_system_info().decode()}; flash attention auto"
    print(json.dumps({"rates": rates, "note": note}))


if __name__ == "__main__":
    main()
