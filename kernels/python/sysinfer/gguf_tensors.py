"""GGUF model files: the header as syshax_contract reads it, and tensor data as views into the mapped file."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from syshax_contract.gguf import TENSOR_TYPES, GgufError, TensorEntry, Value, failure, read_header
from sysinfer.engine_errors import ModelFileError


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: `shape` as a matrix is written (rows, cols), `data` its bytes [rows][bytes a row]."""

    name: str
    type: int
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    @property
    def type_name(self) -> str:
        return TENSOR_TYPES[self.type].name


class GgufFile:
    """An open GGUF file. `metadata`: key to value; `tensors`: name to Tensor, views into the mapping."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Maps and checks `path`; raises ModelFileError when it can't be read or is not a whole, sound GGUF file."""
        self.path = os.fspath(path)
        data = _map(self.path)
        try:
            self.header = read_header(data)
            self.metadata: dict[str, Value] = self.header.metadata
            self.tensors = {
                name: _tensor(data, entry, self.header.data_begin) for name, entry in self.header.tensors.items()
            }
        except GgufError as err:
            raise ModelFileError(f"{self.path}: {err}") from err


def _map(path: str) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelFileError(f"{path}: the file is empty, expected a GGUF model")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as err:
        raise ModelFileError(f"{path}: can't be read: {getattr(err, 'strerror', None) or err}") from err


def _tensor(data: mmap.mmap, entry: TensorEntry, base: int) -> Tensor:
    kind = TENSOR_TYPES[entry.type]
    row_bytes, rows = entry.dims[0] // kind.block * kind.size, prod(entry.dims[1:])
    begin, end = base + entry.offset, base + entry.offset + row_bytes * rows
    if end > len(data):
        raise failure(entry.at, f"tensor {entry.name} ends at byte {end}, the file at {len(data)}; is it cut off?")
    view = np.frombuffer(data, np.uint8, row_bytes * rows, begin).reshape(rows, row_bytes)
    return Tensor(entry.name, entry.type, tuple(reversed(entry.dims)), view)
