"""How much memory of the host a unit will hold: weights, KV cache, pool, activations. Pure.

Upper bounds: a unit starts with less and grows to this. Model files that are mapped while they are read are not
counted; the kernel takes those pages back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Mapping, Optional

from syshaxd.config.types import UnitConfig
from syshaxd.model.unit import UnitKind
from syshaxd.supervisor.vllm_recipe import CPU_BLOCK, CPU_KV_SPACE, flags

from .model_file import BF16, BLOCKS, F16, F32, Q4_0, Q8_0, ModelFacts, Part

MIB = 1 << 20
SYSINFER_SERVER = 128 * MIB  # the Python process without a model
VLLM_SERVER = 1280 * MIB  # API server and engine; measured 1.2 GiB with 0.32.0
VLLM_RANK = 768 * MIB  # one worker without weights and KV
KV_SHARE = 0.25  # of the memory beside the weights, that sysinfer's KV cache takes unasked
STEP_TOKENS, SEQUENCES, BLOCK = 512, 16, 32  # sysinfer's defaults
_TYPES = {"q4_0": Q4_0, "q8_0": Q8_0, "f16": F16, "bf16": BF16, "f32": F32}
_BITS = {Q4_0: 4, Q8_0: 8, F16: 16, BF16: 16, F32: 32}
_DTYPES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class Memory:
    """Bytes a unit will hold. `activations` has the server itself in it."""

    weights: int = 0
    kv: int = 0
    pool: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.pool + self.activations


def unit_memory(unit: UnitConfig, facts: Optional[ModelFacts], pool: int, host_memory: int) -> Memory:
    """What a unit takes of the host. `facts` None: its model is unknown, or is held by an accelerator.

    `host_memory`: bytes of all its nodes, for what sysinfer sizes by itself; 0: unknown.
    """
    if unit.kind is UnitKind.SYSINFER and facts is not None:
        return _sysinfer(unit, facts, pool, host_memory)
    if unit.kind is UnitKind.SYSINFER:
        return Memory(pool=pool, activations=SYSINFER_SERVER)
    if unit.kind is not UnitKind.VLLM:
        return Memory()
    if unit.accelerator != "none" or facts is None:
        return Memory(pool=pool, activations=VLLM_SERVER)
    ranks = unit.tensor_parallel_size
    kv = ranks * _vllm_kv(unit, facts, ranks)
    return Memory(_vllm_weights(unit, facts), kv, pool, VLLM_SERVER + ranks * VLLM_RANK)


# ---- sysinfer ------------------------------------------------------------------------------------------------------
def _sysinfer(unit: UnitConfig, facts: ModelFacts, pool: int, host_memory: int) -> Memory:
    given = _given(unit)
    wanted = given.get("--weights") or given.get("--quantize") or unit.quantize or unit.env.get("SYSHAX_QUANTIZE", "")
    weights = sum(_held(part, _TYPES.get(wanted.lower())) for part in facts.parts)
    room = int(max(0, host_memory - weights) * KV_SHARE) if host_memory else 0
    return Memory(weights, _sysinfer_kv(unit, given, facts, room), pool, _sysinfer_step(given, facts))


def _held(part: Part, wanted: Optional[int]) -> int:
    """Bytes of a part in memory: as asked for but never with more bits than in the file; foreign types as q8_0."""
    own = part.type if part.type in _BITS else Q8_0
    asked = own if wanted is None else Q8_0 if wanted == Q4_0 and part.whole else wanted
    kind = own if _BITS[asked] > _BITS[own] and _BITS[own] < 16 else asked
    block, size = BLOCKS[kind]
    return -(-part.elements // block) * size


def _sysinfer_kv(unit: UnitConfig, given: Mapping[str, str], facts: ModelFacts, room: int) -> int:
    """As sysinfer does it: by need, but no more than its share of the free memory."""
    size = _int(given, "--block-size", unit.block_size or BLOCK)
    block = facts.kv_elements * (4 if given.get("--kv-dtype") == "f32" else 2) * size
    blocks = _int(given, "--kv-blocks", unit.kv_blocks or 0)
    if blocks:
        return blocks * block
    longest = min(_int(given, "--max-model-len", unit.max_model_len or facts.context), facts.context)
    need = _int(given, "--max-num-seqs", SEQUENCES) * -(-longest // size) * block
    return min(need, room) if room else need


def _sysinfer_step(given: Mapping[str, str], facts: ModelFacts) -> int:
    """Server, rows of a step (residual, norm, q, k, v, attention, feed-forward, their 8-bit copy), logits."""
    rows = max(_int(given, "--max-num-batched-tokens", STEP_TOKENS), _int(given, "--max-num-seqs", SEQUENCES))
    row = 4 * (2 * facts.width + 4 * facts.widest) + 2 * facts.widest
    return SYSINFER_SERVER + rows * row + 4 * facts.vocab * _int(given, "--max-num-seqs", SEQUENCES)


# ---- vLLM on CPUs --------------------------------------------------------------------------------------------------
def _vllm_weights(unit: UnitConfig, facts: ModelFacts) -> int:
    """In the type asked for. vLLM reads GGUF into floats on CPUs."""
    width = _DTYPES.get(_given(unit).get("--dtype", "auto"), 0)
    return sum(part.elements * (width or (4 if part.type == F32 else 2)) for part in facts.parts)


def _vllm_kv(unit: UnitConfig, facts: ModelFacts, ranks: int) -> int:
    """Of one rank: the number of blocks where it is given, else the space."""
    given = _given(unit)
    width = 4 if given.get("--dtype") in ("float32", "float") else 2
    blocks = _int(given, "--num-gpu-blocks-override", unit.kv_blocks or 0)
    if blocks:
        size = -(-_int(given, "--block-size", unit.block_size or CPU_BLOCK) // CPU_BLOCK) * CPU_BLOCK
        return blocks * size * facts.kv_elements * width // ranks
    if "--kv-cache-memory-bytes" in given:
        return _size(given["--kv-cache-memory-bytes"])
    space = unit.env.get("VLLM_CPU_KVCACHE_SPACE", "")
    return (int(space) if space.isdecimal() and int(space) else CPU_KV_SPACE) << 30


def _given(unit: UnitConfig) -> Mapping[str, str]:
    return {flag.name: flag.value or "" for flag in flags(unit.extra_args)}


def _int(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 12 and int(text) else default


def _size(text: str) -> int:
    """A size as vLLM reads it: 4G is 2^30 times 4, 4g 10^9 times 4; 0 where it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)i?[bB]?", text)
    if match is None:
        return 0
    base = 1024 if match[2].isupper() else 1000
    return int(float(match[1]) * base ** _POWERS[match[2].lower()])
