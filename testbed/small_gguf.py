"""Small random models as GGUF files, written with numpy alone: what the process tier runs two real units on.

Layout: GGUF version 3 (ggml's docs/gguf.md). Every byte has a token, so any text goes through.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONTEXT = 2048
SPECIAL = ("<|begin|>", "<|end|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LAYERS, HEADS, KV_HEADS = 2, 4, 2
HEAD_SIZE = 16
F32, ALIGNMENT = 0, 32
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
NORMAL, CONTROL = 1, 3

Array = NDArray[Any]


def byte_tokens() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges: the specials, the bytes, and the pairs of letters that English uses most."""
    pairs = ("t h", "i n", "e r", "a n", "o n", "r e", "th e", "Ġ t", "Ġ a", "an d")
    return [*SPECIAL, *byte_tokens(), *(pair.replace(" ", "") for pair in pairs)], list(pairs)


def write_model(path: Path, arch: str, seed: int = 1, head_size: int = HEAD_SIZE, layers: int = 0) -> Path:
    """A random `llama` or `qwen2` model; greedy text does not settle on one token. `layers`: other than LAYERS."""
    tensors = dict(random_tensors(arch, seed, head_size, layers))
    metadata = model_metadata(arch, head_size, layers)
    with open(path, "wb") as out:
        out.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, (kind, value) in metadata.items():
            out.write(packed(STRING, key) + struct.pack("<I", kind) + packed(kind, value))
        offset = 0
        for name, array in tensors.items():
            dims = struct.pack(f"<I{array.ndim}Q", array.ndim, *reversed(array.shape))
            out.write(packed(STRING, name) + dims + struct.pack("<IQ", F32, offset))
            offset += padded(array.nbytes)
        for array in tensors.values():
            out.write(b"\0" * (padded(out.tell()) - out.tell()) + array.tobytes())
    return path


def padded(size: int) -> int:
    """Up to the next aligned offset."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def model_metadata(arch: str, head_size: int = HEAD_SIZE, layers: int = 0) -> dict[str, tuple[int, Any]]:
    """Key to type and value."""
    tokens, merges = vocabulary()
    kinds = [CONTROL if token in SPECIAL else NORMAL for token in tokens]
    return {
        "general.architecture": (STRING, arch),
        f"{arch}.context_length": (UINT32, CONTEXT),
        f"{arch}.embedding_length": (UINT32, HEADS * head_size),
        f"{arch}.block_count": (UINT32, layers or LAYERS),
        f"{arch}.feed_forward_length": (UINT32, 2 * HEADS * head_size),
        f"{arch}.attention.head_count": (UINT32, HEADS),
        f"{arch}.attention.head_count_kv": (UINT32, KV_HEADS),
        f"{arch}.attention.layer_norm_rms_epsilon": (FLOAT32, 1e-5),
        f"{arch}.rope.freq_base": (FLOAT32, 10000.0),
        f"{arch}.rope.dimension_count": (UINT32, head_size),
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, "gpt-2"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
        "tokenizer.ggml.token_type": (ARRAY, (INT32, kinds)),
        "tokenizer.ggml.merges": (ARRAY, (STRING, merges)),
        "tokenizer.ggml.bos_token_id": (UINT32, 0),
        "tokenizer.ggml.eos_token_id": (UINT32, 1),
        "tokenizer.ggml.add_bos_token": (BOOL, False),
        "tokenizer.chat_template": (STRING, TEMPLATE),
    }


def packed(kind: int, value: Any) -> bytes:
    """A metadata value as the file holds it."""
    if kind == STRING:
        data = value.encode()
        return struct.pack("<Q", len(data)) + bytes(data)
    if kind == ARRAY:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(packed(inner, item) for item in items)
    return struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}[kind], value)


def random_tensors(arch: str, seed: int, head_size: int = HEAD_SIZE, layers: int = 0) -> Iterator[tuple[str, Array]]:
    """Weights; matrices scaled so that layers neither fade nor saturate, and the more of them there are, the less each
    adds: a deep model must not make more of a rounding error than a shallow one."""
    layers = layers or LAYERS
    d_model, d_ff, kv = HEADS * head_size, 2 * HEADS * head_size, KV_HEADS * head_size
    shares = dict.fromkeys(("attn_output", "ffn_down"), np.float32(LAYERS / layers))
    generator = np.random.default_rng(seed)
    vocab = len(vocabulary()[0])

    def matrix(rows: int, cols: int) -> Array:
        return (generator.standard_normal((rows, cols)) * 1.5 / np.sqrt(cols)).astype(np.float32)

    def vector(size: int) -> Array:
        return generator.uniform(0.5, 1.5, size).astype(np.float32)

    yield "token_embd.weight", matrix(vocab, d_model)
    for layer in range(layers):
        shapes: Sequence[tuple[str, int, int]] = (
            ("attn_q", d_model, d_model), ("attn_k", kv, d_model), ("attn_v", kv, d_model),
            ("attn_output", d_model, d_model), ("ffn_gate", d_ff, d_model), ("ffn_up", d_ff, d_model),
            ("ffn_down", d_model, d_ff),
        )  # fmt: skip
        for name, rows, cols in shapes:
            yield f"blk.{layer}.{name}.weight", matrix(rows, cols) * shares.get(name, np.float32(1.0))
            if arch == "qwen2" and name in ("attn_q", "attn_k", "attn_v"):
                yield f"blk.{layer}.{name}.bias", vector(rows) - np.float32(1.0)
        yield f"blk.{layer}.attn_norm.weight", vector(d_model)
        yield f"blk.{layer}.ffn_norm.weight", vector(d_model)
    yield "output_norm.weight", vector(d_model)
    yield "output.weight", matrix(vocab, d_model)
