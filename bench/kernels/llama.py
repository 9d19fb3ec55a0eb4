"""`python -m bench.kernels.llama SHAPE TYPE CPUS`, one process of the benchmark: llama.cpp on the same shape and type.

The GGUF file (random weights) and a file with the KV of one long sequence are made once, beside the other build output.
Needs llama-cpp-python and gguf. Each sequence has a cache of its own, as in llama.cpp's own batched benchmark.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp as lc  # type: ignore[import-not-found,unused-ignore]
import numpy as np

from .shapes import BLOCK_BYTES, LONG, PROMPT, SHAPES, SHORT, Case, Shape, decode_name
from .timing import step_seconds

FOLDER = Path(__file__).resolve().parents[2] / "build" / "bench"
ROOM = 80  # tokens that a case may add to its context
TELLING = re.compile("repack|flash|CPU_|KV buffer|compute buffer", re.I)  # log lines worth keeping


def header(w: gguf.GGUFWriter, s: Shape) -> None:
    w.add_context_length(8192)
    w.add_embedding_length(s.d_model)
    w.add_block_count(s.stack)
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
    block, quant = BLOCK_BYTES[kind], gguf.GGMLQuantizationType[kind.upper()]
    w = gguf.GGUFWriter(path, "llama")
    header(w, s)
    blocks = np.random.default_rng(0).integers(0, 255, (s.head_weights // 32, block), dtype=np.uint8)
    blocks[:, :2] = 0, 0x1C  # a scale of about 0.004; one array of blocks serves every tensor

    def put(name: str, rows: int, cols: int) -> None:
        w.add_tensor(name, blocks[: rows * cols // 32].reshape(rows, -1), raw_dtype=quant)

    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    for i in range(s.stack):
        for name, rows, cols in (
            ("attn_q", q, s.d_model), ("attn_k", kv, s.d_model), ("attn_v", kv, s.d_model),
            ("attn_output", s.d_model, q),
            ("ffn_gate", s.d_ff, s.d_model), ("ffn_up", s.d_ff, s.d_model), ("ffn_down", s.d_model, s.d_ff),
        ):  # fmt: skip
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
    """A llama.cpp context for so many sequences of so many tokens."""

    def __init__(self, model: Any, threads: int, sequences: int, tokens: int) -> None:
        options = lc.llama_context_default_params()
        options.n_ctx, options.n_seq_max, options.kv_unified = sequences * tokens, sequences, False
        options.n_batch, options.n_ubatch = 2048, 512
        options.n_threads = options.n_threads_batch = threads
        self.context: Any = lc.llama_init_from_model(model, options)
        self.batch = lc.llama_batch_init(2048, 0, 1)

    def decode(self, entries: list[tuple[int, int]], logits: bool) -> None:
        """entries: (sequence, position)."""
        self.batch.n_tokens = len(entries)
        for i, (seq, position) in enumerate(entries):
            self.batch.token[i], self.batch.pos[i] = 5 + seq, position
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, seq
            self.batch.logits[i] = logits
        if lc.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError(f"llama_decode refused a batch of {len(entries)}")
        lc.llama_synchronize(self.context)

    def fill(self, seq: int, context: int) -> None:
        for start in range(0, context, 512):
            self.decode([(seq, p) for p in range(start, min(context, start + 512))], False)

    def clear(self) -> None:
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)

    def close(self) -> None:
        lc.llama_batch_free(self.batch)
        lc.llama_free(self.context)


def load_context(s: Session, seq: int, context: int, path: Path) -> None:
    """A sequence of `context` tokens, from the file at `path`; computed and saved where there is none."""
    tokens, count = (ctypes.c_int32 * context)(), ctypes.c_size_t()
    if not path.exists():
        s.fill(seq, context)
        lc.llama_state_seq_save_file(s.context, str(path.with_suffix(".new")).encode(), seq, tokens, context)
        path.with_suffix(".new").rename(path)
    elif lc.llama_state_seq_load_file(s.context, str(path).encode(), seq, tokens, context, ctypes.byref(count)) == 0:
        raise RuntimeError(f"{path} is not a context of {context} tokens: remove it")


def decode_rate(model: Any, threads: int, case: Case, path: Path) -> float:
    batch, context = case
    s = Session(model, threads, batch, context + ROOM)
    if context > PROMPT:
        load_context(s, 0, context, path)
    else:
        s.fill(0, context)
    for seq in range(1, batch):  # caches of their own: the whole sequence is copied
        lc.llama_memory_seq_cp(lc.llama_get_memory(s.context), 0, seq, -1, -1)
    seconds = step_seconds(lambda i: s.decode([(seq, context + i) for seq in range(batch)], True))
    s.close()
    return batch / seconds


def prefill_rate(model: Any, threads: int) -> float:
    s = Session(model, threads, 1, PROMPT)

    def step(_: int) -> None:
        s.clear()
        s.fill(0, PROMPT)

    seconds = step_seconds(step, least=2)
    s.close()
    return PROMPT / seconds


def note(log: list[str]) -> str:
    """Version, build flags, and what its log says of repacking, buffers and flash attention."""
    found = (re.sub(r"(blk\.|node_)\d+", r"\1N", " ".join(line.split())) for line in log if TELLING.search(line))
    lines = sorted({re.sub(r"ne = {[ \d,]+}", "ne = {..}", line) for line in found})
    return (
        f"llama-cpp-python {lc.__version__}; {lc.llama_print_system_info().decode()}; log: {' | '.join(lines)[:2000]}"
    )


def main() -> None:
    name, kind, cpus = sys.argv[1], sys.argv[2], [int(c) for c in sys.argv[3].split(",")]
    shape, path = SHAPES[name], FOLDER / f"{name}-{kind}.gguf"
    os.sched_setaffinity(0, cpus)
    if not path.exists():
        make_file(shape, kind, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
    log: list[str] = []
    keep = lc.llama_log_callback(lambda _level, text, _data: log.append(text.decode(errors="replace")))
    lc.llama_log_set(keep, ctypes.c_void_p())
    lc.llama_backend_init()
    model: Any = lc.llama_model_load_from_file(str(path).encode(), lc.llama_model_default_params())
    rates: dict[str, float] = {}
    for case in SHORT + LONG:
        rates[decode_name(case)] = decode_rate(model, len(cpus), case, FOLDER / f"{name}-b{case[0]}-c{case[1]}.kv")
    rates[f"prefill {PROMPT}"] = prefill_rate(model, len(cpus))
    print(json.dumps({"rates": rates, "note": note(log)}))


if __name__ == "__main__":
    main()
