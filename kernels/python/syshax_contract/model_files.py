"""What the files of a model say of the memory it takes: the header of a GGUF file, or a Hugging Face folder.

Only headers are read, never the weights.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from .gguf import BF16, F32, Q8_0, FileBytes, GgufHeader, TensorEntry, read_header

_WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "int8": 1}  # bytes, of torch_dtype
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")  # the first pattern with files counts, as when loading
MAX_CONFIG = 16 << 20  # bytes of a config.json; real ones have some thousand


@dataclass(frozen=True)
class ModelPart:
    """Elements that are stored alike.

    `whole`: embedding and output, which stay at 8 bits when 4 are asked for. `vector`: norms and biases, held as F32.
    `blocks`: whether its rows are a multiple of 32 elements.
    """

    elements: int
    type: int  # ggml_type
    whole: bool = False
    vector: bool = False
    blocks: bool = True


@dataclass(frozen=True)
class ModelFacts:
    """`kv_elements`: of K and V of one token over all layers; sizes are in elements."""

    parts: tuple[ModelPart, ...]
    kv_elements: int
    context: int  # tokens
    width: int  # d_model
    widest: int  # of d_model, d_ff and the queries
    vocab: int
    kv_heads: int = 0  # that nodes can share; 0: not known
    head_size: int = 0


class NoFacts(Exception):
    """The files don't say; the text is why."""


def read_model(path: str) -> ModelFacts:
    """Facts of a GGUF file or a Hugging Face folder. Raises NoFacts."""
    place = Path(path)
    try:
        return _read_folder(place) if place.is_dir() else _read_gguf(place)
    except FileNotFoundError as err:
        raise NoFacts(f"{err.filename or path} is not there") from err
    except OSError as err:
        raise NoFacts(f"{path} can't be read: {err.strerror or err}") from err
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as err:
        what = f"no {err}" if isinstance(err, KeyError) else str(err)
        raise NoFacts(f"{path} is no model that sysHAX can size ({what})") from err


# ---- Hugging Face --------------------------------------------------------------------------------------------------
def _read_folder(folder: Path) -> ModelFacts:
    with open(_open(folder / "config.json"), encoding="utf-8") as file:
        config = json.loads(file.read(MAX_CONFIG))
    config = {**config, **config.get("text_config", {})}
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    head = int(config.get("head_dim") or width // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    size = _WIDTHS.get(str(config.get("torch_dtype") or config.get("dtype") or "bfloat16"), 2)
    files = next((found for found in (sorted(folder.glob(pattern)) for pattern in _WEIGHTS) if found), [])
    if not files:
        raise ValueError("no weights")
    total = sum(file.stat().st_size for file in files)
    return ModelFacts(
        parts=(ModelPart(total // size, F32 if size == 4 else BF16),) if size != 1 else (ModelPart(total, Q8_0),),
        kv_elements=2 * int(config["num_hidden_layers"]) * kv_heads * head,
        context=int(config.get("max_position_embeddings") or 0),
        width=width,
        widest=max(width, int(config.get("intermediate_size") or 0), heads * head),
        vocab=int(config["vocab_size"]),
        kv_heads=kv_heads,
        head_size=head,
    )


# ---- GGUF ----------------------------------------------------------------------------------------------------------
def _read_gguf(path: Path) -> ModelFacts:
    descriptor = _open(path)
    try:
        return gguf_facts(read_header(FileBytes(descriptor), arrays=False))
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """A descriptor of a regular file; a FIFO would keep its reader waiting."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("not a regular file")
    return descriptor


def gguf_facts(header: GgufHeader) -> ModelFacts:
    """Facts of a header. Raises KeyError or ArithmeticError where a number that they need is not there."""
    arch = header.metadata["general.architecture"]

    def key(name: str, *default: int) -> int:
        found = header.metadata.get(f"{arch}.{name}", *default)
        if not isinstance(found, int) or found < 0:
            raise KeyError(f"{arch}.{name}")
        return found

    width, heads = key("embedding_length"), key("attention.head_count")
    head, kv_heads = key("attention.key_length", width // max(heads, 1)), key("attention.head_count_kv", heads)
    return ModelFacts(
        parts=_parts(header.tensors),
        kv_elements=2 * key("block_count") * kv_heads * head,
        context=key("context_length"),
        width=width,
        widest=max(width, key("feed_forward_length", 0), heads * head),
        vocab=header.tensors["token_embd.weight"].dims[-1],
        kv_heads=kv_heads,
        head_size=head,
    )


def _parts(tensors: Mapping[str, TensorEntry]) -> tuple[ModelPart, ...]:
    sums: dict[tuple[Any, ...], int] = {}
    for name, tensor in tensors.items():
        whole = name in ("token_embd.weight", "output.weight")
        place = (tensor.type, whole, prod(tensor.dims[1:]) == 1, tensor.dims[0] % 32 == 0)
        sums[place] = sums.get(place, 0) + prod(tensor.dims)
    return tuple(ModelPart(elements, *place) for place, elements in sorted(sums.items()))
