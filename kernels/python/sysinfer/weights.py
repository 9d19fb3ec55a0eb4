"""From the tensors of a GGUF file to the native core's model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from syshax_contract.gguf import TENSOR_TYPES
from syshax_contract.model_memory import HELD_AS, held_type
from syshax_kernels.kernel_errors import KernelError
from syshax_kernels.model import Model, packed_bytes
from syshax_kernels.types import BLOCKS, DType, Role
from sysinfer import packed
from sysinfer.architectures import FORMS, TensorPart
from sysinfer.config import ModelConfig
from sysinfer.conversion import Costs
from sysinfer.engine_errors import ModelFileError
from sysinfer.gguf_tensors import GgufFile, Tensor
from sysinfer.quant import can_dequantise, dequantise
from sysinfer.rope import FACTORS

log = logging.getLogger("sysinfer.weights")

KINDS: Mapping[str, DType] = {name: DType(kind) for name, kind in HELD_AS.items()}


class Expected(NamedTuple):
    """A tensor that the model needs or may have; `pieces` are its rows in order, each a matrix or vector of its own."""

    name: str
    layer: int
    pieces: tuple[TensorPart, ...]
    rows: tuple[int, ...]  # of each piece
    cols: int  # 1: a vector
    optional: bool = False


def expected_tensors(config: ModelConfig) -> list[Expected]:
    """The tensors outside of layers; the factors of the rotary embedding are read with the configuration."""
    embedding, head = (TensorPart(role, "vocab") for role in (Role.TOKEN_EMBD, Role.OUTPUT))
    return [
        Expected("token_embd.weight", 0, (embedding,), (config.vocab,), config.d_model),
        Expected("output_norm.weight", 0, (TensorPart(Role.OUT_NORM, "d"),), (config.d_model,), 1),
        Expected("output.weight", 0, (head,), (config.vocab,), config.d_model, optional=True),
    ]


def expected_in_layer(config: ModelConfig, layer: int) -> list[Expected]:
    """Those of one layer."""
    how = config.how
    return [_in_layer(config, layer, name, name in how.may) for name in (*how.needs, *how.may)]


def _in_layer(config: ModelConfig, layer: int, name: str, optional: bool) -> Expected:
    form = FORMS[name]
    spelled = name.replace("ffn_gate_up", "ffn_up") if config.how.packed_mlp else name
    rows = tuple(config.size(piece.rows) for piece in form.pieces)
    return Expected(f"blk.{layer}.{spelled}", layer, form.pieces, rows, config.size(form.cols), optional)


def _find(file: GgufFile, want: Expected) -> Tensor | None:
    tensor, shape = file.tensors.get(want.name), (sum(want.rows), want.cols)
    if tensor is None:
        if want.optional:
            return None
        raise ModelFileError(f"{file.path}: tensor {want.name} is missing, expected {shape[0]} x {shape[1]}")
    found = tensor.shape if len(tensor.shape) == 2 else (*tensor.shape, 1)
    if found != shape:
        raise ModelFileError(f"{file.path}: tensor {want.name} is {found}, expected {shape}")
    if not can_dequantise(tensor.type):
        known = ", ".join(TENSOR_TYPES[t].name for t in TENSOR_TYPES if can_dequantise(t))
        raise ModelFileError(f"{file.path}: tensor {want.name} is {tensor.type_name}, expected one of {known}")
    return tensor


def find_all(file: GgufFile, config: ModelConfig) -> list[tuple[Expected, Tensor]]:
    """Every tensor of the file with what it is; ModelFileError where one is missing, or is none of the model's."""
    wanted = expected_tensors(config)
    for layer in range(config.n_layers):
        wanted += expected_in_layer(config, layer)
    found = [(want, tensor) for want in wanted for tensor in [_find(file, want)] if tensor]
    known = {want.name for want, _ in found} | set(FACTORS)
    unknown = [name for name in file.tensors if name not in known]
    if unknown:
        rest = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise ModelFileError(
            f"{file.path}: tensor {unknown[0]}{rest}: no such tensor is known of a {config.arch} model, and "
            "leaving it out would change every answer"
        )
    return found


