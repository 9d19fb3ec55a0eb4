"""Units and hosts of the simulation: step-time laws from a roofline, in seconds, tokens and bytes.

t(b, c, K) = overhead + ((weights)^n + (compute * (b + c))^n)^(1/n) + per_kv * K, with n = 3: weights are read
once a step, compute grows with the tokens in it, KV is read once per decoding token. The scheduler never sees
this formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BANDWIDTH_EFFICIENCY = 0.70
FLOP_EFFICIENCY = 0.50
CPU_INT8_EFFICIENCY = 0.30
Q4_0_BYTES = 0.5625  # per parameter, scales included
OVERHEAD = 0.004
ROUNDNESS = 3.0


@dataclass(frozen=True)
class ModelSize:
    """Parameters and KV bytes per token of a decoder."""

    parameters: float
    kv_bytes: float


@dataclass(frozen=True)
class Law:
    """Step time of one unit, and what it can hold."""

    name: str
    weights: float  # seconds to read them once
    compute: float  # seconds per token
    per_kv: float  # seconds per KV token read
    capacity: int  # KV tokens
    max_num_seqs: int
    prefill_chunk: int
    overhead: float = OVERHEAD

    def seconds(self, decoding: int, prefill: int, kv: int) -> float:
        """Duration of one step."""
        work = (self.weights**ROUNDNESS + (self.compute * (decoding + prefill)) ** ROUNDNESS) ** (1.0 / ROUNDNESS)
        return float(self.overhead + work + self.per_kv * kv)


@dataclass(frozen=True)
class Host:
    """An accelerator, its CPUs and the model they serve."""

    model: ModelSize
    accelerator: Law
    cpu: Law
    link: float = 10e9  # bytes/s of a handoff
    handoff: float = 0.030  # seconds beside the copy


def accelerator_law(model: ModelSize, bandwidth: float, flops: float, capacity: int, chunk: int = 2048) -> Law:
    """Half precision: 2 bytes and 2 operations a parameter."""
    read = bandwidth * BANDWIDTH_EFFICIENCY
    return Law(
        "accelerator",
        model.parameters * 2 / read,
        2 * model.parameters / (flops * FLOP_EFFICIENCY),
        model.kv_bytes / read,
        capacity,
        256,
        chunk,
    )


def cpu_law(model: ModelSize, bandwidth: float, int8_ops: float, capacity: int) -> Law:
    """q4_0 weights, int8 arithmetic."""
    read = bandwidth * BANDWIDTH_EFFICIENCY
    return Law(
        "cpu",
        model.parameters * Q4_0_BYTES / read,
        2 * model.parameters / (int8_ops * CPU_INT8_EFFICIENCY),
        model.kv_bytes / read,
        capacity,
        128,
        64,
    )


QWEN_32B = ModelSize(32.76e9, 2 * 64 * 8 * 128 * 2)
QWEN_7B = ModelSize(7.62e9, 2 * 28 * 4 * 128 * 2)
LLAMA_8B = ModelSize(8.03e9, 2 * 32 * 8 * 128 * 2)
KUNPENG = (614e9, 26.6e12)  # bytes/s of 16 channels DDR5-4800; int8 operations/s of 160 cores
X86_16 = (120e9, 10.2e12)  # a share of a DDR5 socket; 16 cores with VNNI


def hosts() -> Mapping[str, Host]:
    """The hosts that docs/scheduling.md reports on."""
    return {
        "A100x2-32B": Host(
            QWEN_32B,
            accelerator_law(QWEN_32B, 2 * 2.039e12, 2 * 312e12, 252_000),
            cpu_law(QWEN_32B, *KUNPENG, 1_600_000),
        ),
        "A100x1-32B": Host(
            QWEN_32B, accelerator_law(QWEN_32B, 2.039e12, 312e12, 27_000), cpu_law(QWEN_32B, *KUNPENG, 1_600_000)
        ),
        "A10-8B": Host(
            LLAMA_8B, accelerator_law(LLAMA_8B, 0.6e12, 125e12, 35_000), cpu_law(LLAMA_8B, *KUNPENG, 3_000_000)
        ),
        "H200-7B": Host(
            QWEN_7B, accelerator_law(QWEN_7B, 4.8e12, 989e12, 1_880_000, 8192), cpu_law(QWEN_7B, *X86_16, 1_500_000)
        ),
        "H200cap-7B": Host(
            QWEN_7B, accelerator_law(QWEN_7B, 4.8e12, 989e12, 24_000), cpu_law(QWEN_7B, *X86_16, 1_500_000)
        ),
    }
