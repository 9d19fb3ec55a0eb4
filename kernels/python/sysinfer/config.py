"""Hyperparameters of a model, from GGUF metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from syshax_contract.gguf import Value
from syshax_kernels.model import Recipe
from syshax_kernels.types import LayerRope
from sysinfer.architectures import ARCHITECTURES, NEUTRAL, TOLD_ONLY, Architecture
from sysinfer.engine_errors import ModelFileError
from sysinfer.gguf_tensors import GgufFile
from sysinfer.rope import Rope, Scaling, plain, read_rope

MAX_HEAD, MAX_LAYERS = 1024, 1024  # dimensions of a head; the core takes no more
UNUSED_TOKEN = 5  # tokenizer.ggml.token_type

T = TypeVar("T", int, float, str)


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder model, and what its layers do differently from llama's."""

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
    rope: Rope
    recipe: Recipe
    alibi_slopes: tuple[float, ...] | None = None  # one a head, in place of the rotary embedding

    @property
    def how(self) -> Architecture:
        return ARCHITECTURES[self.arch]

    @property
    def rope_theta(self) -> float:
        return self.rope.theta

    @property
    def rope_scaling(self) -> Scaling | None:
        return self.rope.scaling

    @property
    def normalises_head(self) -> bool:
        """Whether rows of the output matrix are brought to length 1."""
        return self.how.head_normalised and self.vocab != self.how.plain_head_vocab

    def size(self, name: str) -> int:
        """A size by the name that `architectures.FORMS` has for it."""
        sizes = {
            "": 1, "d": self.d_model, "q": self.n_heads * self.head_dim, "kv": self.n_kv_heads * self.head_dim,
            "head": self.head_dim, "ff": self.d_ff, "heads": self.n_heads, "kv_heads": self.n_kv_heads,
        }  # fmt: skip
        return sizes[name]


