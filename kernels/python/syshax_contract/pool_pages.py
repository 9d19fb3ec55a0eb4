"""The pages of a pool file that others than the native core read: its header, and the unit's stats page.

Layouts: kernels/include/syshax/pool_format.h (`sx_pool_header`) and pool.h (`sx_unit_stats`). A stats page is rewritten
while it is read; the checksum at its end tells a torn read, which is simply repeated.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from .gguf import BF16, F16, F32

CHUNK_TOKENS = 64  # of a handoff chunk
STATS_OFFSET = 4096
STATS_FORMAT = 1
# field and struct code (H, I, Q: 16, 32, 64 bits, little-endian, no padding), in the order of the header
STATS_FIELDS: tuple[tuple[str, str], ...] = (
    ("size", "I"), ("format", "I"), ("sequence", "Q"), ("generation", "Q"), ("time_ns", "Q"), ("running", "I"),
    ("waiting", "I"), ("kv_blocks_used", "I"), ("kv_blocks_total", "I"), ("kv_block_size", "I"), ("step_tokens", "I"),
    ("step_ns", "Q"), ("preemptions", "Q"), ("prompt_tokens", "Q"), ("generation_tokens", "Q"), ("steps", "Q"),
    ("waiting_prompt_tokens", "I"), ("kv_tokens", "I"), ("pool_chunks_free", "I"), ("pool_chunks_total", "I"),
    ("max_num_seqs", "H"), ("max_step_tokens", "H"), ("crc", "I"),
)  # fmt: skip
_STATS = struct.Struct("<" + "".join(code for _, code in STATS_FIELDS))
STATS_BYTES = _STATS.size
_CHECKED = STATS_BYTES - 4
_HEADER = struct.Struct("<16s4I")  # magic, format, size; layers, kv heads, head size, wire type
HEADER_BYTES = _HEADER.size
_MAGIC = b"SXPOOL1\0"
_WIDTHS = {F32: 4, F16: 2, BF16: 2}  # bytes, by wire type


class StatsPage(NamedTuple):
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


def decode_stats(data: bytes) -> StatsPage | None:
    """The page in `data`, or None where it is torn, empty or of another format."""
    if len(data) < STATS_BYTES:
        return None
    page = StatsPage(*_STATS.unpack_from(data))
    whole = page.size == STATS_BYTES and page.format == STATS_FORMAT and page.crc == zlib.crc32(data[:_CHECKED])
    return page if whole else None


def encode_stats(page: StatsPage) -> bytes:
    """The reverse, with the right checksum: for units written in Python."""
    data = _STATS.pack(*page)[:_CHECKED]
    return data + struct.pack("<I", zlib.crc32(data))


def kv_token_bytes(header: bytes) -> int | None:
    """Bytes of K and V of one token over all layers and heads, from a pool file's header; None where it is none."""
    if len(header) < HEADER_BYTES or not header.startswith(_MAGIC):
        return None
    layers, heads, head_size, wire_type = _HEADER.unpack_from(header)[1:]
    width = _WIDTHS.get(wire_type)
    return layers * 2 * heads * head_size * width if width else None
