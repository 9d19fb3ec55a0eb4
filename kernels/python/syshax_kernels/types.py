"""Element and block types of kernels/include/syshax/kernels.h, by GGUF's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple


class DType(IntEnum):
    """Type of the elements or blocks of a tensor or of the KV cache."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_NL = 20
    IQ4_XS = 23
    BF16 = 30
    MXFP4 = 39


class Blocks(NamedTuple):
    """How a type lies in a file and in a tile of 16 packed rows (sx_format_describe)."""

    weights: int
    """Of a block in a file."""
    bytes: int
    """Of that block."""
    step: int = 0
    """Columns of a superblock of a tile; 0: the type is only read, and held in another."""
    step_bytes: int = 0
    """Of that superblock."""
    quantised: bool = True
    """Whether its products read activations of 8 bits."""
    from_floats: bool = False
    """Whether weights of other types can be held in it; otherwise only blocks of its own."""


BLOCKS: Mapping[DType, Blocks] = {
    DType.F32: Blocks(1, 4, 1, 64, quantised=False, from_floats=True),
    DType.F16: Blocks(1, 2, 1, 32, quantised=False, from_floats=True),
    DType.BF16: Blocks(1, 2, 1, 32, quantised=False, from_floats=True),
    DType.Q4_0: Blocks(32, 18, 64, 576, from_floats=True),
    DType.Q4_1: Blocks(32, 20, 64, 640),
    DType.Q8_0: Blocks(32, 34, 64, 1088, from_floats=True),
    DType.Q4_K: Blocks(256, 144, 256, 2368),
    DType.Q5_0: Blocks(32, 22),
    DType.Q5_1: Blocks(32, 24),
    DType.Q2_K: Blocks(256, 84),
    DType.Q3_K: Blocks(256, 110),
    DType.Q5_K: Blocks(256, 176),
    DType.Q6_K: Blocks(256, 210),
    DType.IQ4_NL: Blocks(32, 18),
    DType.IQ4_XS: Blocks(256, 136),
    DType.MXFP4: Blocks(32, 17),
}

HELD = tuple(kind for kind, blocks in BLOCKS.items() if blocks.step)
"""The types that weights are held in."""


class Role(IntEnum):
    """What a tensor of a model is (SX_T_* in kernels.h)."""

    TOKEN_EMBD = 0
    ATTN_NORM = 1
    WQ = 2
    WK = 3
    WV = 4
    BQ = 5
    BK = 6
    BV = 7
    WO = 8
    FFN_NORM = 9
    W_GATE = 10
    W_UP = 11
    W_DOWN = 12
    OUT_NORM = 13
    OUTPUT = 14
    BO = 15
    B_GATE = 16
    B_UP = 17
    B_DOWN = 18
    Q_NORM = 19
    K_NORM = 20
    ATTN_POST_NORM = 21
    FFN_POST_NORM = 22


class Activation(IntEnum):
    """Of the feed-forward part (SX_SILU, SX_GELU_TANH)."""

    SILU = 0
    GELU_TANH = 1


class LayerRope(IntEnum):
    """How a layer's heads are turned (layer_ropes of sx_model_args)."""

    MAIN = 0
    LOCAL = 1
    NONE = 2
