"""Element and block types of kernels/include/syshax/kernels.h; the values of the first five are GGUF's."""

from __future__ import annotations

from enum import IntEnum


class DType(IntEnum):
    """Type of the elements or blocks of a tensor or of the KV cache."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q8_0 = 8
    BF16 = 30


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
