"""What the files of a model say of the memory it takes: the header of a GGUF file, or a Hugging Face folder.

GGUF: ggml's docs/gguf.md. Only the header is read, never the weights; vocabularies are stepped over.
"""

from __future__ import annotations

import json
import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

# ggml_type -> (elements a block, bytes a block)
BLOCKS: Mapping[int, Tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 30: (1, 2),
}  # fmt: skip
F32, F16, Q4_0, Q8_0, BF16 = 0, 1, 2, 8, 30
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of GGUF's value types
_FORMATS = {4: "<I", 5: "<i", 10: "<Q", 11: "<q"}  # those that the keys below have
_STRING, _ARRAY = 8, 9
_WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "int8": 1}
_MOST = 1 << 20  # entries of a header; real files have hundreds
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")  # the first pattern with files counts, as when loading


@dataclass(frozen=True)
class Part:
    """Elements that are stored alike. `whole`: embedding and output, which stay at 8 bits when 4 are asked for."""

    elements: int
    type: int  # ggml_type
    whole: bool = False


@dataclass(frozen=True)
class ModelFacts:
    """`kv_elements`: of K and V of one token over all layers; sizes are in elements."""

    parts: Tuple[Part, ...]
    kv_elements: int
    context: int  # tokens
    width: int  # d_model
    widest: int  # of d_model, d_ff and the queries
    vocab: int
    kv_heads: int = 0  # that nodes can share; 0: not known


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
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, struct.error) as err:
        what = f"no {err}" if isinstance(err, KeyError) else str(err)
        raise NoFacts(f"{path} is no model that sysHAX can size ({what})") from err


# ---- Hugging Face --------------------------------------------------------------------------------------------------
def _read_folder(folder: Path) -> ModelFacts:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
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
        parts=(Part(total // size, F32 if size == 4 else BF16),) if size != 1 else (Part(total, Q8_0),),
        kv_elements=2 * int(config["num_hidden_layers"]) * kv_heads * head,
        context=int(config.get("max_position_embeddings") or 0),
        width=width,
        widest=max(width, int(config.get("intermediate_size") or 0), heads * head),
        vocab=int(config["vocab_size"]),
        kv_heads=kv_heads,
    )


# ---- GGUF ----------------------------------------------------------------------------------------------------------
def _read_gguf(path: Path) -> ModelFacts:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _gguf_facts(*_Header(data).read())


class _Header:
    """A walk over the header. Reading beyond the end is a struct.error."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 4

    def read(self) -> Tuple[Dict[str, Any], Dict[str, Tuple[Tuple[int, ...], int]]]:
        """Numbers and texts of the metadata, and dimensions (fastest first) and type of each tensor."""
        version = self._number("<I")
        if version not in (2, 3):
            raise ValueError(f"GGUF version {version}")
        tensors, keys = self._count(), self._count()
        values = {self._text(): self._value() for _ in range(keys)}
        return values, {self._text(): self._shape() for _ in range(tensors)}

    def _number(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return int(value)

    def _count(self) -> int:
        count = self._number("<Q")
        if count > _MOST:
            raise ValueError(f"{count} entries")
        return count

    def _text(self) -> str:
        return self._skip(self._number("<Q")).decode("utf-8", "replace")

    def _skip(self, count: int) -> bytes:
        begin, self._at = self._at, self._at + count
        if self._at > len(self._data):
            raise ValueError("it is cut off")
        return self._data[begin : min(self._at, begin + 256)]

    def _value(self) -> Optional[Union[int, str]]:
        kind = self._number("<I")
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            self._array()
            return None
        if kind in _FORMATS:
            return self._number(_FORMATS[kind])
        self._skip(_SIZES[kind])
        return None

    def _array(self) -> None:
        kind, count = self._number("<I"), self._number("<Q")
        if kind != _STRING:
            self._skip(_SIZES[kind] * count)
            return
        for _ in range(count):
            self._skip(self._number("<Q"))

    def _shape(self) -> Tuple[Tuple[int, ...], int]:
        count = self._number("<I")
        if not 1 <= count <= 4:
            raise ValueError(f"a tensor of {count} dimensions")
        dims = tuple(self._number("<Q") for _ in range(count))
        kind = self._number("<I")
        self._number("<Q")
        return dims, kind


def _gguf_facts(values: Mapping[str, Any], tensors: Mapping[str, Tuple[Tuple[int, ...], int]]) -> ModelFacts:
    arch = values["general.architecture"]

    def key(name: str, default: Optional[int] = None) -> int:
        found = values.get(f"{arch}.{name}", default)
        if not isinstance(found, int) or found < 0:
            raise KeyError(f"{arch}.{name}")
        return found

    width, heads = key("embedding_length"), key("attention.head_count")
    head = key("attention.key_length", width // max(heads, 1))
    return ModelFacts(
        parts=_parts(tensors),
        kv_elements=2 * key("block_count") * key("attention.head_count_kv", heads) * head,
        context=key("context_length"),
        width=width,
        widest=max(width, key("feed_forward_length", 0), heads * head),
        vocab=tensors["token_embd.weight"][0][-1],
        kv_heads=key("attention.head_count_kv", heads),
    )


def _parts(tensors: Mapping[str, Tuple[Tuple[int, ...], int]]) -> Tuple[Part, ...]:
    sums: Dict[Tuple[int, bool], int] = {}
    for name, (dims, kind) in tensors.items():
        if kind not in BLOCKS:
            raise ValueError(f"tensor {name} of type {kind}")
        place = (kind, name in ("token_embd.weight", "output.weight"))
        sums[place] = sums.get(place, 0) + prod(dims)
    found: List[Part] = [Part(elements, kind, whole) for (kind, whole), elements in sorted(sums.items())]
    return tuple(found)
