"""Plain numpy versions of what the native core computes: the block formats of GGUF, and a decoder in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from syshax_kernels.context import Context
from syshax_kernels.model import Model, ModelShape
from syshax_kernels.types import BLOCKS, DType, Role


def encode(kind: DType, x: NDArray[Any]) -> bytes:
    """Rows of f32 to the bytes of a GGUF tensor, quantised as GGUF's reference quantiser does."""
    if kind == DType.F32:
        return bytes(x.astype("<f4").tobytes())
    if kind == DType.F16:
        return bytes(x.astype("<f2").tobytes())
    if kind == DType.BF16:
        bits = x.astype("<f4").view("<u4").astype(np.uint64)
        return bytes(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())
    if kind == DType.Q4_K:
        return _encode_k(x.astype(np.float32).reshape(-1, 8, 32))
    if kind == DType.Q4_1:
        return _encode_floors(x.astype(np.float32).reshape(-1, 32))
    return _encode_blocks(kind, x.astype(np.float32).reshape(-1, 32))


def _encode_blocks(kind: DType, blocks: NDArray[Any]) -> bytes:
    top = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(axis=1)]
    scale = (top / np.float32(-8) if kind == DType.Q4_0 else np.abs(top) / np.float32(127)).astype(np.float32)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale != 0, np.float32(1) / scale, np.float32(0)).astype(np.float32)
    scaled = blocks * inverse[:, None]
    halves = scale.astype("<f2").view(np.uint8).reshape(-1, 2)
    if kind == DType.Q8_0:
        q = (np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))).astype(np.int8).view(np.uint8)
    else:
        levels = np.minimum(15, (scaled + np.float32(8.5)).astype(np.int8)).astype(np.uint8)
        q = levels[:, :16] | levels[:, 16:] << 4
    return bytes(np.concatenate([halves, q], axis=1).tobytes())


def _levels(x: NDArray[Any], scale: NDArray[Any], floor: NDArray[Any]) -> NDArray[Any]:
    """The 4-bit levels nearest to x, for scales and floors that broadcast over it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.rint((x - floor) / scale)
    return np.asarray(np.clip(np.nan_to_num(levels), 0, 15), dtype=np.uint8)


def _encode_floors(blocks: NDArray[Any]) -> bytes:
    floor = blocks.min(axis=1, keepdims=True).astype("<f2")
    scale = ((blocks.max(axis=1, keepdims=True) - floor) / 15).astype("<f2")
    levels = _levels(blocks, scale.astype(np.float32), floor.astype(np.float32))
    halves = np.concatenate([scale, floor], axis=1).view(np.uint8)
    return bytes(np.concatenate([halves, levels[:, :16] | levels[:, 16:] << 4], axis=1).tobytes())


def k_blocks(d: NDArray[Any], dmin: NDArray[Any], steps: NDArray[Any], floors: NDArray[Any], q: NDArray[Any]) -> bytes:
    """Q4_K blocks out of d, dmin [n], 6-bit steps and floors [n][8] and levels [n][8][32]."""
    low = np.concatenate([steps[:, :4] | steps[:, 4:] >> 4 << 6, floors[:, :4] | floors[:, 4:] >> 4 << 6], axis=1)
    six = np.concatenate([low, steps[:, 4:] & 15 | (floors[:, 4:] & 15) << 4], axis=1).astype(np.uint8)
    halves = np.stack([d, dmin], axis=1).astype("<f2").view(np.uint8)
    nibbles = (q[:, 0::2] | q[:, 1::2] << 4).astype(np.uint8).reshape(len(q), 128)
    return bytes(np.concatenate([halves, six, nibbles], axis=1).tobytes())


def _encode_k(blocks: NDArray[Any]) -> bytes:
    """Not GGUF's search for the best scales, but valid blocks that are near."""
    floor = np.minimum(blocks.min(axis=2), 0)
    scale = (blocks.max(axis=2) - floor) / 15
    d, dmin = (np.maximum(v.max(axis=1), 1e-6).astype("<f2") / np.float32(63) for v in (scale, -floor))
    d, dmin = d.astype("<f2").astype(np.float32), dmin.astype("<f2").astype(np.float32)
    steps = np.clip(np.rint(scale / d[:, None]), 0, 63).astype(np.uint8)
    floors = np.clip(np.rint(-floor / dmin[:, None]), 0, 63).astype(np.uint8)
    levels = _levels(blocks, (d[:, None] * steps)[..., None], -(dmin[:, None] * floors)[..., None])
    return k_blocks(d, dmin, steps, floors, levels)


