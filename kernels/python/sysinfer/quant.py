"""Block formats of GGUF turned into float32 (layouts: ggml-common.h of ggml-org), for types the core doesn't take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable

import numpy as np
from numpy.typing import NDArray

from syshax_kernels.types import DType

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def _half(blocks: Bytes, at: int) -> Floats:
    """The f16 at byte `at` of each block, shape (blocks, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """Low halves of all bytes, then high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:18]).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:20]) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:34]).view(np.int8)


def _q6_k(blocks: Bytes) -> Floats:
    """256 weights: 4 low bits, 2 high bits, a signed 8-bit scale per 16, one f16."""
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3
    weights = (low | high << 4).reshape(-1, 16, 16).astype(np.float32) - 32
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).reshape(-1, 16, 1)
    return (_half(blocks, 208).reshape(-1, 1, 1) * scales * weights).reshape(-1, 256)


_BLOCKS: Mapping[int, "tuple[int, Callable[[Bytes], Floats]]"] = {
    2: (18, _q4_0), 3: (20, _q4_1), 8: (34, _q8_0), 14: (210, _q6_k),
}  # fmt: skip


def can_dequantise(kind: int) -> bool:
    """Whether `dequantise` knows GGUF tensor type `kind`."""
    return kind in _BLOCKS or kind in (0, 1, 30)


def dequantise(data: Bytes, kind: int) -> Floats:
    """Rows of bytes [rows][bytes a row] of GGUF type `kind` as float32 [rows][cols]; KeyError for other types."""
    data = np.ascontiguousarray(data)
    if kind == 0:
        return data.view(np.float32)
    if kind == 1:
        return data.view(np.float16).astype(np.float32)
    if kind == 30:
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    size, decode = _BLOCKS[kind]
    floats = decode(data.reshape(-1, size)).astype(np.float32, copy=False)
    return floats.reshape(len(data), -1)


def rounded(weights: Floats, kind: DType) -> Floats:
    """`weights` [rows][cols] after being held as `kind`."""
    if kind is DType.F16:
        return weights.astype(np.float16).astype(np.float32)
    if kind is DType.BF16:
        bits = weights.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    if kind not in (DType.Q8_0, DType.Q4_0):
        return weights
    blocks = weights.reshape(-1, 32)
    if kind is DType.Q8_0:
        scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
        low, high = -127, 127
    else:
        peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
        scale, low, high = peak / -8, -8, 7
    steps = np.clip(np.round(blocks / np.where(scale == 0, 1, scale)), low, high)
    made: Floats = (steps * scale.astype(np.float16).astype(np.float32)).reshape(weights.shape)
    return made
