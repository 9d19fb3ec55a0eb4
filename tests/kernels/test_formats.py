"""What Python knows of each weight format is what the native core says of it."""

from __future__ import annotations

import ctypes

from syshax_kernels.library import Library
from syshax_kernels.types import BLOCKS, Blocks, DType


class _Info(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("size", "block", "block_bytes", "step", "step_bytes")),
        *((name, ctypes.c_uint32) for name in ("quantised", "from_floats")),
        ("name", ctypes.c_char * 16),
    ]


def described(library: Library, kind: int) -> _Info:
    info = _Info(ctypes.sizeof(_Info))
    library.check(library.calls.sx_format_describe(kind, ctypes.byref(info)))
    return info


def test_sizes_and_names_are_the_core_s() -> None:
    library = Library()
    library.declare({"sx_format_describe": [ctypes.c_int32, ctypes.c_void_p]})
    for kind in range(-1, 80):
        if kind not in list(DType):
            assert library.calls.sx_format_describe(kind, ctypes.byref(_Info(ctypes.sizeof(_Info)))) == -7
            continue
        info = described(library, kind)
        assert info.name.decode() == DType(kind).name
        sizes = (info.block, info.block_bytes, info.step, info.step_bytes)
        assert Blocks(*sizes, bool(info.quantised), bool(info.from_floats)) == BLOCKS[DType(kind)]
