"""Reader of GGUF model files, versions 2 and 3, little-endian (format: ggml/docs/gguf.md of ggml-org).

The file is mapped, metadata is parsed at once, tensor data is handed out as views. Every length, count, type and
offset is checked against the file before it is used; what does not fit raises ModelFileError with the byte offset.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from math import prod
from typing import Dict, List, Mapping, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from sysinfer.errors import ModelFileError

Scalar = Union[int, float, bool, str]
Value = Union[Scalar, List[Scalar]]

MAX_DIMS = 4
MAX_ENTRIES = 1 << 20  # metadata keys or tensors; real files have hundreds

# ggml_type -> (name, elements a block, bytes a block)
TENSOR_TYPES: Mapping[int, Tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 30: ("BF16", 1, 2),
}  # fmt: skip

_SCALARS: Mapping[int, struct.Struct] = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<B"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
_NUMPY = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_U64 = _SCALARS[10]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: `shape` as a matrix is written (rows, cols), `data` its bytes [rows][bytes a row]."""

    name: str
    type: int
    shape: Tuple[int, ...]
    data: NDArray[np.uint8]

    @property
    def type_name(self) -> str:
        return TENSOR_TYPES[self.type][0]


class _Cursor:
    """A position in the mapped file; every read is checked against its end."""

    def __init__(self, data: mmap.mmap, path: str) -> None:
        self.data, self.path, self.at, self.end = data, path, 0, len(data)

    def fail(self, text: str, at: int = -1) -> ModelFileError:
        return ModelFileError(f"{self.path}: byte {self.at if at < 0 else at}: {text}")

    def need(self, count: int, what: str) -> int:
        """Moves over `count` bytes; returns where they begin."""
        at = self.at
        if count > self.end - at:
            raise self.fail(f"expected {what} of {count} bytes, the file ends {self.end - at} bytes further on")
        self.at = at + count
        return at

    def number(self, kind: struct.Struct, what: str) -> Union[int, float]:
        value: Union[int, float] = kind.unpack_from(self.data, self.need(kind.size, what))[0]
        return value

    def count(self, what: str, limit: int) -> int:
        at = self.at
        value = int(self.number(_U64, what))
        if value > limit:
            raise self.fail(f"{what} is {value}, at most {limit} can be", at)
        return value

    def string(self, what: str) -> str:
        length = int(self.number(_U64, f"the length of {what}"))
        at = self.need(length, what)
        try:
            return str(self.data[at : at + length], "utf-8")
        except UnicodeDecodeError as err:
            raise self.fail(f"{what} is not UTF-8 ({err.reason})", at) from err


def _strings(cursor: _Cursor, count: int, what: str) -> List[Scalar]:
    return [cursor.string(what) for _ in range(count)]


