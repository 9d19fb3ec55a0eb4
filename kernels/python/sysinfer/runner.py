"""What the engine asks of a model: one step of a batch, and KV in and out for the handoff."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from syshax_kernels.model import Seq as Row

Chunk = NDArray[np.uint8]  # [layer][K,V][token][kv head][head size] of the wire type

NO_LOGITS, LAST_LOGITS, ALL_LOGITS = 0, 1, 2  # Row.logits

__all__ = ["ALL_LOGITS", "LAST_LOGITS", "NO_LOGITS", "Chunk", "ModelRunner", "Row"]


class ModelRunner(Protocol):
    """Runs a model; used by one thread. Errors of the core come through as they are."""

    def forward(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Computes all rows; logits [rows that were asked for, in order][vocab], valid until the next call."""

    def export_kv(self, blocks: list[int], first: int, count: int, at: int, chunk: Chunk, wire_type: int) -> int:
        """Writes the KV of tokens first .. first + count into `chunk`, from its token `at` on; its crc32c."""

    def import_kv(self, blocks: list[int], first: int, count: int, at: int, chunk: Chunk, wire_type: int) -> int:
        """Reads them from `chunk` into the cache; crc32c of what it has read."""
