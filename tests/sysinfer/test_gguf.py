"""The GGUF reader: equal to the `gguf` package on sound files, a clear error on every broken one."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from sysinfer.config import Metadata, read_config, vocabulary
from sysinfer.engine_errors import ModelFileError
from sysinfer.gguf_tensors import GgufFile
from sysinfer.quant import can_dequantise, dequantise
from sysinfer.tokenizer import ModelTokenizer
from sysinfer.weights import find_all
from tests.sysinfer.conftest import Tiny

DEMO = Path(__file__).resolve().parents[2] / "kernels/demo/syshax-demo.gguf"


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with each value type and each tensor type that both can write."""
    path = tmp_path_factory.mktemp("gguf") / "all.gguf"
    out = gguf.GGUFWriter(path, "llama")
    for name, value in {"uint8": 200, "int8": -3, "uint16": 60000, "int16": -300, "uint32": 1 << 31, "int32": -5,
                        "uint64": 1 << 40, "int64": -(1 << 40), "float32": 0.5, "float64": 1e-9, "bool": True,
                        "string": "名"}.items():  # fmt: skip
        getattr(out, f"add_{name}")(f"x.{name}", value)
    out.add_array("x.ints", [1, -2, 3])
    out.add_array("x.words", ["a", "", "é"])
    out.add_array("x.flags", [True, False])
    out.add_array("x.floats", [0.5, -1.0])
    rng = np.random.default_rng(0)
    for kind in (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0):
        data = gguf.quants.quantize(rng.normal(size=(3, 64)).astype(np.float32), kind)
        out.add_tensor(kind.name, data, raw_dtype=kind)
    out.add_tensor("Q6_K", q6_k(rng, 2, 512), raw_dtype=Kind.Q6_K)
    out.add_tensor("vector", np.arange(5, dtype=np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def q6_k(rng: np.random.Generator, rows: int, cols: int) -> Any:
    """Random blocks; the package can read them but not make them."""
    blocks = rng.integers(0, 256, (rows, cols // 256, 210), dtype=np.uint8)
    blocks[:, :, 208:] = np.full((rows, cols // 256, 1), 0.01, np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("source", ["everything", "demo", "tiny"])
def test_equal_to_the_package(source: str, request: pytest.FixtureRequest) -> None:
    path = DEMO if source == "demo" else request.getfixturevalue("everything")
    if source == "tiny":
        path = request.getfixturevalue("tiny_llama").path
    ours, theirs = GgufFile(path), gguf.GGUFReader(path)
    keys = [k for k in theirs.fields if not k.startswith("GGUF.")]
    assert list(ours.metadata) == keys
    for key in keys:
        field = theirs.get_field(key)
        assert field is not None and ours.metadata[key] == field.contents(), key
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.shape == tuple(int(n) for n in reversed(tensor.shape)) and mine.type == tensor.tensor_type
        assert mine.data.tobytes() == tensor.data.tobytes()
        if can_dequantise(mine.type):
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(dequantise(mine.data, mine.type).reshape(expected.shape), expected)


def load_all(path: Path) -> None:
    """Everything that the start reads out of a file, but the weights' numbers."""
    file = GgufFile(path)
    config = read_config(file)
    meta = Metadata(file.path, file.metadata)
    ModelTokenizer(meta)
    vocabulary(meta)
    assert find_all(file, config)


def test_damaged_files_are_refused_with_a_clear_error(tiny_llama: Tiny, tmp_path: Path) -> None:
    """Seeded fuzz: cut off, bits flipped, numbers overwritten. Whatever is not refused must be readable."""
    whole = tiny_llama.path.read_bytes()
    head = whole.index(b"blk.1.ffn_up.weight") + 60
    rng, refused = random.Random(20261120), 0
    path = tmp_path / "damaged.gguf"
    for _ in range(400):
        data = bytearray(whole)
        how = rng.randrange(3)
        if how == 0:
            del data[rng.randrange(len(data)) :]
        elif how == 1:
            data[rng.randrange(head)] ^= 1 << rng.randrange(8)
        else:
            at = rng.randrange(head - 8)
            data[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 1 << 31, 1 << 62, (1 << 64) - 1]))
        path.write_bytes(data)
        try:
            load_all(path)
        except ModelFileError as err:
            refused += 1
            assert str(path) in str(err) and len(str(err)) < 2000
    assert refused > 200


def header(version: int = 3, tensors: int = 0, keys: int = 0, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: bytes, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


BROKEN = [
    (b"", "empty"),
    (b"GGML" + bytes(20), "expected the magic bytes 'GGUF', found b'GGML'"),
    (header(version=1), "version 1, expected 2 or 3"),
    (header(version=0x03000000), "big-endian"),
    (header(tensors=1 << 40), "number of tensors is"),
    (header()[:10], "expected the number of tensors"),
    (header(keys=1) + text(b"\xff"), "metadata key is not UTF-8"),
    (header(keys=1) + key(b"a", 99, b""), "a has value type 99"),
    (header(keys=1) + key(b"a", 9, struct.pack("<IQ", 9, 1)), "array of type 9"),
    (header(keys=1) + key(b"a", 9, struct.pack("<IQ", 8, 1 << 50)), "length of a is"),
    (header(keys=1) + key(b"a", 9, struct.pack("<IQ", 4, 1 << 50)), "length of a is"),
    (header(keys=2) + 2 * key(b"a", 0, b"\1"), "key a is there twice"),
    (header(keys=1) + key(b"general.alignment", 4, struct.pack("<I", 3)), "general.alignment is 3"),
    (header(tensors=1) + tensor(b"t", (1, 1, 1, 1, 1), 0, 0), "5 dimensions"),
    (header(tensors=1) + tensor(b"t", (8,), 77, 0) + bytes(64), "type 77, expected one of F32"),
    (header(tensors=1) + tensor(b"t", (33,), 8, 0) + bytes(64), "multiple of 32"),
    (header(tensors=1) + tensor(b"t", (0,), 0, 0) + bytes(64), "expected rows"),
    (header(tensors=1) + tensor(b"t", (4,), 0, 7) + bytes(64), "begins at 7"),
    (header(tensors=1) + tensor(b"t", (1 << 40, 1 << 20), 0, 0) + bytes(64), "is it cut off"),
    (header(tensors=2) + 2 * tensor(b"t", (4,), 0, 0) + bytes(64), "t is there twice"),
]


@pytest.mark.parametrize("data, message", BROKEN, ids=[m for _, m in BROKEN])
def test_what_is_wrong_is_said_where(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as err:
        GgufFile(path)
    assert message in str(err.value) and str(path) in str(err.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="No such file"):
        GgufFile(tmp_path / "none.gguf")
    with pytest.raises(ModelFileError, match="can't be read"):
        GgufFile(tmp_path)


def test_version_2_reads_the_same(tiny_llama: Tiny, tmp_path: Path) -> None:
    data = bytearray(tiny_llama.path.read_bytes())
    data[4] = 2
    (tmp_path / "v2.gguf").write_bytes(data)
    assert GgufFile(tmp_path / "v2.gguf").metadata == GgufFile(tiny_llama.path).metadata
