"""The header of GGUF model files, versions 2 and 3, little-endian (format: ggml/docs/gguf.md of ggml-org).

Every length, count, type and offset is checked against the file before it is used; what does not fit raises GgufError
with the byte offset. Tensor data is not touched.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Union

Scalar = Union[int, float, bool, str]
Value = Union[Scalar, list[Scalar]]

MAX_DIMS = 4
MAX_ENTRIES = 1 << 20  # metadata keys or tensors; real files have hundreds
_WINDOW = 1 << 20


class TensorType(NamedTuple):
    """How a tensor's elements are stored: in blocks of so many elements and bytes."""

    name: str
    block: int
    size: int


# by ggml_type
TENSOR_TYPES: Mapping[int, TensorType] = {
    number: TensorType(*entry)
    for number, entry in {
        0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
        7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
        12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 20: ("IQ4_NL", 32, 18),
        23: ("IQ4_XS", 256, 136), 30: ("BF16", 1, 2), 39: ("MXFP4", 32, 17),
    }.items()
}  # fmt: skip
F32, F16, Q4_0, Q4_1, Q8_0, Q4_K, BF16 = 0, 1, 2, 3, 8, 12, 30

# GGUF's value types: numbers by their struct code
_CODES: Mapping[int, str] = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_SCALARS: Mapping[int, struct.Struct] = {kind: struct.Struct("<" + code) for kind, code in _CODES.items()}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]


class GgufError(ValueError):
    """The bytes are no sound GGUF header; the text begins with where."""


class Bytes(Protocol):
    """A file's bytes: a mapping, or FileBytes."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: slice) -> bytes: ...


class FileBytes:
    """An open file by slices, read and never mapped: one that gets shorter meanwhile is a short slice, no signal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._size = descriptor, os.fstat(descriptor).st_size
        self._begin, self._window = 0, b""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: slice) -> bytes:
        first, last = place.start or 0, min(self._size if place.stop is None else place.stop, self._size)
        if first < self._begin or last > self._begin + len(self._window):
            self._begin, self._window = first, os.pread(self._descriptor, max(_WINDOW, last - first), first)
        return self._window[first - self._begin : last - self._begin]


class TensorEntry(NamedTuple):
    """A tensor as the table of contents states it; `dims` fastest first, `offset` from the data section."""

    name: str
    dims: tuple[int, ...]
    type: int
    offset: int
    at: int  # byte of the entry


@dataclass(frozen=True)
class GgufHeader:
    """Everything before the data section, which begins at byte `data_begin`."""

    metadata: dict[str, Value]
    tensors: dict[str, TensorEntry]
    alignment: int
    data_begin: int


