"""Products with packed weights: every instruction set of this machine against the scalar oracle and numpy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from syshax_kernels.context import Context, available_isas
from syshax_kernels.kernel_errors import KernelError
from syshax_kernels.matrix import Matrix
from syshax_kernels.types import BLOCKS, HELD, DType
from tests.kernels.reference import decode, encode, k_blocks

ISAS = available_isas()
KINDS = list(HELD)
# (rows, cols): multiples, ragged rows, an odd number of groups, one group, more tiles than threads and fewer.
SHAPES = [(16, 64), (33, 96), (1, 32), (100, 352), (257, 224), (48, 1056)]
ROWS = [1, 2, 3, 4, 5, 7, 8, 9, 17, 70]


@pytest.fixture(scope="module", params=ISAS)
def context(request: pytest.FixtureRequest) -> Iterator[Context]:
    with Context(threads=2, isa=request.param) as made:
        yield made


def quantised(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the 8-bit activations stand for: groups of 32, scale max / 127."""
    groups = x.reshape(len(x), -1, 32)
    scale = np.abs(groups).max(axis=2, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale > 0, np.float32(1) / scale, 0)
    return np.asarray(np.rint(groups * inverse) * scale, dtype=np.float32).reshape(x.shape)


def make(seed: int, *shape: int) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def whole(kind: DType, cols: int) -> int:
    """At least so many columns, in whole blocks."""
    return -(-cols // BLOCKS[kind].weights) * BLOCKS[kind].weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_is_that_of_the_decoded_weights(context: Context, kind: DType, shape: Any) -> None:
    rows, cols = shape[0], whole(kind, shape[1])
    data = encode(kind, make(1, rows, cols))
    weights = decode(kind, data, rows, cols).astype(np.float64)
    with Matrix(context, data, kind, kind, rows, cols) as matrix:
        for m in ROWS:
            x, bias = make(m, m, cols), make(2, rows)
            seen = quantised(x) if BLOCKS[kind].quantised else x
            expected = seen.astype(np.float64) @ weights.T + bias
            error = np.abs(matrix.linear(x, bias) - expected).max()
            # f32 sums of `cols` products of size about 1: a few units in the last place each; a value of x that lies
            # on a rounding boundary may fall to the other side, half an 8-bit step.
            assert error < 2e-6 * cols + (0.03 if BLOCKS[kind].quantised else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_isa_agrees_with_the_scalar_oracle(context: Context, kind: DType) -> None:
    rows, cols = 49, whole(kind, 416)
    x = make(3, 11, cols)
    data = encode(kind, make(4, rows, cols))
    with Context(isa="scalar") as plain, Matrix(plain, data, kind, kind, rows, cols) as oracle:
        expected = oracle.linear(x)
    with Matrix(context, data, kind, kind, rows, cols) as matrix:
        # The same integers and the same scales: only the order of the float sums differs.
        assert np.abs(matrix.linear(x) - expected).max() < 1e-6 * cols


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_alone_and_among_others(context: Context, kind: DType) -> None:
    rows, cols = 75, whole(kind, 288)
    data = encode(kind, make(5, rows, cols))
    x = make(6, 69, cols)
    with Matrix(context, data, kind, kind, rows, cols) as matrix:
        alone = np.concatenate([matrix.linear(x[i : i + 1]) for i in range(len(x))])
        for m in range(1, len(x) + 1):
            assert np.array_equal(matrix.linear(x[:m]), alone[:m])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads,nrc", [(1, 16), (2, 32), (3, 32), (5, 16)])
def test_threads_and_tile_height_do_not_change_bits(kind: DType, threads: int, nrc: int) -> None:
    rows, cols = 130, whole(kind, 160)
    x = make(7, 9, cols)
    data = encode(kind, make(8, rows, cols))
    results = []
    for n, height in ((1, 0), (threads, nrc)):
        with Context(threads=n, nrc=height) as ctx, Matrix(ctx, data, kind, kind, rows, cols) as matrix:
            results.append(matrix.linear(x))
    assert np.array_equal(results[0], results[1])


@pytest.mark.parametrize("source", [DType.F32, DType.F16, DType.BF16])
@pytest.mark.parametrize("kind", [DType.Q4_0, DType.Q8_0])
def test_quantising_while_packing_is_gguf_s_quantiser(source: DType, kind: DType) -> None:
    rows, cols, x = 35, 96, make(9, 5, 96)
    data = encode(source, make(10, rows, cols))
    file = encode(kind, decode(source, data, rows, cols))
    with Context() as ctx, Matrix(ctx, data, source, kind, rows, cols) as quantised_here:
        with Matrix(ctx, file, kind, kind, rows, cols) as quantised_before:
            assert np.array_equal(quantised_here.linear(x), quantised_before.linear(x))


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_weights_and_activations(context: Context, kind: DType) -> None:
    """The largest quants of both signs everywhere: no intermediate sum may saturate."""
    rows, cols = 16, 256
    w = np.where(np.indices((rows, cols)).sum(axis=0) % 2 == 0, np.float32(-8), np.float32(7))
    if kind == DType.Q8_0:
        data = b"".join(np.float16(1).tobytes() + bytes([0x80] * 32) for _ in range(rows * cols // 32))
    elif kind == DType.Q4_K:
        ones, levels = np.ones(rows), np.where(w < 0, 0, 15).astype(np.uint8).reshape(rows, 8, 32)
        data = k_blocks(ones, ones, np.full((rows, 8), 1, np.uint8), np.full((rows, 8), 8, np.uint8), levels)
    else:
        data = encode(kind, w)
    x = np.full((9, cols), 127, np.float32)
    x[1::2] *= -1
    expected = x.astype(np.float64) @ decode(kind, data, rows, cols).T.astype(np.float64)
    with Matrix(context, data, kind, kind, rows, cols) as matrix:
        assert np.array_equal(matrix.linear(x), expected.astype(np.float32))


def test_zero_activations_give_zeros(context: Context) -> None:
    data = encode(DType.Q4_0, make(11, 16, 64))
    with Matrix(context, data, DType.Q4_0, DType.Q4_0, 16, 64) as matrix:
        assert not matrix.linear(np.zeros((2, 64), np.float32)).any()


def test_columns_that_are_no_whole_group_are_refused() -> None:
    with Context() as ctx, pytest.raises(KernelError, match="multiple of 32"):
        Matrix(ctx, bytes(40 * 16 * 4), DType.F32, DType.Q8_0, 16, 40)


def test_weights_of_other_types_are_not_held_in_a_type_without_quantiser() -> None:
    with Context() as ctx, pytest.raises(KernelError, match="Q4_K holds blocks of its own only, got F32"):
        Matrix(ctx, bytes(256 * 16 * 4), DType.F32, DType.Q4_K, 16, 256)


def test_too_little_data_is_refused() -> None:
    with Context() as ctx, pytest.raises(ValueError, match="expected 4096 bytes, got 100"):
        Matrix(ctx, bytes(100), DType.F32, DType.F32, 16, 64)
