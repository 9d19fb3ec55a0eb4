"""One packed weight matrix and its product with activations."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy
from numpy.typing import NDArray

from syshax_kernels.buffers import Buffer, as_bytes, expect_bytes
from syshax_kernels.context import Context
from syshax_kernels.library import Library, Prototypes
from syshax_kernels.types import BLOCKS, DType

_u32 = ctypes.c_uint32


class _PackArgs(ctypes.Structure):
    _fields_ = [
        ("size", _u32),
        ("src_type", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("rows", _u32),
        ("cols", _u32),
        ("data", ctypes.c_void_p),
    ]


_PROTOTYPES: Prototypes = {
    "sx_decode": [ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p],
    "sx_matrix_pack": [ctypes.c_void_p, ctypes.POINTER(_PackArgs), ctypes.POINTER(ctypes.c_void_p)],
    "sx_linear": [ctypes.c_void_p] * 3 + [_u32, ctypes.c_void_p, ctypes.c_void_p],
}


def row_bytes(kind: DType, cols: int) -> int:
    """Bytes of one row of `cols` values as GGUF stores it."""
    return cols // BLOCKS[kind].weights * BLOCKS[kind].bytes


def decode(data: Buffer, kind: DType) -> NDArray[numpy.float32]:
    """Whole blocks of `kind`, one after the other, as floats [weights]. ValueError for part of a block."""
    source, blocks = as_bytes(data), BLOCKS[kind]
    if source.nbytes % blocks.bytes:
        raise ValueError(f"expected blocks of {blocks.bytes} bytes, got {source.nbytes} bytes")
    out = numpy.empty(source.nbytes // blocks.bytes * blocks.weights, numpy.float32)
    library = Library()
    library.declare(_PROTOTYPES)
    library.check(library.calls.sx_decode(kind, source.ctypes.data, out.size, out.ctypes.data))
    return out


class Matrix:
    """`rows` outputs times `cols` inputs, packed as `kind`."""

    def __init__(self, context: Context, data: Buffer, src_type: DType, kind: DType, rows: int, cols: int) -> None:
        """Packs row-major `data` of type `src_type` (GGUF block order); it is read during the call only.

        Raises KernelError for shapes or types the core doesn't take, ValueError when `data` is too short.
        """
        source = as_bytes(data)
        expect_bytes(source, rows * row_bytes(src_type, cols), "data")
        self.rows, self.cols = rows, cols
        self._context = context
        lib = context.library
        lib.declare(_PROTOTYPES)
        lib.calls.sx_matrix_free.argtypes = [ctypes.c_void_p]
        lib.calls.sx_matrix_free.restype = None
        args = _PackArgs(ctypes.sizeof(_PackArgs), src_type, kind, rows, cols, source.ctypes.data)
        self._handle = ctypes.c_void_p()
        lib.check(lib.calls.sx_matrix_pack(context.handle, ctypes.byref(args), ctypes.byref(self._handle)))

    def linear(
        self,
        x: NDArray[numpy.float32],
        bias: NDArray[numpy.float32] | None = None,
        out: NDArray[numpy.float32] | None = None,
    ) -> NDArray[numpy.float32]:
        """x [m, cols] times the transposed matrix (+ bias [rows]): [m, rows], in f32.

        Quantised weights: x is quantised to 8 bits in groups of 32. A row of the result is bitwise the same for
        every m and thread count.
        """
        rows = numpy.ascontiguousarray(x, dtype=numpy.float32)
        if rows.ndim != 2 or rows.shape[1] != self.cols:
            raise ValueError(f"x: expected [m, {self.cols}], got {list(rows.shape)}")
        result = numpy.empty((rows.shape[0], self.rows), dtype=numpy.float32) if out is None else out
        if result.shape != (rows.shape[0], self.rows) or result.dtype != numpy.float32 or not result.flags.c_contiguous:
            raise ValueError(f"out: expected contiguous f32 [{rows.shape[0]}, {self.rows}]")
        add = None if bias is None else numpy.ascontiguousarray(bias, dtype=numpy.float32)
        if add is not None and add.shape != (self.rows,):
            raise ValueError(f"bias: expected [{self.rows}], got {list(add.shape)}")
        status = self._context.library.calls.sx_linear(
            self._context.handle,
            self._handle,
            rows.ctypes.data,
            rows.shape[0],
            None if add is None else add.ctypes.data,
            result.ctypes.data,
        )
        self._context.library.check(status)
        return result

    def close(self) -> None:
        """Frees the packed weights. May be called twice."""
        if self._handle:
            self._context.library.calls.sx_matrix_free(self._handle)
            self._handle = ctypes.c_void_p()

    def __enter__(self) -> Matrix:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
