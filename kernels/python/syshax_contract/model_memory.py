"""How much memory sysinfer takes for a model: the engine sizes itself by this, and the daemon plans by it. Pure.

Upper bounds: an engine starts with less and grows to this. Model files that are mapped while they are read are not
counted; the kernel takes those pages back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .gguf import BF16, F16, F32, Q4_0, Q4_1, Q4_K, Q8_0, TENSOR_TYPES
from .model_files import ModelFacts, ModelPart
from .sysinfer_command import EngineSizing

SERVER_BYTES = 128 << 20  # the Python process without a model
KV_SHARE = 0.25  # of the memory beside the weights, that the KV cache takes unasked
HELD_AS: Mapping[str, int] = {"q4_0": Q4_0, "q8_0": Q8_0, "f16": F16, "bf16": BF16, "f32": F32}
HELD_BITS: Mapping[int, float] = {Q4_0: 4.5, Q4_K: 4.5, Q4_1: 5, Q8_0: 8.5, F16: 16, BF16: 16, F32: 32}
"""Types that the core holds weights in, and the bits that one takes in a file."""
_PACKED_SIZE: Mapping[int, int] = {Q4_K: 148}  # of a block in memory, where it differs from the file's
_KV_BYTES = {"f32": 4, "float32": 4, "float": 4, "q8_0": 1, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
_HALF = 2  # bytes of an element of all others
_SCALE_BYTES = 4  # that 8-bit KV adds for each token and head


@dataclass(frozen=True)
class EngineMemory:
    """Sizes of an engine: tokens of its longest sequence, blocks of its KV cache, bytes."""

    max_model_len: int
    kv_blocks: int
    weights: int
    kv: int
    step: int  # rows of a step and their logits

    @property
    def activations(self) -> int:
        """The server itself and what a step needs."""
        return SERVER_BYTES + self.step


def engine_memory(facts: ModelFacts, sizing: EngineSizing, memory: int | None) -> EngineMemory:
    """Blocks and context length that fit together: with few blocks the longest sequence gets shorter.

    `memory`: bytes that are there for weights and KV cache; None: unknown, and then as much as is needed.
    """
    weights = sum(held_bytes(part, HELD_AS.get(sizing.weights)) for part in facts.parts)
    longest, size = min(sizing.max_model_len or facts.context, facts.context), sizing.block_size
    block = kv_bytes(facts, size, sizing.kv_dtype)
    blocks = sizing.kv_blocks
    if blocks is None:
        blocks = sizing.max_num_seqs * -(-longest // size)
        if memory is not None:
            blocks = min(blocks, int(max(memory - weights, 0) * KV_SHARE) // max(block, 1))
    blocks = max(blocks, 1)
    return EngineMemory(min(longest, blocks * size), blocks, weights, blocks * block, _step(facts, sizing))


def kv_bytes(facts: ModelFacts, tokens: int, dtype: str) -> int:
    """Of K and V of so many tokens; 8 bits come with a scale for each token and head."""
    scales = facts.kv_elements // max(facts.head_size, 1) * _SCALE_BYTES if dtype == "q8_0" else 0
    return tokens * (facts.kv_elements * _KV_BYTES.get(dtype, _HALF) + scales)


def held_type(source: int, wanted: int | None, whole: bool = False, blocks: bool = True) -> int:
    """The ggml_type in which a matrix of type `source` is held: what is wanted (None: as it is), but never with more
    bits than in the file, and in blocks only where its rows fit.

    Types that the core does not take become q8_0. `whole` matrices (embedding, output) stay at q8_0 where q4_0 is
    wanted: they decide the token, and llama.cpp does the same.
    """
    own = source if source in HELD_BITS else Q8_0
    kind = own if wanted is None else Q8_0 if wanted == Q4_0 and whole else wanted
    if HELD_BITS[kind] >= HELD_BITS[own] and HELD_BITS[own] < 16:
        kind = own
    return F32 if kind in (Q8_0, Q4_0) and not blocks else kind


def held_bytes(part: ModelPart, wanted: int | None) -> int:
    """Bytes of a part in memory."""
    held = F32 if part.vector else held_type(part.type, wanted, part.whole, part.blocks)
    kind = TENSOR_TYPES[held]
    return -(-part.elements // kind.block) * _PACKED_SIZE.get(held, kind.size)


def _step(facts: ModelFacts, sizing: EngineSizing) -> int:
    """Rows of a step (residual, norm, q, k, v, attention, feed-forward, their 8-bit copy), logits."""
    row = 4 * (2 * facts.width + 4 * facts.widest) + 2 * facts.widest
    rows = max(sizing.max_num_batched_tokens, sizing.max_num_seqs)
    return rows * row + 4 * facts.vocab * sizing.max_num_seqs
