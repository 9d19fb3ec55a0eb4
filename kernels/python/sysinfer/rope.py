"""The rotary embedding's frequencies, and what stretches them to longer contexts.

Sources: Su et al. 2021 (RoPE); linear interpolation, Chen et al. 2023; YaRN, Peng et al. 2023; LongRoPE, Ding et al.
2024; Llama 3.1's scaling, which GGUF files carry as a tensor of divisors. Numbers as Hugging Face computes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sysinfer.engine_errors import ModelFileError
from sysinfer.gguf_tensors import Tensor

if TYPE_CHECKING:
    from sysinfer.config import Metadata

Floats = NDArray[np.float32]
Scaling = tuple[str, float]

KINDS = ("none", "linear", "yarn", "longrope")


@dataclass(frozen=True)
class Rope:
    """`freqs`: dims / 2 inverse frequencies with any scaling already applied; `long_freqs`: those of longrope for a
    context beyond `original` tokens. `magnitude`: factor of cosine and sine."""

    theta: float
    dims: int
    freqs: tuple[float, ...]
    scaling: Scaling | None = None  # Hugging Face's rope_type and factor
    magnitude: float = 1.0
    long_freqs: tuple[float, ...] = ()
    original: int = 0

    def freqs_for(self, longest: int) -> tuple[float, ...]:
        """Of a unit whose sequences have `longest` tokens at most: one choice for all of them, so that an answer does
        not depend on how long the sequence was when a token came."""
        return self.long_freqs if self.long_freqs and longest > self.original else self.freqs


def plain(theta: float, dims: int) -> Floats:
    """Inverse frequencies without scaling."""
    return (1.0 / theta ** (np.arange(0, dims, 2, dtype=np.float64) / dims)).astype(np.float32)


def read_rope(meta: Metadata, arch: str, dims: int, context: int, tensors: Mapping[str, Tensor]) -> Rope:
    """The rotary embedding that a file describes; ModelFileError for a scaling that is not known."""
    theta = meta.find(f"{arch}.rope.freq_base", float)
    theta = 10000.0 if theta is None else theta
    if not 0 < theta < np.inf:
        raise ModelFileError(f"{meta.path}: {arch}.rope.freq_base is {theta}, expected a positive number")
    scaled = _Scaled(meta, f"{arch}.rope.scaling.", theta, dims, context)
    divisors = {name: _divisors(meta.path, tensors[name], dims // 2) for name in FACTORS if name in tensors}
    if "rope_freqs.weight" in divisors:
        return scaled.llama3(divisors["rope_freqs.weight"])
    if len(divisors) == 2:
        return scaled.longrope(divisors["rope_factors_short.weight"], divisors["rope_factors_long.weight"])
    kind = meta.find(f"{arch}.rope.scaling.type", str) or "none"
    if kind not in KINDS or kind == "longrope":
        raise ModelFileError(
            f"{meta.path}: {arch}.rope.scaling.type is {kind!r}, expected none, linear, yarn, or longrope with its "
            "tensors of factors"
        )
    return scaled.yarn() if kind == "yarn" else scaled.linear(kind)


FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class _Scaled:
    """The scalings of one file."""

    def __init__(self, meta: Metadata, prefix: str, theta: float, dims: int, context: int) -> None:
        self.meta, self.prefix, self.theta, self.dims, self.context = meta, prefix, theta, dims, context
        self.factor = self._number("factor", 1.0)
        self.original = int(self._number("original_context_length", float(context)))
        self.attention = self._number("attn_factor", 0.0, zero=True)

    def _number(self, name: str, default: float, zero: bool = False) -> float:
        value = self.meta.find(self.prefix + name, float)
        value = default if value is None else value
        if not (0 < value < 1 << 40 or (zero and value == 0)):
            raise ModelFileError(f"{self.meta.path}: {self.prefix}{name} is {value}, expected a positive number")
        return value

    def _rope(self, freqs: Floats, scaling: Scaling | None, magnitude: float = 1.0) -> Rope:
        return Rope(self.theta, self.dims, tuple(float(f) for f in freqs), scaling, magnitude, (), self.original)

    def linear(self, kind: str) -> Rope:
        freqs = plain(self.theta, self.dims)
        if kind == "none":
            return self._rope(freqs, None)
        return self._rope(freqs / np.float32(self.factor), ("linear", self.factor))

    def llama3(self, divisors: Floats) -> Rope:
        """The largest divisor is the factor that Hugging Face's config has."""
        return self._rope(plain(self.theta, self.dims) / divisors, ("llama3", float(divisors.max())))

    def longrope(self, short: Floats, long: Floats) -> Rope:
        freqs = plain(self.theta, self.dims)
        stretch = self.context / self.original
        magnitude = math.sqrt(1 + math.log(stretch) / math.log(self.original)) if stretch > 1 < self.original else 1.0
        rope = self._rope(freqs / short, ("longrope", 1.0), self.attention or magnitude)
        return Rope(**{**vars(rope), "long_freqs": tuple(float(f) for f in freqs / long)})

    def yarn(self) -> Rope:
        """Fast dimensions stay as they are, slow ones are interpolated, with a ramp between them."""
        fast, slow = self._number("yarn_beta_fast", 32.0), self._number("yarn_beta_slow", 1.0)
        low, high = math.floor(self._turns(fast)), math.ceil(self._turns(slow))
        low, high = max(low, 0), min(high, self.dims - 1)
        ramp = (np.arange(self.dims // 2) - low) / max(high - low, 0.001)
        slowness = np.clip(ramp, 0, 1).astype(np.float32)
        freqs = plain(self.theta, self.dims)
        mixed = freqs / np.float32(self.factor) * slowness + freqs * (1 - slowness)
        grown = 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0
        attention = self.attention or self._number("yarn_attn_factor", 1.0)
        return self._rope(mixed, ("yarn", self.factor), attention * grown)

    def _turns(self, count: float) -> float:
        """The dimension that turns `count` times within the original context."""
        return self.dims * math.log(self.original / (count * 2 * math.pi)) / (2 * math.log(self.theta))


def _divisors(path: str, tensor: Tensor, count: int) -> Floats:
    if tensor.type != 0 or tensor.shape != (count,):
        raise ModelFileError(f"{path}: {tensor.name} is {tensor.type_name} {tensor.shape}, expected F32 ({count},)")
    divisors = np.ascontiguousarray(tensor.data).reshape(-1).view(np.float32)
    if not np.all(np.isfinite(divisors)) or not np.all(divisors > 0):
        raise ModelFileError(f"{path}: {tensor.name} holds values that are not positive numbers")
    return divisors