def separate_halves(rows: NDArray[np.uint8], heads: int, turned: int) -> NDArray[np.uint8]:
    """Rows of each head from GGUF's order (pairs side by side) to rotate-half order (first halves, second halves), as
    Hugging Face has them; the first `turned` rows of a head are such. Works on rows of any type."""
    made = rows.reshape(heads, -1, rows.shape[1]).copy()
    pairs = made[:, :turned].reshape(heads, turned // 2, 2, rows.shape[1])
    made[:, :turned] = pairs.swapaxes(1, 2).reshape(heads, turned, rows.shape[1])
    return made.reshape(rows.shape)


def load_weights(file: GgufFile, config: ModelConfig, model: Model, weights: str, cache: Path | None = None) -> None:
    """Gives every tensor to `model`, held as `weights` says (`keep`: as in the file); ModelFileError names a bad one.

    `cache`: folder of packed files, where packed weights are looked for first and left for the next start.
    """
    found = find_all(file, config)
    if cache is None:
        return _pack_all(found, config, model, weights)
    path, key = packed.path_for(cache, file, weights), packed.source_key(file, weights)
    if _load_packed(path, key, model):
        return None
    _pack_all(found, config, model, weights)
    _save_packed(path, key, model, [(piece.role, want.layer) for want, _ in found for piece in want.pieces])
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


def _pack_all(found: list[tuple[Expected, Tensor]], config: ModelConfig, model: Model, weights: str) -> None:
    costs = Costs()
    for want, tensor in found:
        kind = _kind(want, tensor, KINDS.get(weights))
        normalise = config.normalises_head and want.pieces[0].role is Role.OUTPUT
        if normalise and not BLOCKS[kind].from_floats:
            kind = DType.Q8_0
        if want.cols > 1:
            costs.add(tensor, kind, packed_bytes(kind, sum(want.rows), want.cols))
        at = 0
        for piece, rows in zip(want.pieces, want.rows):
            _set(model, config, _Rows(want, piece, tensor, tensor.data[at : at + rows], kind, normalise))
            at += rows
    costs.tell()


def _kind(want: Expected, tensor: Tensor, wanted: DType | None) -> DType:
    """The type that a tensor is held in."""
    if want.cols == 1:
        return DType.F32
    whole = want.pieces[0].role in (Role.TOKEN_EMBD, Role.OUTPUT)
    return DType(held_type(tensor.type, wanted, whole, want.cols % 32 == 0))


class _Rows(NamedTuple):
    """The rows of a tensor that make one matrix or vector of the core, to be held as `kind`."""

    want: Expected
    piece: TensorPart
    tensor: Tensor
    data: NDArray[np.uint8]
    kind: DType
    normalise: bool  # bring every row to length 1


def _set(model: Model, config: ModelConfig, part: _Rows) -> None:
    want, piece, source = part.want, part.piece, part.tensor.type
    data = part.data if want.cols > 1 else _column(part)
    if piece.heads and config.how.pairs:
        data = separate_halves(data, config.size(piece.heads), config.rope.dims)
    count = len(data)
    if want.cols == 1:
        model.set_tensor(piece.role, want.layer, DType.F32, DType.F32, 1, count, np.ascontiguousarray(data))
        return
    if part.normalise:
        floats = dequantise(data, source)
        floats = floats / np.maximum(np.linalg.norm(floats, axis=1, keepdims=True), np.float32(1e-7))
        data, source = floats.view(np.uint8), int(DType.F32)
    data = np.ascontiguousarray(data)
    model.set_tensor(piece.role, want.layer, DType(source), part.kind, count, want.cols, data)


def _column(part: _Rows) -> NDArray[np.uint8]:
    """A vector of any type as rows of one float each."""
    values = dequantise(part.tensor.data.reshape(1, -1), part.tensor.type).reshape(-1, 1)
    start = part.want.pieces.index(part.piece)
    at = sum(part.want.rows[:start])
    rows: NDArray[np.uint8] = np.ascontiguousarray(values[at : at + part.want.rows[start]]).view(np.uint8)
    return rows