def _decode_k(raw: NDArray[Any]) -> NDArray[Any]:
    d, dmin = raw[:, :4].copy().view("<f2").astype(np.float32).T
    six = raw[:, 4:16]
    steps = np.concatenate([six[:, :4] & 63, six[:, 8:] & 15 | six[:, :4] >> 6 << 4], axis=1)
    floors = np.concatenate([six[:, 4:8] & 63, six[:, 8:] >> 4 | six[:, 4:8] >> 6 << 4], axis=1)
    pairs = raw[:, 16:].reshape(-1, 4, 1, 32)
    levels = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(-1, 8, 32).astype(np.float32)
    return np.asarray((d[:, None] * steps)[..., None] * levels - (dmin[:, None] * floors)[..., None])


def decode(kind: DType, data: bytes, rows: int, cols: int) -> NDArray[Any]:
    """The inverse of `encode`, to f32."""
    if kind == DType.F32:
        return np.frombuffer(data, "<f4").reshape(rows, cols)
    if kind == DType.F16:
        return np.frombuffer(data, "<f2").reshape(rows, cols).astype(np.float32)
    if kind == DType.BF16:
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(rows, cols)
    raw = np.frombuffer(data, np.uint8).reshape(-1, BLOCKS[kind].bytes)
    if kind == DType.Q4_K:
        return _decode_k(raw).reshape(rows, cols)
    scale = raw[:, :2].copy().view("<f2").astype(np.float32)
    if kind == DType.Q4_1:
        floor = raw[:, 2:4].copy().view("<f2").astype(np.float32)
        return (scale * np.concatenate([raw[:, 4:] & 15, raw[:, 4:] >> 4], axis=1) + floor).reshape(rows, cols)
    if kind == DType.Q8_0:
        q = raw[:, 2:].view(np.int8)
    else:
        q = np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], axis=1).astype(np.int8) - 8
    return (scale * q.astype(np.float32)).reshape(rows, cols)


@dataclass(frozen=True)
class Weights:
    """Tensors of a random model by (role, layer), as f32 after a round trip through their type."""

    shape: ModelShape
    tensors: dict[tuple[Role, int], tuple[DType, bytes, NDArray[Any]]] = field(default_factory=dict)

    def get(self, role: Role, layer: int = 0) -> NDArray[Any]:
        return self.tensors[role, layer][2].astype(np.float64)


def _sizes(shape: ModelShape, biases: bool) -> list[tuple[Role, int, int]]:
    d, q, kv, ff = shape.d_model, shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim, shape.d_ff
    sizes = [
        (Role.WQ, q, d),
        (Role.WK, kv, d),
        (Role.WV, kv, d),
        (Role.WO, d, q),
        (Role.W_GATE, ff, d),
        (Role.W_UP, ff, d),
        (Role.W_DOWN, d, ff),
        (Role.ATTN_NORM, 1, d),
        (Role.FFN_NORM, 1, d),
    ]
    return sizes + ([(Role.BQ, 1, q), (Role.BK, 1, kv), (Role.BV, 1, kv)] if biases else [])


