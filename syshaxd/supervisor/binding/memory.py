"""How much memory of the host a unit will hold: weights, KV cache, pool, activations. Pure.

Upper bounds: a unit starts with less and grows to this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from syshax_contract.gguf import F32
from syshax_contract.model_files import ModelFacts
from syshax_contract.model_memory import SERVER_BYTES, engine_memory, kv_bytes
from syshax_contract.sysinfer_command import CommandLineError, EngineSizing, sizing_of
from syshaxd.config.types import UnitConfig
from syshaxd.model.unit import UnitKind
from syshaxd.supervisor.vllm_recipe import CPU_BLOCK, CPU_KV_SPACE, flags

MIB = 1 << 20
VLLM_SERVER = 1280 * MIB  # API server and engine; measured 1.2 GiB with 0.32.0
VLLM_RANK = 768 * MIB  # one worker without weights and KV
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


def unit_memory(unit: UnitConfig, facts: ModelFacts | None, pool: int, host_memory: int) -> Memory:
    """What a unit takes of the host. `facts` None: its model is unknown, or is held by an accelerator.

    `host_memory`: bytes of all its nodes, for what sysinfer sizes by itself; 0: unknown.
    """
    if unit.kind is UnitKind.SYSINFER and facts is not None:
        return _sysinfer(unit, facts, pool, host_memory)
    if unit.kind is UnitKind.SYSINFER:
        return Memory(pool=pool, activations=SERVER_BYTES)
    if unit.kind is not UnitKind.VLLM:
        return Memory()
    if unit.accelerator != "none" or facts is None:
        return Memory(pool=pool, activations=VLLM_SERVER)
    ranks = unit.tensor_parallel_size
    kv = ranks * _vllm_kv(unit, facts, ranks)
    return Memory(_vllm_weights(unit, facts), kv, pool, VLLM_SERVER + ranks * VLLM_RANK)


# ---- sysinfer ------------------------------------------------------------------------------------------------------
def _sysinfer(unit: UnitConfig, facts: ModelFacts, pool: int, host_memory: int) -> Memory:
    """As the engine itself will size it, by the same functions."""
    planned = engine_memory(facts, sysinfer_sizing(unit), host_memory or None)
    return Memory(planned.weights, planned.kv, pool, planned.activations)


def sysinfer_sizing(unit: UnitConfig) -> EngineSizing:
    """The options that its command line will have. One that it would refuse is planned without the user's words."""
    options = {
        "--max-model-len": unit.max_model_len, "--kv-blocks": unit.kv_blocks, "--block-size": unit.block_size,
        "--quantize": unit.quantize or None,
    }  # fmt: skip
    own = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    quantize = unit.env.get("SYSHAX_QUANTIZE", "").strip().lower()
    try:
        return sizing_of([unit.model_path, *own, *unit.extra_args], quantize)
    except CommandLineError:
        return sizing_of([unit.model_path, *own])


# ---- vLLM on CPUs --------------------------------------------------------------------------------------------------
def _vllm_weights(unit: UnitConfig, facts: ModelFacts) -> int:
    """In the type asked for. vLLM reads GGUF into floats on CPUs."""
    width = _DTYPES.get(_given(unit).get("--dtype", "auto"), 0)
    return sum(part.elements * (width or (4 if part.type == F32 else 2)) for part in facts.parts)


def _vllm_kv(unit: UnitConfig, facts: ModelFacts, ranks: int) -> int:
    """Of one rank: the number of blocks where it is given, else the space."""
    given = _given(unit)
    blocks = _int(given, "--num-gpu-blocks-override", unit.kv_blocks or 0)
    if blocks:
        size = -(-_int(given, "--block-size", unit.block_size or CPU_BLOCK) // CPU_BLOCK) * CPU_BLOCK
        kept_as = given.get("--kv-cache-dtype", "auto")
        kind = given.get("--dtype", "auto") if kept_as == "auto" else kept_as
        return blocks * kv_bytes(facts, size, kind) // ranks
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