class Metadata:
    """Typed access to the metadata of a GGUF file; errors name the file and the key."""

    def __init__(self, path: str, values: Mapping[str, Value]) -> None:
        self.path, self.values = path, values
        self.used: set[str] = set()  # keys that somebody has asked for

    def find(self, key: str, kind: type[T]) -> T | None:
        """The value of `key`, None where it is not there; an integer is taken for a float."""
        self.used.add(key)
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
        self.used.add(key)
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise ModelFileError(f"{self.path}: {key} is {_short(value)}, expected true or false")
        return value

    def factor(self, key: str) -> float:
        """A positive number, 0 where it is not there."""
        value = self.find(key, float) or 0.0
        if not 0 <= value < math.inf:
            raise ModelFileError(f"{self.path}: {key} is {value}, expected a positive number")
        return value

    def refuse_unread(self, prefix: str, known: Mapping[str, object], told_only: Sequence[str]) -> None:
        """ModelFileError for keys below `prefix` that nobody has asked for and that are not known to change nothing:
        `known` maps a key to the value at which that is so."""
        for key, value in self.values.items():
            name = key[len(prefix) :] if key.startswith(prefix) else ""
            if not name or key in self.used or name in told_only:
                continue
            if name not in known or known[name] != value:
                raise ModelFileError(f"{self.path}: {key} is {_short(value)}, which this engine does not compute")

    def strings(self, key: str) -> list[str]:
        return [v for v in self._list(key, str) if isinstance(v, str)]

    def numbers(self, key: str) -> list[float]:
        return [v for v in self._list(key, (int, float)) if isinstance(v, (int, float))]

    def _list(self, key: str, kinds: type | tuple[type, ...]) -> Sequence[object]:
        self.used.add(key)
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(v, kinds) for v in value):
            raise ModelFileError(f"{self.path}: {key} is {_short(value)}, expected an array of {kinds}")
        return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_config(file: GgufFile) -> ModelConfig:
    """The hyperparameters of a model; raises ModelFileError for what the engine can't run, keys that nothing reads
    among it."""
    meta = Metadata(file.path, file.metadata)
    arch = meta.need("general.architecture", str)
    if arch not in ARCHITECTURES:
        raise ModelFileError(f"{file.path}: architecture {arch!r}, expected one of {', '.join(ARCHITECTURES)}")
    if meta.find(f"{arch}.expert_count", int):
        raise ModelFileError(f"{file.path}: a mixture of experts ({arch}.expert_count), expected a dense model")
    d_model, n_heads = meta.positive(f"{arch}.embedding_length"), meta.positive(f"{arch}.attention.head_count")
    head_dim = meta.positive(f"{arch}.attention.key_length", max(d_model // n_heads, 1))
    n_layers, context = meta.positive(f"{arch}.block_count"), meta.positive(f"{arch}.context_length")
    n_kv_heads = meta.positive(f"{arch}.attention.head_count_kv", n_heads)
    epsilon = meta.need(f"{arch}.attention.layer_norm_rms_epsilon", float)
    rope_dims = meta.positive(f"{arch}.rope.dimension_count", head_dim)
    _check(meta, (n_layers, n_heads, n_kv_heads, head_dim, rope_dims, context, epsilon), arch)
    rope = read_rope(meta, arch, rope_dims, context, file.tensors)
    config = ModelConfig(
        arch=arch, n_layers=n_layers, d_model=d_model, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim,
        d_ff=meta.positive(f"{arch}.feed_forward_length"), vocab=_vocab(file), context=context, norm_eps=epsilon,
        rope=rope, recipe=_recipe(meta, arch, n_layers, d_model / n_heads, rope),
        alibi_slopes=_slopes(meta, arch, n_layers, n_heads),
    )  # fmt: skip
    meta.refuse_unread(f"{arch}.", NEUTRAL, TOLD_ONLY)
    return config


def _check(meta: Metadata, sizes: tuple[int, int, int, int, int, int, float], arch: str) -> None:
    n_layers, n_heads, n_kv_heads, head_dim, rope_dims, context, epsilon = sizes
    value_length = meta.positive(f"{arch}.attention.value_length", head_dim)
    checks = (
        (head_dim > MAX_HEAD, f"heads of {head_dim} dimensions, expected at most {MAX_HEAD}"),
        (n_heads % n_kv_heads, f"{n_heads} heads, expected a multiple of the {n_kv_heads} kv heads"),
        (value_length != head_dim, f"value heads of {value_length}, expected {head_dim} as the key heads"),
        (rope_dims > head_dim or rope_dims % 2,
         f"rope over {rope_dims} of {head_dim} dimensions, expected an even number of them"),
        (n_layers > MAX_LAYERS, f"{n_layers} layers, expected at most {MAX_LAYERS}"),
        (context < 2, f"a context of {context} token, expected room for a prompt and an answer"),
        (not 0 <= epsilon < 1, f"a norm epsilon of {epsilon}, expected a number from 0 to 1"),
    )  # fmt: skip
    for wrong, text in checks:
        if wrong:
            raise ModelFileError(f"{meta.path}: {text}")


def _vocab(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelFileError(f"{file.path}: expected a matrix token_embd.weight, found none")
    return embedding.shape[0]


def _recipe(meta: Metadata, arch: str, n_layers: int, width: float, rope: Rope) -> Recipe:
    """`width`: of the residual stream, a head."""
    how = ARCHITECTURES[arch]
    windows = _windows(meta, arch, n_layers)
    ropes = [LayerRope.LOCAL if how.local_theta and window else LayerRope.MAIN for window in windows]
    if how.no_rope_every:
        ropes = [LayerRope.NONE if (i + 1) % how.no_rope_every == 0 else r for i, r in enumerate(ropes)]
    head_count = meta.need(f"{arch}.attention.head_count", int)
    logit_scale = meta.factor(f"{arch}.logit_scale")
    scale = meta.factor(f"{arch}.attention.scale")
    return Recipe(
        layer_windows=windows, layer_ropes=ropes,
        rope_freqs_local=plain(how.local_theta, rope.dims).tolist() if how.local_theta else (),
        rope_magnitude=rope.magnitude,
        embedding_scale=math.sqrt(width * head_count) if how.embedding_by_width
        else meta.factor(f"{arch}.embedding_scale"),
        residual_scale=meta.factor(f"{arch}.residual_scale"),
        attention_scale=width**-0.5 if n_layers in how.wide_attention else scale,
        logit_scale=1 / logit_scale if logit_scale and how.logits_divided else logit_scale,
        attention_softcap=meta.factor(f"{arch}.attn_logit_softcapping"),
        logit_softcap=meta.factor(f"{arch}.final_logit_softcapping"), activation=how.activation,
    )  # fmt: skip


def _windows(meta: Metadata, arch: str, n_layers: int) -> list[int]:
    """Tokens that each layer sees; 0: all."""
    window = meta.find(f"{arch}.attention.sliding_window", int) or 0
    every = meta.find(f"{arch}.attention.sliding_window_pattern", int) if window else 0
    every = ARCHITECTURES[arch].full_every if not every else every
    if not 0 <= window < 1 << 31 or not 0 <= every <= MAX_LAYERS:
        raise ModelFileError(f"{meta.path}: a sliding window of {window} tokens with pattern {every}")
    return [0 if every and (i + 1) % every == 0 else window for i in range(n_layers)]


def _slopes(meta: Metadata, arch: str, n_layers: int, n_heads: int) -> tuple[float, ...] | None:
    """ALiBi's slopes (Press, Smith, Lewis 2021), where the model has it."""
    largest = meta.factor(f"{arch}.attention.max_alibi_bias")
    if not largest and n_layers not in ARCHITECTURES[arch].alibi_layers:
        return None
    if ARCHITECTURES[arch].alibi_layers == ():
        raise ModelFileError(f"{meta.path}: {arch}.attention.max_alibi_bias, but this architecture turns its heads")
    power, bias = 1 << (n_heads.bit_length() - 1), largest or 8.0
    even = [2.0 ** (-bias * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-bias / 2 * (2 * i + 1) / power) for i in range(n_heads - power)]
    return tuple(even + between)


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