def random_weights(shape: ModelShape, kind: DType, seed: int, biases: bool = True, tied: bool = True) -> Weights:
    """A model whose logits spread: weights of variance 1/cols, norms near 1."""
    rng = np.random.default_rng(seed)
    weights = Weights(shape)

    def put(role: Role, layer: int, rows: int, cols: int) -> None:
        x = rng.standard_normal((rows, cols)).astype(np.float32)
        vector = rows == 1
        x = x * np.float32(0.1) + np.float32("NORM" in role.name) if vector else x / np.float32(np.sqrt(cols))
        used = DType.F32 if vector else kind
        data = encode(used, x)
        weights.tensors[role, layer] = (used, data, decode(used, data, rows, cols))

    for layer in range(shape.n_layers):
        for role, rows, cols in _sizes(shape, biases):
            put(role, layer, rows, cols)
    put(Role.TOKEN_EMBD, 0, shape.vocab, shape.d_model)
    put(Role.OUT_NORM, 0, 1, shape.d_model)
    if not tied:
        put(Role.OUTPUT, 0, shape.vocab, shape.d_model)
    return weights


def build(context: Context, weights: Weights) -> Model:
    """The same model in the native core."""
    model = Model(context, weights.shape)
    for (role, layer), (kind, data, x) in weights.tensors.items():
        model.set_tensor(role, layer, kind, kind, x.shape[0], x.shape[1], data)
    model.finish()
    return model


def _norm(x: NDArray[Any], weight: NDArray[Any], eps: float) -> NDArray[Any]:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight[0]


def _rotate(x: NDArray[Any], shape: ModelShape) -> NDArray[Any]:
    """x [tokens, heads, head_dim], rotate-half over the first 2 * len(rope_freqs) dimensions."""
    half = len(shape.rope_freqs)
    angle = np.outer(np.arange(len(x)), np.array(shape.rope_freqs))[:, None, :]
    a, b = x[..., :half], x[..., half : 2 * half]
    turned = [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
    return np.concatenate(turned + [x[..., 2 * half :]], axis=-1)


def _attention(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], shape: ModelShape) -> NDArray[Any]:
    n, heads, dim = q.shape
    group = heads // shape.n_kv_heads
    behind = np.arange(n)[:, None] - np.arange(n)[None, :]
    out = np.empty_like(q)
    for h in range(heads):
        scores = q[:, h] @ k[:, h // group].T / np.sqrt(dim)
        if shape.alibi_slopes is not None:
            scores = scores - shape.alibi_slopes[h] * behind
        hidden = (behind < 0) | ((behind >= shape.sliding_window) if shape.sliding_window else False)
        scores = np.where(hidden, -np.inf, scores)
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, h] = p / p.sum(axis=1, keepdims=True) @ v[:, h // group]
    return out.reshape(n, -1)


def _layer(w: Weights, i: int, x: NDArray[Any]) -> NDArray[Any]:
    s = w.shape
    n = len(x)
    h = _norm(x, w.get(Role.ATTN_NORM, i), s.norm_eps)

    def project(role: Role, bias: Role, heads: int) -> NDArray[Any]:
        y = h @ w.get(role, i).T
        if (bias, i) in w.tensors:
            y = y + w.get(bias, i)[0]
        return y.reshape(n, heads, s.head_dim)

    q = project(Role.WQ, Role.BQ, s.n_heads)
    k = project(Role.WK, Role.BK, s.n_kv_heads)
    v = project(Role.WV, Role.BV, s.n_kv_heads)
    if s.alibi_slopes is None:
        q, k = _rotate(q, s), _rotate(k, s)
    x = x + _attention(q, k, v, s) @ w.get(Role.WO, i).T
    h = _norm(x, w.get(Role.FFN_NORM, i), s.norm_eps)
    gate, up = h @ w.get(Role.W_GATE, i).T, h @ w.get(Role.W_UP, i).T
    return x + (gate / (1 + np.exp(-gate)) * up) @ w.get(Role.W_DOWN, i).T


def logits(w: Weights, tokens: Sequence[int]) -> NDArray[Any]:
    """Logits [tokens, vocab] of a whole sequence in float64, nothing quantised but the weights."""
    x = w.get(Role.TOKEN_EMBD)[list(tokens)]
    for i in range(w.shape.n_layers):
        x = _layer(w, i, x)
    x = _norm(x, w.get(Role.OUT_NORM), w.shape.norm_eps)
    head = Role.OUTPUT if (Role.OUTPUT, 0) in w.tensors else Role.TOKEN_EMBD
    return x @ w.get(head).T
