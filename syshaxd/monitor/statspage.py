"""A unit's stats page, at offset 4096 of its outbox, in the terms of a snapshot.

The file is read and never mapped: a unit may shorten it at any time, and a mapping would end the daemon by SIGBUS.
"""

from __future__ import annotations

import os

from syshax_contract.pool_pages import (
    HEADER_BYTES,
    STATS_BYTES,
    STATS_OFFSET,
    StatsPage,
    decode_stats,
    encode_stats,
    kv_token_bytes,
)  # fmt: skip
from syshaxd.model.snapshot import UnitLoad

__all__ = ["OFFSET", "Page", "PageReader", "decode", "encode", "kv_token_bytes"]

OFFSET = STATS_OFFSET
encode = encode_stats
_RETRIES = 8


class Page(StatsPage):
    """The same fields, and what the daemon makes of them."""

    __slots__ = ()

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
    page = decode_stats(data)
    return Page(*page) if page is not None else None


class PageReader:
    """Opens one outbox, as soon as it is there, and reads its page. Use one a start of the unit."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self._last: tuple[bytes, Page | None] = (b"", None)

    def read(self) -> Page | None:
        """The newest whole page, the same object as before where its owner wrote nothing; None where there is none
        (yet), or no more."""
        for _ in range(_RETRIES):
            data = self._bytes(STATS_BYTES, OFFSET)
            if len(data) < STATS_BYTES:
                return None
            if data == self._last[0]:
                return self._last[1]
            page = decode(data)
            if page is not None:
                self._last = data, page
                return page
        return None

    def kv_token_bytes(self) -> int | None:
        """See the function; None before the owner has made the file."""
        return kv_token_bytes(self._bytes(HEADER_BYTES, 0))

    def close(self) -> None:
        """Give the file up."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _bytes(self, count: int, offset: int) -> bytes:
        """As many of them as there are."""
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            return os.pread(self._file, count, offset)
        except OSError:
            return b""
