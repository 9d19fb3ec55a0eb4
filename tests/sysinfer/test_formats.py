"""Every block format that the core reads against the gguf package's reader, on random blocks."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from syshax_contract.gguf import TENSOR_TYPES
from syshax_kernels.context import Context
from syshax_kernels.matrix import Matrix, decode
from syshax_kernels.types import BLOCKS, HELD, DType

QUANTISED = [kind for kind in DType if BLOCKS[kind].quantised]
HALVES = {
    DType.Q4_1: (0, 2), DType.Q5_1: (0, 2), DType.Q4_K: (0, 2), DType.Q5_K: (0, 2), DType.Q2_K: (80, 82),
    DType.Q3_K: (108,), DType.Q6_K: (208,), DType.MXFP4: (),
}  # fmt: skip


def random_blocks(kind: DType, rows: int, cols: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Rows of random blocks; their halves are numbers of about 0.01."""
    rng = np.random.default_rng(int(kind))
    blocks = rng.integers(0, 256, (rows * cols // BLOCKS[kind].weights, BLOCKS[kind].bytes), dtype=np.uint8)
    for at in HALVES.get(kind, (0,)):
        halves = (rng.standard_normal(len(blocks)) * 0.01).astype(np.float16)
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    if kind is DType.MXFP4:
        blocks[:, 0] = rng.integers(0, 200, len(blocks))  # the two smallest are subnormal
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_blocks_are_read_as_the_package_reads_them(kind: DType) -> None:
    blocks = random_blocks(kind, 7, 512)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(kind))
    np.testing.assert_array_equal(decode(blocks, kind).reshape(expected.shape), expected)


@pytest.mark.parametrize("kind", [kind for kind in HELD if BLOCKS[kind].quantised], ids=lambda kind: kind.name)
def test_a_product_with_ones_gives_the_weights_of_a_column(kind: DType) -> None:
    """One activation of 127 quantises exactly: a column of the packed matrix, whatever the instruction set."""
    blocks = random_blocks(kind, 16, 512)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(kind)).reshape(16, 512)
    x = 127 * np.eye(512, dtype=np.float32)
    with Context() as context, Matrix(context, blocks, kind, kind, 16, 512) as matrix:
        np.testing.assert_allclose(matrix.linear(x).T / 127, expected, rtol=1e-6, atol=1e-6)


def test_types_are_those_of_the_reader_of_files() -> None:
    for kind in DType:
        assert TENSOR_TYPES[kind] == (kind.name, BLOCKS[kind].weights, BLOCKS[kind].bytes)
