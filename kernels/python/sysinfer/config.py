"""Hyperparameters of a model, from GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from syshax_contract.gguf import Value
from sysinfer.errors import ModelFileError
from sysinfer.gguf import GgufFile, Tensor

ARCHITECTURES = ("llama", "qwen2")
MAX_HEAD, MAX_LAYERS = 1024, 1024  # dimensions of a head; the core takes no more
UNUSED_TOKEN = 5  # tokenizer.ggml.token_type

T = TypeVar("T", int, float, str)
Scaling = tuple[str, float]


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder model. `rope_freqs`: inverse frequencies with any scaling already applied."""

    arch: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    vocab: int  # rows of the embedding
    context: int  # tokens it was trained for
    norm_eps: float
    rope_theta: float
    rope_dims: int
    rope_freqs: tuple[float, ...]
    rope_scaling: Scaling | None  # Hugging Face's rope_type and factor


class Metadata:
    """Typed access to the metadata of a GGUF file; errors name the file and the key."""

    def __init__(self, path: str, values: Mapping[str, Value]) -> None:
        self.path, self.values = path, values

    def find(self, key: str, kind: type[T]) -> T | None:
        """The value of `key`, None where it is not there; an integer is taken for a float."""
        value = self.values.get(key)
        if value is None:
            return None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ModelFileError(f"{self.path}: {key} is {_short(value)}, expected a value of type {kind.__name__}")
        return value

    def need(self, key: str, kind: type[T]) -> T:
        value = self.find(key, kind)
        if value is None:
            raise ModelFileError(
                f"{self.path}: metadata key {key} is missing, expected a value of type {kind.__name__}"
            )
        return value

    def positive(self, key: str, default: int | None = None) -> int:
        value = self.need(key, int) if default is None else self.find(key, int)
        value = default if value is None else value
        if value is None or not 0 < value < 1 << 31:
            raise ModelFileError(f"{self.path}: {key} is {value}, expected a positive number below 2^31")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise ModelFileError(f"{self.path}: {key} is {_short(value)}, expected true or false")
        return value

    def strings(self, key: str) -> list[str]:
        return [v for v in self._list(key, str) if isinstance(v, str)]

    def numbers(self, key: str) -> list[float]:
        return [v for v in self._list(key, (int, float)) if isinstance(v, (int, float))]

    def _list(self, key: str, kinds: type | tuple[type, ...]) -> Sequence[object]:
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(v, kinds) for v in value):
            raise ModelFileError(f"{self.path}: {key} is {_short(value)}, expected an array of {kinds}")
        return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_config(file: GgufFile) -> ModelConfig:
    """The hyperparameters of a llama or qwen2 model; raises ModelFileError for what the engine can't run."""
    meta = Metadata(file.path, file.metadata)
    arch = meta.need("general.architecture", str)
    if arch not in ARCHITECTURES:
        raise ModelFileError(f"{file.path}: architecture {arch!r}, expected one of {', '.join(ARCHITECTURES)}")
    if meta.find(f"{arch}.expert_count", int):
        raise ModelFileError(f"{file.path}: a mixture of experts ({arch}.expert_count), expected a dense model")
    d_model, n_heads = meta.positive(f"{arch}.embedding_length"), meta.positive(f"{arch}.attention.head_count")
    head_dim = meta.positive(f"{arch}.attention.key_length", max(d_model // n_heads, 1))
    if head_dim > MAX_HEAD:
        raise ModelFileError(f"{file.path}: heads of {head_dim} dimensions, expected at most {MAX_HEAD}")
    theta = _theta(meta, f"{arch}.rope.freq_base")
    rope_dims = meta.positive(f"{arch}.rope.dimension_count", head_dim)
    if rope_dims != head_dim or head_dim % 2:
        raise ModelFileError(
            f"{file.path}: rope over {rope_dims} of {head_dim} dimensions, expected all of an even number"
        )
    freqs, scaling = _rope(meta, arch, theta, rope_dims, file.tensors.get("rope_freqs.weight"))
    config = ModelConfig(
        arch=arch, n_layers=meta.positive(f"{arch}.block_count"), d_model=d_model, n_heads=n_heads,
        n_kv_heads=meta.positive(f"{arch}.attention.head_count_kv", n_heads), head_dim=head_dim,
        d_ff=meta.positive(f"{arch}.feed_forward_length"), vocab=_vocab(file),
        context=meta.positive(f"{arch}.context_length"),
        norm_eps=meta.need(f"{arch}.attention.layer_norm_rms_epsilon", float), rope_theta=theta, rope_dims=rope_dims,
        rope_freqs=tuple(float(f) for f in freqs), rope_scaling=scaling,
    )  # fmt: skip
    _check(meta, config)
    return config


def _check(meta: Metadata, config: ModelConfig) -> None:
    value_length = meta.positive(f"{config.arch}.attention.value_length", config.head_dim)
    problem = ""
    if config.n_heads % config.n_kv_heads:
        problem = f"{config.n_heads} heads, expected a multiple of the {config.n_kv_heads} kv heads"
    elif value_length != config.head_dim:
        problem = f"value heads of {value_length}, expected {config.head_dim} as the key heads"
    elif config.n_layers > MAX_LAYERS:
        problem = f"{config.n_layers} layers, expected at most {MAX_LAYERS}"
    elif config.context < 2:
        problem = f"a context of {config.context} token, expected room for a prompt and an answer"
    elif not 0 <= config.norm_eps < 1:
        problem = f"a norm epsilon of {config.norm_eps}, expected a number from 0 to 1"
    if problem:
        raise ModelFileError(f"{meta.path}: {problem}")


def _theta(meta: Metadata, key: str) -> float:
    theta = meta.find(key, float)
    theta = 10000.0 if theta is None else theta
    if not 0 < theta < np.inf:
        raise ModelFileError(f"{meta.path}: {key} is {theta}, expected a positive number")
    return theta


def _vocab(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelFileError(f"{file.path}: expected a matrix token_embd.weight, found none")
    return embedding.shape[0]


def _rope(
    meta: Metadata, arch: str, theta: float, dims: int, factors: Tensor | None
) -> tuple[NDArray[np.float32], Scaling | None]:
    """Inverse frequencies (dims / 2 of them) and the scaling.

    Llama 3's scaling comes as a tensor of divisors, the largest of which is its factor; linear scaling as a factor;
    others are refused.
    """
    freqs = (1.0 / theta ** (np.arange(0, dims, 2, dtype=np.float64) / dims)).astype(np.float32)
    if factors is not None:
        divisors = _divisors(meta.path, factors, len(freqs))
        return freqs / divisors, ("llama3", float(divisors.max()))
    kind = meta.find(f"{arch}.rope.scaling.type", str) or "none"
    if kind == "none":
        return freqs, None
    if kind != "linear":
        raise ModelFileError(f"{meta.path}: rope scaling {kind!r}, expected none, linear or a rope_freqs.weight tensor")
    factor = meta.need(f"{arch}.rope.scaling.factor", float)
    if not factor > 0:
        raise ModelFileError(f"{meta.path}: {arch}.rope.scaling.factor is {factor}, expected a positive number")
    return freqs / np.float32(factor), ("linear", factor)


def _divisors(path: str, tensor: Tensor, count: int) -> NDArray[np.float32]:
    if tensor.type != 0 or tensor.shape != (count,):
        raise ModelFileError(f"{path}: rope_freqs.weight is {tensor.type_name} {tensor.shape}, expected F32 ({count},)")
    divisors = np.ascontiguousarray(tensor.data).reshape(-1).view(np.float32)
    if not np.all(np.isfinite(divisors)) or not np.all(divisors > 0):
        raise ModelFileError(f"{path}: rope_freqs.weight holds values that are not positive numbers")
    return divisors


def vocabulary(meta: Metadata) -> list[str]:
    """The tokens in id order as model_id counts them: unused ids as "", none of those at the end."""
    tokens = meta.strings("tokenizer.ggml.tokens")
    kinds = meta.numbers("tokenizer.ggml.token_type") if "tokenizer.ggml.token_type" in meta.values else []
    for index, kind in enumerate(kinds[: len(tokens)]):
        if kind == UNUSED_TOKEN and tokens[index] == f"[PAD{index}]":
            tokens[index] = ""
    while tokens and not tokens[-1]:
        tokens.pop()
    return tokens
