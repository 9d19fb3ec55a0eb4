"""The packed-file cache: a model's weights as the native core holds them, so that the next start need not pack again.

A file is `SXPACKED`, the length of its header and the header's CRC-32 (both u32), the header in JSON, and the tensors,
each at a multiple of 4096 bytes with a CRC-32C of its own. The header names what the file was made from. A file is
written aside and renamed: readers see a whole one or none, and of two that write at a time the later one stays.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from syshax_kernels.model import Model, Packed, packed_bytes
from syshax_kernels.types import DType, Role
from sysinfer.gguf_tensors import GgufFile

MAGIC = b"SXPACKED"
VERSION = 2  # of this file, and of the tiles: SX_PACK_VERSION in kernels.h
_START = struct.Struct("<8sII")
_PAGE = 4096
_MAX_HEADER = 64 << 20
_SAMPLES, _SAMPLE_BYTES = 256, 16384
_LEFT_OVER_S = 3600.0  # a file written aside that is older belongs to a start that died


class PackedFileError(Exception):
    """The file is not what it should be; the text says how. Packing again makes a new one."""


def source_key(file: GgufFile, weights: str) -> str:
    """What a packed file was made from: version, mode, and the model file's size, time and a sample of its bytes."""
    digest = hashlib.sha256(f"{VERSION} {weights} ".encode())
    with open(file.path, "rb") as source:
        status = os.fstat(source.fileno())
        digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
        for i in range(_SAMPLES):
            source.seek(status.st_size * i // _SAMPLES)
            digest.update(source.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def path_for(folder: Path, file: GgufFile, weights: str) -> Path:
    """One file for each model file and mode."""
    place = hashlib.sha256(os.path.abspath(file.path).encode()).hexdigest()[:8]
    return folder / f"{Path(file.path).stem}-{place}.{weights}.packed"


def load(path: Path, key: str, model: Model) -> None:
    """Gives the tensors of `path` to `model`.

    FileNotFoundError, or PackedFileError for a file that is not whole, not of this version, or made from something
    else; nothing has been given to the model then.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_uid not in (0, os.geteuid()):
            raise PackedFileError("it belongs to another user")
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as err:
            raise PackedFileError("it is empty") from err
    tensors = list(_tensors(data, key))
    for tensor, checksum in tensors:
        if model.checksum(tensor.data) != checksum:
            raise PackedFileError(f"{tensor.role.name} of layer {tensor.layer} has changed")
    for tensor, _ in tensors:
        model.set_packed(tensor)


def _tensors(data: mmap.mmap, key: str) -> Iterable[tuple[Packed, int]]:
    if len(data) < _START.size:
        raise PackedFileError(f"it has {len(data)} bytes")
    magic, length, crc = _START.unpack_from(data)
    text = data[_START.size : _START.size + length] if length <= _MAX_HEADER else b""
    if magic != MAGIC or len(text) != length or zlib.crc32(text) != crc:
        raise PackedFileError("its header is not whole")
    header = json.loads(text)
    if header["key"] != key:
        raise PackedFileError("it was made from another model file, mode or version")
    for role, layer, kind, rows, cols, offset, checksum in header["tensors"]:
        size = packed_bytes(DType(kind), rows, cols)
        if offset + size > len(data):
            raise PackedFileError(f"it has {len(data)} bytes, expected {offset + size} or more")
        yield Packed(Role(role), layer, DType(kind), rows, cols, np.frombuffer(data, np.uint8, size, offset)), checksum


def save(path: Path, key: str, model: Model, tensors: list[tuple[Role, int]]) -> None:
    """Writes the tensors that `model` holds. OSError when the disk says no; then nothing is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_overs(path)
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            _write(file, key, model, tensors)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def _remove_left_overs(path: Path) -> None:
    for left in path.parent.glob(f".{path.name}.*"):
        try:
            if time.time() - left.stat().st_mtime > _LEFT_OVER_S:
                left.unlink()
        except FileNotFoundError:
            continue  # its writer ended, or somebody else removed it


def _write(file: BinaryIO, key: str, model: Model, tensors: list[tuple[Role, int]]) -> None:
    """Tensors first, behind room for the header; the header last, when their checksums are known."""
    entries = [[int(role), layer, 0, 0, 0, 1 << 60, 1 << 32] for role, layer in tensors]
    room = _START.size + len(_header(key, entries)) + 64 * len(entries)
    at = -(-room // _PAGE) * _PAGE
    for entry, (role, layer) in zip(entries, tensors):
        packed = model.get_packed(role, layer)
        file.seek(at)
        file.write(packed.data.data)
        entry[2:] = [int(packed.kind), packed.rows, packed.cols, at, model.checksum(packed.data)]
        at += -(-packed.data.size // _PAGE) * _PAGE
    text = _header(key, entries)
    file.seek(0)
    file.write(_START.pack(MAGIC, len(text), zlib.crc32(text)) + text)


def _header(key: str, entries: list[list[int]]) -> bytes:
    return json.dumps({"key": key, "tensors": entries}).encode()