def _array(cursor: _Cursor, key: str) -> List[Scalar]:
    at = cursor.at
    kind = int(cursor.number(_SCALARS[4], f"the element type of {key}"))
    if kind == _STRING:
        return _strings(cursor, cursor.count(f"the length of {key}", (cursor.end - cursor.at) // 8), key)
    if kind not in _NUMPY:
        raise cursor.fail(
            f"{key} is an array of type {kind}, expected a number, boolean or string type (0-8, 10-12)", at
        )
    dtype = np.dtype(_NUMPY[kind])
    count = cursor.count(f"the length of {key}", cursor.end // dtype.itemsize)
    start = cursor.need(count * dtype.itemsize, key)
    values: List[Scalar] = np.frombuffer(cursor.data, dtype, count, start).tolist()
    return [bool(v) for v in values] if kind == _BOOL else values


def _value(cursor: _Cursor, key: str) -> Value:
    at = cursor.at
    kind = int(cursor.number(_SCALARS[4], f"the type of {key}"))
    if kind == _STRING:
        return cursor.string(key)
    if kind == _ARRAY:
        return _array(cursor, key)
    if kind not in _SCALARS:
        raise cursor.fail(f"{key} has value type {kind}, expected 0 to 12", at)
    value = cursor.number(_SCALARS[kind], key)
    return bool(value) if kind == _BOOL else value


@dataclass(frozen=True)
class _Entry:
    """A tensor as the table of contents states it; `dims` fastest first, `offset` from the data section."""

    name: str
    dims: Tuple[int, ...]
    type: int
    offset: int
    at: int


def _entry(cursor: _Cursor) -> _Entry:
    at = cursor.at
    name = cursor.string("a tensor name")
    n_dims = int(cursor.number(_SCALARS[4], f"the dimension count of {name}"))
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.fail(f"tensor {name} has {n_dims} dimensions, expected 1 to {MAX_DIMS}", at)
    dims = tuple(int(cursor.number(_U64, f"a dimension of {name}")) for _ in range(n_dims))
    kind = int(cursor.number(_SCALARS[4], f"the type of {name}"))
    return _Entry(name, dims, kind, int(cursor.number(_U64, f"the offset of {name}")), at)


class GgufFile:
    """An open GGUF file. `metadata`: key to value; `tensors`: name to Tensor, views into the mapping."""

    def __init__(self, path: Union[str, os.PathLike[str]]) -> None:
        """Maps and checks `path`; raises ModelFileError when it can't be read or is not a whole, sound GGUF file."""
        self.path = os.fspath(path)
        cursor = _Cursor(_map(self.path), self.path)
        n_tensors, n_keys = _header(cursor)
        self.metadata: Dict[str, Value] = _metadata(cursor, n_keys)
        entries = [_entry(cursor) for _ in range(n_tensors)]
        alignment = _alignment(cursor, self.metadata)
        base = -(-cursor.at // alignment) * alignment
        self.tensors: Dict[str, Tensor] = {}
        for entry in entries:
            if entry.name in self.tensors:
                raise cursor.fail(f"tensor {entry.name} is there twice", entry.at)
            self.tensors[entry.name] = _tensor(cursor, entry, base, alignment)


def _map(path: str) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelFileError(f"{path}: the file is empty, expected a GGUF model")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as err:
        raise ModelFileError(f"{path}: can't be read: {getattr(err, 'strerror', None) or err}") from err


def _header(cursor: _Cursor) -> Tuple[int, int]:
    magic = cursor.data[:4]
    if magic != b"GGUF":
        raise cursor.fail(f"expected the magic bytes 'GGUF', found {magic!r}; is it a GGUF model?")
    cursor.at = 4
    version = int(cursor.number(_SCALARS[4], "the version"))
    if version in (0x02000000, 0x03000000):
        raise cursor.fail("the file is big-endian, expected little-endian", 4)
    if version not in (2, 3):
        raise cursor.fail(f"GGUF version {version}, expected 2 or 3", 4)
    return cursor.count("the number of tensors", MAX_ENTRIES), cursor.count("the number of keys", MAX_ENTRIES)


def _metadata(cursor: _Cursor, count: int) -> Dict[str, Value]:
    found: Dict[str, Value] = {}
    for _ in range(count):
        at = cursor.at
        key = cursor.string("a metadata key")
        if key in found:
            raise cursor.fail(f"metadata key {key} is there twice", at)
        found[key] = _value(cursor, key)
    return found


def _alignment(cursor: _Cursor, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", 32)
    if isinstance(value, bool) or not isinstance(value, int) or not 8 <= value <= 1 << 16 or value & (value - 1):
        raise cursor.fail(f"general.alignment is {value!r}, expected a power of two from 8 to 65536")
    return value


def _tensor(cursor: _Cursor, entry: _Entry, base: int, alignment: int) -> Tensor:
    if entry.type not in TENSOR_TYPES:
        known = ", ".join(name for name, _, _ in TENSOR_TYPES.values())
        raise cursor.fail(f"tensor {entry.name} has type {entry.type}, expected one of {known}", entry.at)
    name, block, size = TENSOR_TYPES[entry.type]
    if 0 in entry.dims or entry.dims[0] % block:
        raise cursor.fail(
            f"tensor {entry.name} is {entry.dims} of {name}, expected rows of a multiple of {block}", entry.at
        )
    if entry.offset % alignment:
        raise cursor.fail(f"tensor {entry.name} begins at {entry.offset}, expected a multiple of {alignment}", entry.at)
    row_bytes, rows = entry.dims[0] // block * size, prod(entry.dims[1:])
    begin, end = base + entry.offset, base + entry.offset + row_bytes * rows
    if end > cursor.end:
        raise cursor.fail(f"tensor {entry.name} ends at byte {end}, the file at {cursor.end}; is it cut off?", entry.at)
    data = np.frombuffer(cursor.data, np.uint8, row_bytes * rows, begin).reshape(rows, row_bytes)
    return Tensor(entry.name, entry.type, tuple(reversed(entry.dims)), data)
