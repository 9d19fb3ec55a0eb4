"""Reads a unit's stats page: `sx_unit_stats` in kernels/include/syshax/pool.h, at offset 4096 of its outbox.

A page is rewritten while it is read; the checksum at its end tells a torn read, which is simply repeated.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from typing import NamedTuple

from syshaxd.model.snapshot import UnitLoad

OFFSET = 4096
FORMAT = 1
_LAYOUT = struct.Struct("<IIQQQ6IQ4Q4I2HI")
_CHECKED = _LAYOUT.size - 4
_RETRIES = 8
_GEOMETRY = struct.Struct("<16s4I")  # magic, format, size; layers, kv heads, head size, wire type
_MAGIC = b"SXPOOL1\0"
_WIDTHS = {0: 4, 1: 2, 30: 2}  # bytes of f32, f16, bf16


class Page(NamedTuple):
    """Fields as in the header; times in nanoseconds of CLOCK_MONOTONIC."""

    size: int
    format: int
    sequence: int
    generation: int
    time_ns: int
    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    kv_block_size: int
    step_tokens: int
    step_ns: int
    preemptions: int
    prompt_tokens: int
    generation_tokens: int
    steps: int
    waiting_prompt_tokens: int
    kv_tokens: int
    pool_chunks_free: int
    pool_chunks_total: int
    max_num_seqs: int
    max_step_tokens: int
    crc: int

    @property
    def progress(self) -> tuple[int, int, int]:
        """Changes whenever the unit computed something."""
        return self.steps, self.prompt_tokens, self.generation_tokens

    def load(self) -> UnitLoad:
        """In the terms of a snapshot."""
        known_pool = self.pool_chunks_total > 0
        return UnitLoad(
            at=self.time_ns / 1e9,
            source="page",
            running=self.running,
            waiting=self.waiting,
            kv_used=self.kv_blocks_used * self.kv_block_size,
            kv_total=self.kv_blocks_total * self.kv_block_size,
            kv_usage=self.kv_blocks_used / self.kv_blocks_total if self.kv_blocks_total else None,
            preemptions=self.preemptions,
            generation_tokens=self.generation_tokens,
            prompt_tokens=self.prompt_tokens,
            waiting_prompt_tokens=self.waiting_prompt_tokens,
            step_tokens=self.step_tokens,
            step_seconds=self.step_ns / 1e9,
            steps=self.steps,
            pool_free=self.pool_chunks_free / self.pool_chunks_total if known_pool else None,
            generation=self.generation,
            kv_tokens=self.kv_tokens,
            max_num_seqs=self.max_num_seqs or None,
            max_step_tokens=self.max_step_tokens or None,
        )


def decode(data: bytes) -> Page | None:
    """The page in `data`, or None where it is torn, empty or of another format."""
    if len(data) < _LAYOUT.size:
        return None
    page = Page(*_LAYOUT.unpack_from(data))
    whole = page.size == _LAYOUT.size and page.format == FORMAT and page.crc == zlib.crc32(data[:_CHECKED])
    return page if whole else None


def encode(page: Page) -> bytes:
    """The reverse, with the right checksum: for units written in Python."""
    data = _LAYOUT.pack(*page)[:_CHECKED]
    return data + struct.pack("<I", zlib.crc32(data))


def kv_token_bytes(header: bytes) -> int | None:
    """Bytes of K and V of one token over all layers and heads, from a pool file's header (syshax/pool_format.h)."""
    if len(header) < _GEOMETRY.size or not header.startswith(_MAGIC):
        return None
    layers, heads, head_size, wire_type = _GEOMETRY.unpack_from(header)[1:]
    width = _WIDTHS.get(wire_type)
    return layers * 2 * heads * head_size * width if width else None


class PageReader:
    """Maps one outbox, as soon as its owner has sized it, and reads its page. Use one a start of the unit."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._map: mmap.mmap | None = None
        self._last: tuple[bytes, Page | None] = (b"", None)

    def read(self) -> Page | None:
        """The newest whole page, the same object as before where its owner wrote nothing; None where there is none
        (yet)."""
        if self._map is None:
            self._map = _mapped(self._path)
        if self._map is None:
            return None
        for _ in range(_RETRIES):
            data = self._map[OFFSET : OFFSET + _LAYOUT.size]
            if data == self._last[0]:
                return self._last[1]
            page = decode(data)
            if page is not None:
                self._last = data, page
                return page
        return None

    def kv_token_bytes(self) -> int | None:
        """See the function; None before the owner has made the file."""
        return kv_token_bytes(self._map[: _GEOMETRY.size]) if self._map is not None else None

    def close(self) -> None:
        """Unmap."""
        if self._map is not None:
            self._map.close()
            self._map = None


def _mapped(path: str) -> mmap.mmap | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_size < 2 * OFFSET:
            return None
        return mmap.mmap(descriptor, 2 * OFFSET, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(descriptor)
