"""The stats page is read without native code, whole or not at all."""

from __future__ import annotations

import os
import re
import struct
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from syshaxd.monitor.statspage import OFFSET, Page, PageReader, decode, encode, kv_token_bytes

HEADER = Path(__file__).resolve().parents[3] / "kernels/include/syshax/pool.h"
PAGE = Page(
    size=120, format=1, sequence=7, generation=3, time_ns=5_000_000_000, running=2, waiting=1, kv_blocks_used=10,
    kv_blocks_total=40, kv_block_size=16, step_tokens=64, step_ns=20_000_000, preemptions=4, prompt_tokens=1000,
    generation_tokens=50, steps=60, waiting_prompt_tokens=300, kv_tokens=150, pool_chunks_free=30,
    pool_chunks_total=40, max_num_seqs=128, max_step_tokens=512, crc=0,
)  # fmt: skip


def test_fields_are_those_of_the_header() -> None:
    text = HEADER.read_text(encoding="utf-8")
    body = text[text.index("typedef struct sx_unit_stats {") : text.index("} sx_unit_stats;")]
    names = []
    for line in re.findall(r"^\s+uint(?:16|32|64)_t ([^;]+);", body, re.MULTILINE):
        names += [name.strip() for name in line.split(",")]
    assert tuple(names) == Page._fields
    offset = re.search(r"SX_POOL_STATS_OFFSET (\d+)u", text)
    assert offset and int(offset[1]) == OFFSET


def test_load_in_tokens_and_seconds() -> None:
    read = decode(encode(PAGE))
    assert read is not None
    load = read.load()
    assert (load.at, load.source, load.running, load.waiting) == (5.0, "page", 2, 1)
    assert (load.kv_used, load.kv_total, load.kv_usage) == (160, 640, 0.25)
    assert (load.step_tokens, load.step_seconds, load.pool_free, load.generation) == (64, 0.02, 0.75, 3)
    assert (load.max_num_seqs, load.max_step_tokens) == (128, 512)


def test_a_unit_without_cache_has_no_usage() -> None:
    load = PAGE._replace(kv_blocks_total=0, pool_chunks_total=0).load()
    assert load.kv_usage is None and load.pool_free is None


def test_limits_that_a_unit_does_not_tell_are_unknown() -> None:
    load = PAGE._replace(max_num_seqs=0, max_step_tokens=0).load()
    assert load.max_num_seqs is None and load.max_step_tokens is None


@given(at=st.integers(0, 119), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(at: int, bit: int) -> None:
    data = bytearray(encode(PAGE))
    data[at] ^= 1 << bit
    assert decode(bytes(data)) is None


def _file(path: Path, page: bytes) -> Path:
    path.write_bytes(bytes(OFFSET) + page + bytes(OFFSET - len(page)))
    return path


def test_reader_waits_for_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "cpu.pool"
    reader = PageReader(str(path))
    assert reader.read() is None, "no file yet"
    path.touch()
    assert reader.read() is None, "made by the daemon, not sized by its owner"
    _file(path, encode(PAGE))
    read = reader.read()
    assert read is not None and read.sequence == 7
    assert reader.read() is read, "nothing new: not decoded again"
    with path.open("r+b") as file:
        file.seek(OFFSET)
        file.write(encode(PAGE._replace(sequence=8)))
    again = reader.read()
    assert again is not None and again.sequence == 8
    reader.close()


def test_a_file_that_its_owner_shortens_is_no_page(tmp_path: Path) -> None:
    """Mapped, it would end the reader by SIGBUS."""
    path = _file(tmp_path / "cpu.pool", encode(PAGE))
    reader = PageReader(str(path))
    assert reader.read() is not None
    for size in (OFFSET + 60, 100, 0):
        os.truncate(path, size)
        assert reader.read() is None and reader.kv_token_bytes() is None
    path.unlink()
    path.mkdir()
    assert PageReader(str(path)).read() is None
    reader.close()


def test_never_a_mixture_while_it_is_rewritten(tmp_path: Path) -> None:
    path = _file(tmp_path / "cpu.pool", encode(PAGE))
    reader = PageReader(str(path))
    stop = threading.Event()

    def rewrite() -> None:
        number = 0
        with path.open("r+b", buffering=0) as file:
            while not stop.is_set():
                number += 1
                page = PAGE._replace(sequence=number, steps=number, prompt_tokens=number, generation_tokens=number)
                data = encode(page)
                for start in range(0, len(data), 24):  # as a slow writer would
                    file.seek(OFFSET + start)
                    file.write(data[start : start + 24])

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        whole = 0
        while whole < 200:
            page = reader.read()
            if page is not None and page.sequence != PAGE.sequence:
                whole += 1
                assert page.progress == (page.sequence,) * 3
    finally:
        stop.set()
        writer.join()
        reader.close()


def test_layout_has_no_holes() -> None:
    assert len(encode(PAGE)) == 120
    assert struct.unpack_from("<I", encode(PAGE), 116)[0] != 0


def test_bytes_of_one_tokens_kv_come_from_the_pools_geometry() -> None:
    head = b"SXPOOL1\0" + struct.pack("<II", 1, 256)
    assert kv_token_bytes(head + struct.pack("<4I", 7, 2, 64, 1)) == 7 * 2 * 2 * 64 * 2
    assert kv_token_bytes(head + struct.pack("<4I", 7, 2, 64, 0)) == 7 * 2 * 2 * 64 * 4
    assert kv_token_bytes(head + struct.pack("<4I", 7, 2, 64, 99)) is None
    assert kv_token_bytes(bytes(64)) is None
