"""The forward pass against a decoder in float64, for each weight type, KV type and model shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from syshax_kernels.context import Context, available_isas
from syshax_kernels.kernel_errors import KernelError
from syshax_kernels.model import KvSlice, Model, ModelShape, Seq
from syshax_kernels.types import DType
from tests.crc32c import crc32c
from tests.kernels.reference import build, logits, random_weights

ISAS = available_isas()


def freqs(dim: int) -> list[float]:
    return [float(10000.0 ** (-2 * i / dim)) for i in range(dim // 2)]


SHAPE = ModelShape(
    n_layers=2,
    d_model=96,
    n_heads=6,
    n_kv_heads=2,
    head_dim=32,
    d_ff=160,
    vocab=130,
    rope_freqs=freqs(32),
    norm_eps=1e-5,
    max_context=1024,
    kv_blocks=80,
    kv_block_size=16,
    kv_type=DType.F32,
    max_batch_tokens=700,
)


def tokens(n: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, SHAPE.vocab, n)]


def blocks_for(shape: ModelShape, n: int) -> list[int]:
    return list(range((n + shape.kv_block_size - 1) // shape.kv_block_size))


def run(model: Model, ids: Sequence[int]) -> NDArray[Any]:
    return model.forward([Seq(ids, 0, blocks_for(model.shape, len(ids)), logits=2)])


def relative(got: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.sqrt(((got - expected) ** 2).mean() / (expected**2).mean()))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "kind,bound", [(DType.F32, 3e-6), (DType.F16, 3e-6), (DType.BF16, 3e-6), (DType.Q8_0, 2e-2), (DType.Q4_0, 3e-2)]
)
def test_logits_are_those_of_the_reference(isa: str, kind: DType, bound: float) -> None:
    """Float weights: f32 rounding only. Quantised weights: 8-bit activations cost about 1 % in the logits."""
    weights = random_weights(SHAPE, kind, seed=1)
    ids = tokens(45)
    with Context(threads=2, isa=isa) as ctx, build(ctx, weights) as model:
        assert relative(run(model, ids), logits(weights, ids)) < bound


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "change",
    [
        {"head_dim": 16, "rope_freqs": freqs(16)},
        {"head_dim": 80, "rope_freqs": freqs(80)},
        {"head_dim": 96, "rope_freqs": freqs(96), "n_kv_heads": 6},
        {"head_dim": 128, "rope_freqs": freqs(128), "n_kv_heads": 1},
        {"head_dim": 64, "rope_freqs": freqs(32)},
        {"kv_block_size": 8, "kv_blocks": 160},
        {"kv_block_size": 256, "kv_blocks": 4},
        {"sliding_window": 37},
        {"alibi_slopes": [2.0 ** -(i + 1) for i in range(6)]},
        {"d_model": 80, "d_ff": 112, "vocab": 131},
    ],
    ids=lambda change: "-".join(f"{k}" for k in change),
)
def test_shapes(isa: str, change: Any) -> None:
    shape = dataclasses.replace(SHAPE, **change)
    weights = random_weights(shape, DType.F32, seed=2)
    ids = tokens(70)
    with Context(threads=2, isa=isa) as ctx, build(ctx, weights) as model:
        assert relative(run(model, ids), logits(weights, ids)) < 3e-6


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind,bound", [(DType.F32, 3e-6), (DType.F16, 1e-3), (DType.BF16, 8e-3), (DType.Q8_0, 8e-3)])
@pytest.mark.parametrize("size", [8, 32])
def test_kv_types_over_several_pieces_of_context(isa: str, kind: DType, bound: float, size: int) -> None:
    shape = dataclasses.replace(SHAPE, kv_type=kind, kv_block_size=size, kv_blocks=640 // size, n_layers=1)
    weights = random_weights(shape, DType.F32, seed=3)
    ids = tokens(600)
    with Context(threads=2, isa=isa) as ctx, build(ctx, weights) as model:
        assert relative(run(model, ids), logits(weights, ids)) < bound


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("biases", [True, False])
def test_tied_and_own_output_matrix_with_and_without_biases(tied: bool, biases: bool) -> None:
    weights = random_weights(SHAPE, DType.F16, seed=4, biases=biases, tied=tied)
    ids = tokens(20)
    with Context() as ctx, build(ctx, weights) as model:
        assert relative(run(model, ids), logits(weights, ids)) < 3e-6


@pytest.mark.parametrize("wire", [DType.F32, DType.F16, DType.BF16])
@pytest.mark.parametrize("kv", [DType.F32, DType.F16, DType.BF16])
def test_exported_kv_continues_a_sequence_elsewhere(wire: DType, kv: DType) -> None:
    shape = dataclasses.replace(SHAPE, kv_type=kv)
    weights = random_weights(shape, DType.F32, seed=5)
    ids, cut, n = tokens(150), 149, 64
    with Context(threads=2) as ctx, build(ctx, weights) as one, build(ctx, weights) as two:
        here, there = blocks_for(shape, len(ids)), list(range(79, 69, -1))
        expected = run(one, ids)[-1:]
        for first in range(0, cut, n):
            chunk = np.zeros(one.chunk_bytes(n, wire), np.uint8)
            count = min(n, cut - first)
            one.export_kv(KvSlice(here, first, count, n, wire_type=wire), chunk)
            for head in range(2):
                two.import_kv(KvSlice(there, first, count, n, wire_type=wire, head_first=head, head_count=1), chunk)
        got = two.forward([Seq(ids[cut:], cut, there)])
    if kv == wire or wire == DType.F32:
        assert np.array_equal(got, expected)
    assert relative(got, expected) < 2e-2


@pytest.mark.parametrize("kind,largest", [(DType.F16, 0x7BFF), (DType.BF16, 0x7F80)])
@pytest.mark.parametrize("size", [8, 64])
def test_kv_of_the_wire_s_own_type_comes_back_bit_for_bit(kind: DType, largest: int, size: int) -> None:
    """But for f16's infinities, which become its largest number: a masked key times 0 must stay 0."""
    shape = dataclasses.replace(SHAPE, kv_type=kind, kv_block_size=size, kv_blocks=128 // size)
    n, blocks = 64, list(range(64 // size, 0, -1))
    with Context() as ctx, Model(ctx, shape) as model:
        sent = np.random.default_rng(9).integers(0, 0x7B00, model.chunk_bytes(n, kind) // 2).astype(np.uint16)
        sent[:2] = 0x7C00 if kind == DType.F16 else 0x7F80, 0xFC00 if kind == DType.F16 else 0xFF80
        back = np.zeros_like(sent)
        part = KvSlice(blocks, 0, n, n, wire_type=kind)
        model.import_kv(part, sent.view(np.uint8))
        model.export_kv(part, back.view(np.uint8))
    assert np.array_equal(back[2:], sent[2:])
    assert back[:2].tolist() == [largest, largest | 0x8000]


@pytest.mark.parametrize("wire", [DType.F32, DType.F16])
@pytest.mark.parametrize("kv", [DType.F32, DType.BF16, DType.Q8_0])
@pytest.mark.parametrize("size", [8, 16])
def test_copies_tell_the_checksum_of_their_part_of_the_chunk(wire: DType, kv: DType, size: int) -> None:
    shape = dataclasses.replace(SHAPE, kv_type=kv, kv_block_size=size)
    weights, ids, n = random_weights(shape, DType.F32, seed=8), tokens(60), 64
    with Context(threads=3) as ctx, build(ctx, weights) as model:
        run(model, ids)
        blocks, chunk = blocks_for(shape, len(ids)), np.zeros(model.chunk_bytes(n, wire), np.uint8)
        for first, count, at, head, heads in ((0, 60, 0, 0, 0), (5, 37, 9, 0, 0), (16, 16, 0, 1, 1), (0, 0, 0, 0, 1)):
            part = KvSlice(blocks, first, count, n, at, wire, head, heads)
            crc = model.export_kv(part, chunk)
            planes = chunk.reshape(2 * shape.n_layers, n, shape.n_kv_heads, -1)
            there = planes[:, at : at + count, head : head + (heads or shape.n_kv_heads)]
            assert crc == crc32c(there.tobytes()) == model.import_kv(part, chunk)


def test_a_chunk_is_laid_out_as_the_contract_says() -> None:
    weights = random_weights(SHAPE, DType.F32, seed=6)
    ids, n = tokens(20), 64
    with Context() as ctx, build(ctx, weights) as model:
        run(model, ids)
        whole = np.zeros(model.chunk_bytes(n, DType.F32), np.uint8)
        model.export_kv(KvSlice(blocks_for(SHAPE, 20), 0, 20, n, wire_type=DType.F32), whole)
        part = np.zeros_like(whole)
        model.export_kv(KvSlice(blocks_for(SHAPE, 20), 17, 3, n, 40, DType.F32, head_first=1), part)
    shaped = (SHAPE.n_layers, 2, n, SHAPE.n_kv_heads, SHAPE.head_dim)
    a, b = whole.view(np.float32).reshape(shaped), part.view(np.float32).reshape(shaped)
    assert np.array_equal(b[:, :, 40:43, 1], a[:, :, 17:20, 1])
    assert np.count_nonzero(b) == b[:, :, 40:43, 1].size


@pytest.mark.parametrize(
    "seq,text",
    [
        (Seq([5, 130], 0, [0]), "expected tokens 0 to 129, got 130"),
        (Seq([5], 0, [80]), "expected blocks 0 to 79, got 80"),
        (Seq([5], 16, [0]), "don't cover 17 tokens"),
        (Seq([5], 1024, list(range(65))), "beyond max_context 1024"),
        (Seq([5] * 701, 0, list(range(44))), "at most max_batch_tokens"),
        (Seq([], 0, [0]), "not a slice"),
        (Seq([5], 0, [0], logits=3), "logits is 0, 1 or 2"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_batch_that_does_not_fit_is_refused(seq: Seq, text: str) -> None:
    with Context() as ctx, build(ctx, random_weights(SHAPE, DType.F32, seed=7)) as model:
        with pytest.raises(KernelError, match=text):
            model.forward([seq], out=np.empty((3, SHAPE.vocab), np.float32))


def test_an_unfinished_model_says_what_is_missing() -> None:
    with Context() as ctx, Model(ctx, SHAPE) as model:
        with pytest.raises(KernelError, match="token embedding is missing"):
            model.finish()
        with pytest.raises(KernelError, match="not finished"):
            model.forward([Seq([1], 0, [0])])


def test_no_sequences_give_no_logits() -> None:
    with Context() as ctx, build(ctx, random_weights(SHAPE, DType.F32, seed=8)) as model:
        assert model.forward([]).shape == (0, SHAPE.vocab)
