"""Tensors of a GGUF file turned into float32, by the native core's own readers of each format."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from syshax_kernels.matrix import decode
from syshax_kernels.types import BLOCKS, DType

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def can_dequantise(kind: int) -> bool:
    """Whether `dequantise` knows GGUF tensor type `kind`."""
    return kind in list(BLOCKS)


def dequantise(data: Bytes, kind: int) -> Floats:
    """Rows of bytes [rows][bytes a row] of GGUF type `kind` as float32 [rows][cols]; ValueError for other types."""
    return decode(np.ascontiguousarray(data), DType(kind)).reshape(len(data), -1)


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
