"""From the tensors of a GGUF file to the native core's model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from syshax_contract.gguf import TENSOR_TYPES
from syshax_contract.model_memory import HELD_AS, HELD_BITS, held_type
from syshax_kernels.errors import KernelError
from syshax_kernels.model import Model
from syshax_kernels.types import DType, Role
from sysinfer import packed
from sysinfer.config import ModelConfig
from sysinfer.errors import ModelFileError
from sysinfer.gguf import GgufFile, Tensor
from sysinfer.quant import can_dequantise, dequantise

log = logging.getLogger("sysinfer.weights")

KINDS: Mapping[str, DType] = {name: DType(kind) for name, kind in HELD_AS.items()}


class Expected(NamedTuple):
    """A tensor that the model needs, by GGUF's name; `heads` > 0: its rows are rotary heads."""

    role: Role
    rows: int
    cols: int
    heads: int = 0
    optional: bool = False


def expected_tensors(config: ModelConfig) -> dict[str, Expected]:
    """GGUF name to what is expected under it, for the tensors outside of layers."""
    return {
        "token_embd.weight": Expected(Role.TOKEN_EMBD, config.vocab, config.d_model),
        "output_norm.weight": Expected(Role.OUT_NORM, 1, config.d_model),
        "output.weight": Expected(Role.OUTPUT, config.vocab, config.d_model, optional=True),
    }


def expected_in_layer(config: ModelConfig) -> dict[str, Expected]:
    """The same for one layer, without its prefix `blk.N.`."""
    d, q = config.d_model, config.n_heads * config.head_dim
    kv, bias = config.n_kv_heads * config.head_dim, config.arch != "qwen2"
    return {
        "attn_norm.weight": Expected(Role.ATTN_NORM, 1, d),
        "attn_q.weight": Expected(Role.WQ, q, d, config.n_heads),
        "attn_k.weight": Expected(Role.WK, kv, d, config.n_kv_heads),
        "attn_v.weight": Expected(Role.WV, kv, d),
        "attn_q.bias": Expected(Role.BQ, 1, q, optional=bias),
        "attn_k.bias": Expected(Role.BK, 1, kv, optional=bias),
        "attn_v.bias": Expected(Role.BV, 1, kv, optional=bias),
        "attn_output.weight": Expected(Role.WO, d, q),
        "ffn_norm.weight": Expected(Role.FFN_NORM, 1, d),
        "ffn_gate.weight": Expected(Role.W_GATE, config.d_ff, d),
        "ffn_up.weight": Expected(Role.W_UP, config.d_ff, d),
        "ffn_down.weight": Expected(Role.W_DOWN, d, config.d_ff),
    }


def _find(file: GgufFile, name: str, want: Expected) -> Tensor | None:
    tensor = file.tensors.get(name)
    if tensor is None:
        if want.optional:
            return None
        raise ModelFileError(f"{file.path}: tensor {name} is missing, expected {want.rows} x {want.cols}")
    shape = tensor.shape if len(tensor.shape) == 2 else (1, *tensor.shape)
    if shape != (want.rows, want.cols):
        raise ModelFileError(f"{file.path}: tensor {name} is {shape}, expected {(want.rows, want.cols)}")
    if not can_dequantise(tensor.type):
        known = ", ".join(TENSOR_TYPES[t].name for t in TENSOR_TYPES if can_dequantise(t))
        raise ModelFileError(f"{file.path}: tensor {name} is {tensor.type_name}, expected one of {known}")
    return tensor


def separate_halves(rows: NDArray[np.uint8], heads: int) -> NDArray[np.uint8]:
    """Rows of each head from GGUF's order for `llama` (pairs side by side) to rotate-half order (first halves, second
    halves), as Hugging Face has them. Works on rows of any type."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def load_weights(file: GgufFile, config: ModelConfig, model: Model, weights: str, cache: Path | None = None) -> None:
    """Gives every tensor to `model`, held as `weights` says (`keep`: as in the file); ModelFileError names a bad one.

    `cache`: folder of packed files, where packed weights are looked for first and left for the next start.
    """
    found = [(name, layer, want, _find(file, name, want)) for name, layer, want in _all(config)]
    tensors = [(layer, want, tensor) for _, layer, want, tensor in found if tensor is not None]
    if cache is None:
        return _pack_all(tensors, config, model, weights)
    path, key = packed.path_for(cache, file, weights), packed.source_key(file, weights)
    if _load_packed(path, key, model):
        return None
    _pack_all(tensors, config, model, weights)
    _save_packed(path, key, model, [(want.role, layer) for layer, want, _ in tensors])
    return None


MALFORMED = (ValueError, KeyError, TypeError, OverflowError)


def _load_packed(path: Path, key: str, model: Model) -> bool:
    try:
        packed.load(path, key, model)
    except FileNotFoundError:
        log.info("no packed weights at %s yet", path)
        return False
    except (packed.PackedFileError, KernelError, OSError, MemoryError, *MALFORMED) as err:
        log.warning("%s is not used (%s): the weights are packed again", path, err)
        return False
    log.info("weights taken packed from %s", path)
    return True


def _save_packed(path: Path, key: str, model: Model, tensors: list[tuple[Role, int]]) -> None:
    try:
        packed.save(path, key, model, tensors)
    except (OSError, MemoryError, KernelError) as err:
        log.warning("packed weights can't be kept at %s: %s", path, err)


def _pack_all(tensors: list[tuple[int, Expected, Tensor]], config: ModelConfig, model: Model, weights: str) -> None:
    wanted = KINDS.get(weights)
    for layer, want, tensor in tensors:
        whole = want.role in (Role.TOKEN_EMBD, Role.OUTPUT)
        kind = held_type(tensor.type, wanted, whole, want.cols % 32 == 0)
        _set(model, config, tensor, layer, want, DType(kind))


def _all(config: ModelConfig) -> Iterator[tuple[str, int, Expected]]:
    for name, want in expected_tensors(config).items():
        yield name, 0, want
    for layer in range(config.n_layers):
        for name, want in expected_in_layer(config).items():
            yield f"blk.{layer}.{name}", layer, want


def _set(model: Model, config: ModelConfig, tensor: Tensor, layer: int, want: Expected, kind: DType) -> None:
    data, source = tensor.data, tensor.type
    if want.heads and config.arch == "llama":
        data = separate_halves(data, want.heads)
    if source not in HELD_BITS or want.rows == 1:
        data, source = dequantise(data, source).reshape(want.rows, want.cols).view(np.uint8), int(DType.F32)
    data = np.ascontiguousarray(data)
    model.set_tensor(want.role, layer, DType(source), DType.F32 if want.rows == 1 else kind, want.rows, want.cols, data)
