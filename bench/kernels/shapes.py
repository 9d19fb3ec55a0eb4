"""Model shapes of the benchmark, with random weights: only their sizes matter for speed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A decoder whose output matrix is its embedding. Of the large ones only `stack` of the `layers` are held."""

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    vocab: int
    stack: int
    alibi: bool = False

    @property
    def head_weights(self) -> int:
        """Weights of the output matrix."""
        return self.vocab * self.d_model

    @property
    def weights(self) -> int:
        """Weights read for one token: the stack and the output matrix."""
        attention = self.d_model * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.stack * (attention + 3 * self.d_model * self.d_ff) + self.head_weights

    def kv_bytes(self, context: int) -> int:
        """Bytes of f16 KV that the stack reads for one token at that context."""
        return self.stack * 2 * self.kv_heads * self.head_dim * 2 * context

    def attention_flops(self, context: int) -> int:
        """Multiplications and additions of attention for one token at that context."""
        return self.stack * 4 * self.heads * self.head_dim * context


SHAPES: dict[str, Shape] = {
    "0.5b": Shape(24, 896, 14, 2, 64, 4864, 151936, 24),
    "1.5b": Shape(28, 1536, 12, 2, 128, 8960, 151936, 28),
    "8b": Shape(32, 4096, 32, 8, 128, 14336, 128256, 4),
    "13b": Shape(40, 5120, 40, 40, 128, 13696, 125696, 2, alibi=True),
}
BITS: dict[str, float] = {"q4_0": 4.5, "q8_0": 8.5}
BLOCK_BYTES: dict[str, int] = {"q4_0": 18, "q8_0": 34}

Case = tuple[int, int]
"""(batch, tokens of context already there)"""
SHORT: tuple[Case, ...] = tuple((b, 32) for b in (1, 2, 3, 4, 8, 32))
LONG: tuple[Case, ...] = ((1, 1024), (1, 4096), (8, 4096))
PROMPT = 512
LENGTHS: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Of the user's tables: decode of one sequence at these lengths."""
USERS_TABLES: dict[str, tuple[float, ...]] = {
    "8b": (28.11, 27.66, 27.47, 26.87, 25.93, 23.75, 21.07, 17.49),
    "13b": (17.81, 17.57, 17.36, 17.04, 16.53, 15.49, 13.62, 12.93),
}
"""Tokens a second of the product's predecessor on 48 cores of a Kunpeng 920: Llama 3 8B, Baichuan2 13B, both q4_0."""

MIN_STEPS, SECONDS = 4, 0.5
"""A case is measured for so many steps and for so long, whichever takes longer."""


def decode_name(case: Case) -> str:
    return f"decode b{case[0]} c{case[1]}"
