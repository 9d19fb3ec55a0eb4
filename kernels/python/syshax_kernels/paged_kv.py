"""KV between another engine's paged cache in this process and handoff chunks, by the native core (sx_pages_*)."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from syshax_kernels.library import Library, Prototypes

_u32, _i64, _i32s = ctypes.c_uint32, ctypes.c_int64, ctypes.POINTER(ctypes.c_int32)


class _Side(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("block", _i64),
        ("token", _i64),
        ("head", _i64),
        ("dim", _i64),
        ("places", _i32s),
    ]


class _Args(ctypes.Structure):
    _fields_ = [
        ("size", _u32),
        ("n_sides", _u32),
        ("sides", ctypes.POINTER(_Side)),
        ("block_table", ctypes.c_void_p),
        ("n_blocks", _u32),
        ("cache_blocks", _u32),
        ("type", ctypes.c_int32),
        ("wire_type", ctypes.c_int32),
        ("block_size", _u32),
        ("heads", _u32),
        ("head_size", _u32),
        ("first_token", _u32),
        ("n_tokens", _u32),
        ("chunk_tokens", _u32),
        ("chunk_first", _u32),
        ("chunk_heads", _u32),
        ("chunk_head_first", _u32),
        ("chunk", ctypes.c_void_p),
        ("crc", ctypes.POINTER(_u32)),
    ]


_PROTOTYPES: Prototypes = {
    "sx_pages_export": [ctypes.POINTER(_Args)],
    "sx_pages_import": [ctypes.POINTER(_Args)],
}


@dataclass(frozen=True)
class Side:
    """K or V of one layer: strides in elements."""

    address: int
    block: int
    token: int
    head: int
    dim: int
    places: Sequence[int] | None = None
    """In place of token and dim: [block_size][head_size], the offset of an element within its block and head."""


@dataclass(frozen=True)
class Shape:
    """What all sides have in common. `kind`: F32, F16 or BF16 of pool_types."""

    kind: int
    cache_blocks: int
    block_size: int
    heads: int
    head_size: int


@dataclass(frozen=True)
class PagesPart:
    """Tokens first .. first + count of the sequence with these blocks, from token `at` of a chunk on."""

    blocks: Sequence[int]
    first: int
    count: int
    at: int


@dataclass(frozen=True)
class Chunk:
    """Memory of a chunk [layer][K,V][tokens][heads][head size]; the cache's heads are those from `head_first` on."""

    address: int
    kind: int
    tokens: int
    heads: int
    head_first: int = 0


class Pages:
    """A cache. Copies may run in several threads at once; the interpreter lock is released meanwhile."""

    def __init__(self, sides: Sequence[Side], shape: Shape, library: Library | None = None) -> None:
        """`sides`: K and V of each layer in turn. Their memory must outlive this."""
        self._library = library or Library()
        self._library.declare(_PROTOTYPES)
        self._shape = shape
        self._tables: dict[int, Any] = {}  # shared by layers
        self._sides = (_Side * len(sides))(*(self._side(side) for side in sides))

    def _side(self, side: Side) -> _Side:
        places = None
        if side.places is not None:
            key = id(side.places)
            self._tables.setdefault(key, (ctypes.c_int32 * len(side.places))(*side.places))
            places = ctypes.cast(self._tables[key], _i32s)
        return _Side(side.address, side.block, side.token, side.head, side.dim, places)

    def copy_out(self, part: PagesPart, chunk: Chunk) -> int:
        """Cache to chunk, converting. Raises KernelError for blocks or tokens that are not there.

        Returns crc32c over these tokens and heads in the chunk, in its order: what a seal holds.
        """
        return self._copy("sx_pages_export", part, chunk)

    def copy_in(self, part: PagesPart, chunk: Chunk) -> int:
        """Chunk to cache, converting. Returns the same of what it has read."""
        return self._copy("sx_pages_import", part, chunk)

    def _copy(self, call: str, part: PagesPart, chunk: Chunk) -> int:
        table, shape, crc = array("i", part.blocks), self._shape, _u32()
        args = _Args(
            ctypes.sizeof(_Args), len(self._sides), self._sides, table.buffer_info()[0], len(table), shape.cache_blocks,
            shape.kind, chunk.kind, shape.block_size, shape.heads, shape.head_size, part.first, part.count,
            chunk.tokens, part.at, chunk.heads, chunk.head_first, chunk.address, ctypes.pointer(crc),
        )  # fmt: skip
        self._library.check(getattr(self._library.calls, call)(ctypes.byref(args)))
        return crc.value
