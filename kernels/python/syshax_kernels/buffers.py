"""Addresses of bytes that Python objects own."""

from __future__ import annotations

from typing import Union

import numpy
from numpy.typing import NDArray

Buffer = Union[bytes, bytearray, memoryview, "NDArray[numpy.generic]"]


def as_bytes(data: Buffer) -> NDArray[numpy.uint8]:
    """A flat view of the bytes of `data`, which must be contiguous. It keeps `data` alive."""
    if isinstance(data, numpy.ndarray):
        if not data.flags.c_contiguous:
            raise ValueError("expected a C-contiguous array")
        return data.reshape(-1).view(numpy.uint8)
    return numpy.frombuffer(data, dtype=numpy.uint8)


def expect_bytes(data: NDArray[numpy.uint8], expected: int, what: str) -> None:
    """Raises ValueError when `data` holds fewer bytes than the native core is going to read."""
    if data.nbytes < expected:
        raise ValueError(f"{what}: expected {expected} bytes, got {data.nbytes}")