def read_header(data: Bytes, arrays: bool = True) -> GgufHeader:
    """Parses and checks a header. Without `arrays` they (vocabularies) are stepped over and stay out of `metadata`.

    Raises GgufError.
    """
    cursor = _Cursor(data)
    n_tensors, n_keys = _counts(cursor)
    metadata = _metadata(cursor, n_keys, arrays)
    tensors: dict[str, TensorEntry] = {}
    for _ in range(n_tensors):
        entry = _entry(cursor)
        if entry.name in tensors:
            raise failure(entry.at, f"tensor {entry.name} is there twice")
        tensors[entry.name] = entry
    alignment = _alignment(cursor, metadata)
    for entry in tensors.values():
        _check_entry(entry, alignment)
    return GgufHeader(metadata, tensors, alignment, -(-cursor.at // alignment) * alignment)


def failure(at: int, text: str) -> GgufError:
    """The error of something at byte `at`."""
    return GgufError(f"byte {at}: {text}")


class _Cursor:
    """A position in the file; every read is checked against its end."""

    def __init__(self, data: Bytes) -> None:
        self.data, self.at, self.end = data, 0, len(data)

    def take(self, count: int, what: str) -> bytes:
        at = self.skip(count, what)
        piece = self.data[at : at + count]
        if len(piece) < count:
            raise failure(at, f"expected {what} of {count} bytes, the file got shorter")
        return piece

    def skip(self, count: int, what: str) -> int:
        """Moves over `count` bytes; returns where they begin."""
        at = self.at
        if count > self.end - at:
            raise failure(at, f"expected {what} of {count} bytes, the file ends {self.end - at} bytes further on")
        self.at = at + count
        return at

    def number(self, kind: struct.Struct, what: str) -> int | float:
        value: int | float = kind.unpack(self.take(kind.size, what))[0]
        return value

    def count(self, what: str, limit: int) -> int:
        at = self.at
        value = int(self.number(_U64, what))
        if value > limit:
            raise failure(at, f"{what} is {value}, at most {limit} can be")
        return value

    def string(self, what: str) -> str:
        length, at = int(self.number(_U64, f"the length of {what}")), self.at
        try:
            return str(self.take(length, what), "utf-8")
        except UnicodeDecodeError as err:
            raise failure(at, f"{what} is not UTF-8 ({err.reason})") from err


def _counts(cursor: _Cursor) -> tuple[int, int]:
    magic = cursor.data[:4]
    if magic != b"GGUF":
        raise failure(0, f"expected the magic bytes 'GGUF', found {magic!r}; is it a GGUF model?")
    cursor.at = 4
    version = int(cursor.number(_U32, "the version"))
    if version in (0x02000000, 0x03000000):
        raise failure(4, "the file is big-endian, expected little-endian")
    if version not in (2, 3):
        raise failure(4, f"GGUF version {version}, expected 2 or 3")
    return cursor.count("the number of tensors", MAX_ENTRIES), cursor.count("the number of keys", MAX_ENTRIES)


def _metadata(cursor: _Cursor, count: int, arrays: bool) -> dict[str, Value]:
    found: dict[str, Value] = {}
    seen = set()
    for _ in range(count):
        at = cursor.at
        key = cursor.string("a metadata key")
        if key in seen:
            raise failure(at, f"metadata key {key} is there twice")
        seen.add(key)
        kind, value_at = int(cursor.number(_U32, f"the type of {key}")), cursor.at - 4
        if kind == _ARRAY and not arrays:
            _skip_array(cursor, key)
        else:
            found[key] = _array(cursor, key) if kind == _ARRAY else _scalar(cursor, kind, key, value_at)
    return found


def _scalar(cursor: _Cursor, kind: int, key: str, at: int) -> Scalar:
    if kind == _STRING:
        return cursor.string(key)
    if kind not in _SCALARS:
        raise failure(at, f"{key} has value type {kind}, expected 0 to 12")
    value = cursor.number(_SCALARS[kind], key)
    return bool(value) if kind == _BOOL else value


def _array_head(cursor: _Cursor, key: str) -> tuple[int, int]:
    """Element type and count."""
    at = cursor.at
    kind = int(cursor.number(_U32, f"the element type of {key}"))
    if kind != _STRING and kind not in _CODES:
        raise failure(at, f"{key} is an array of type {kind}, expected a number, boolean or string type (0-8, 10-12)")
    size = 8 if kind == _STRING else _SCALARS[kind].size
    return kind, cursor.count(f"the length of {key}", (cursor.end - cursor.at) // size)


def _array(cursor: _Cursor, key: str) -> list[Scalar]:
    kind, count = _array_head(cursor, key)
    if kind == _STRING:
        return [cursor.string(key) for _ in range(count)]
    values = struct.unpack(f"<{count}{_CODES[kind]}", cursor.take(count * _SCALARS[kind].size, key))
    return [bool(value) for value in values] if kind == _BOOL else list(values)


def _skip_array(cursor: _Cursor, key: str) -> None:
    kind, count = _array_head(cursor, key)
    if kind != _STRING:
        cursor.skip(count * _SCALARS[kind].size, key)
        return
    for _ in range(count):
        cursor.skip(int(cursor.number(_U64, key)), key)


def _entry(cursor: _Cursor) -> TensorEntry:
    at = cursor.at
    name = cursor.string("a tensor name")
    n_dims = int(cursor.number(_U32, f"the dimension count of {name}"))
    if not 1 <= n_dims <= MAX_DIMS:
        raise failure(at, f"tensor {name} has {n_dims} dimensions, expected 1 to {MAX_DIMS}")
    dims = tuple(int(cursor.number(_U64, f"a dimension of {name}")) for _ in range(n_dims))
    kind = int(cursor.number(_U32, f"the type of {name}"))
    return TensorEntry(name, dims, kind, int(cursor.number(_U64, f"the offset of {name}")), at)


def _alignment(cursor: _Cursor, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", 32)
    if isinstance(value, bool) or not isinstance(value, int) or not 8 <= value <= 1 << 16 or value & (value - 1):
        raise failure(cursor.at, f"general.alignment is {value!r}, expected a power of two from 8 to 65536")
    return value


def _check_entry(entry: TensorEntry, alignment: int) -> None:
    if entry.type not in TENSOR_TYPES:
        known = ", ".join(kind.name for kind in TENSOR_TYPES.values())
        raise failure(entry.at, f"tensor {entry.name} has type {entry.type}, expected one of {known}")
    kind = TENSOR_TYPES[entry.type]
    if 0 in entry.dims or entry.dims[0] % kind.block:
        text = f"tensor {entry.name} is {entry.dims} of {kind.name}, expected rows of a multiple of {kind.block}"
        raise failure(entry.at, text)
    if entry.offset % alignment:
        text = f"tensor {entry.name} begins at {entry.offset}, expected a multiple of {alignment}"
        raise failure(entry.at, text)
