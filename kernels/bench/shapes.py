"""Model shapes of the benchmark, with random weights: only their sizes matter for speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict


@dataclass(frozen=True)
class Shape:
    """A decoder with an output matrix of its own size; `layers` of the 8B shape are few, so that it fits anywhere."""

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    vocab: int

    @property
    def weights(self) -> int:
        """Weights read for one token: all layers and the output matrix."""
        attention = self.d_model * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.d_model * self.d_ff) + self.vocab * self.d_model

    def kv_bytes(self, context: int) -> int:
        """Bytes of f16 KV read for one token at that context."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2 * context


SHAPES: Dict[str, Shape] = {
    "0.5b": Shape(24, 896, 14, 2, 64, 4864, 151936),
    "1.5b": Shape(28, 1536, 12, 2, 128, 8960, 151936),
    "8b-4-layers": Shape(4, 4096, 32, 8, 128, 14336, 128256),
}
BITS: Dict[str, float] = {"q4_0": 4.5, "q8_0": 8.5}
BATCHES = (1, 2, 3, 4, 8, 16, 32)
CONTEXTS = ((1, 1024), (1, 4096), (8, 4096))
"""(batch, tokens of context) beside short contexts."""
PROMPTS = (512,)
STEPS = 12
