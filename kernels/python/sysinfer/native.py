"""The native core as a ModelRunner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from syshax_kernels.context import Context, ContextInfo
from syshax_kernels.model import KvSlice, Model, ModelShape
from syshax_kernels.pool import CHUNK_TOKENS
from syshax_kernels.types import DType
from sysinfer.config import ModelConfig
from sysinfer.gguf_tensors import GgufFile
from sysinfer.runner import Chunk, Row
from sysinfer.weights import KINDS, load_weights


@dataclass(frozen=True)
class RunnerSizes:
    """Sizes of the KV cache and of a step."""

    max_model_len: int
    kv_blocks: int
    block_size: int
    max_batch_tokens: int
    kv_dtype: str


class NativeRunner:
    """A loaded model and its KV cache."""

    def __init__(
        self, context: Context, file: GgufFile, config: ModelConfig, sizes: RunnerSizes, weights: str,
        cache: Path | None = None,
    ) -> None:  # fmt: skip
        """Packs the weights, or takes them from the folder `cache`.

        KernelError when memory is short, ModelFileError for a tensor that does not fit.
        """
        self._model = Model(context, _shape(config, sizes))
        load_weights(file, config, self._model, weights, cache)
        self._model.finish()
        self.info: ContextInfo = context.describe()  # after all memory has been bound
        self._logits = np.empty((0, config.vocab), np.float32)

    def forward(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        wanted = sum(len(r.tokens) if r.logits == 2 else r.logits for r in rows)
        if wanted > len(self._logits):
            self._logits = np.empty((wanted, self._logits.shape[1]), np.float32)
        return self._model.forward(rows, self._logits)

    def export_kv(self, blocks: list[int], first: int, count: int, at: int, chunk: Chunk, wire_type: int) -> int:
        return self._model.export_kv(KvSlice(blocks, first, count, CHUNK_TOKENS, at, DType(wire_type)), chunk)

    def import_kv(self, blocks: list[int], first: int, count: int, at: int, chunk: Chunk, wire_type: int) -> int:
        return self._model.import_kv(KvSlice(blocks, first, count, CHUNK_TOKENS, at, DType(wire_type)), chunk)

    def close(self) -> None:
        self._model.close()


def _shape(config: ModelConfig, sizes: RunnerSizes) -> ModelShape:
    return ModelShape(
        n_layers=config.n_layers, d_model=config.d_model, n_heads=config.n_heads, n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim, d_ff=config.d_ff, vocab=config.vocab,
        rope_freqs=config.rope.freqs_for(sizes.max_model_len), alibi_slopes=config.alibi_slopes, recipe=config.recipe,
        norm_eps=config.norm_eps, max_context=sizes.max_model_len, kv_blocks=sizes.kv_blocks,
        kv_block_size=sizes.block_size, kv_type=KINDS[sizes.kv_dtype], max_batch_tokens=sizes.max_batch_tokens,
    )  # fmt: skip
