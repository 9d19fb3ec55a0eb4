"""KV of every shape that vLLM's back ends use goes through chunks into every other one. CPU tensors, no vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syshax_kernels.kernel_errors import KernelError
from syshax_kernels.paged_kv import Chunk, PagesPart
from syshax_kernels.pool import BF16, F16, F32, Geometry, Inbox, Outbox
from syshax_vllm.layout import CHUNK_TOKENS, Fill, Indexed, LayerKV, Strided, kernel_blocks, layer_of, pages_of, pieces
from tests.crc32c import crc32c

HEADS, HEAD_SIZE, TOKENS = 2, 32, 300
Rows = tuple[torch.Tensor, torch.Tensor]


def fill_vec(k: torch.Tensor, v: torch.Tensor, cache: torch.Tensor) -> None:
    """One block and head as the vector code of CPU_ATTN has it: K transposed, then V."""
    cache.view(-1)[:] = torch.cat((k[:, 0].T.reshape(-1), v[:, 0].reshape(-1)))


def fill_pairs(k: torch.Tensor, v: torch.Tensor, cache: torch.Tensor) -> None:
    """Both packed in pairs of tokens and pairs of dimensions, as for matrix tiles: no strides say that."""
    n, _, d = k.shape
    packed_k = k[:, 0].view(n, d // 2, 2).transpose(0, 1)
    packed_v = v[:, 0].view(n // 2, 2, d).transpose(1, 2)
    cache.view(-1)[:] = torch.cat((packed_k.reshape(-1), packed_v.reshape(-1)))


def joined_by_token(blocks: int, size: int) -> Any:
    """CUDA, token-major in memory."""
    return torch.zeros(blocks, size, HEADS, 2 * HEAD_SIZE).transpose(1, 2)


MAKERS: dict[str, Callable[[int, int], Any]] = {
    "cuda, heads first": lambda blocks, size: torch.zeros(blocks, HEADS, size, 2 * HEAD_SIZE),
    "cuda, tokens first": joined_by_token,
    "cuda, every second block of a larger cache": lambda blocks, size: torch.zeros(
        2 * blocks, size, 2 * HEADS, 2 * HEAD_SIZE
    ).transpose(1, 2)[::2, :HEADS],
    "cuda, K and V apart": lambda blocks, size: torch.zeros(2, blocks, size, HEADS, HEAD_SIZE),
    "flashinfer": lambda blocks, size: torch.zeros(blocks, 2, size, HEADS, HEAD_SIZE),
    "ascend": lambda blocks, size: tuple(torch.zeros(2, blocks, size, HEADS, HEAD_SIZE)),
    "cpu, vectors": lambda blocks, size: torch.zeros(blocks, HEADS, size, 2 * HEAD_SIZE),
    "cpu, tiles": lambda blocks, size: torch.zeros(blocks, HEADS, size, 2 * HEAD_SIZE),
    "cpu, K and V apart": lambda blocks, size: torch.zeros(2, blocks, HEADS, size, HEAD_SIZE),
}
TYPES = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16}
FILLS: dict[str, Fill] = {"cpu, vectors": fill_vec, "cpu, tiles": fill_pairs, "cpu, K and V apart": fill_vec}


def layer(kind: str, size: int, dtype: torch.dtype = torch.float32) -> LayerKV:
    """An empty cache of that kind with room for TOKENS tokens twice."""
    return layer_of(made(kind, size, dtype), HEAD_SIZE, FILLS.get(kind))


def made(kind: str, size: int, dtype: torch.dtype) -> Any:
    """The same, as vLLM gives it."""
    cache = MAKERS[kind](2 * TOKENS // size + 4, size)
    return tuple(half.to(dtype) for half in cache) if isinstance(cache, tuple) else retyped(cache, dtype)


def retyped(cache: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Zeros of another type with the same strides."""
    size = 1 + sum((n - 1) * step for n, step in zip(cache.shape, cache.stride()))
    return torch.zeros(size, dtype=dtype).as_strided(cache.shape, cache.stride())


def copy(cache: LayerKV, chunks: torch.Tensor, start: int, end: int, table: list[int], out: bool) -> None:
    """Tokens between a cache and `chunks` [chunk, K or V, token, head, head size]."""
    for piece in pieces(start, end, table, cache.block_size):
        for half, data in zip((cache.k, cache.v), chunks[piece.chunk]):
            part = data[piece.chunk_at : piece.chunk_at + piece.n]
            half.read(piece, part) if out else half.write(piece, part)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(MAKERS)), st.sampled_from(sorted(MAKERS)), st.sampled_from([32, 64, 128]),
    st.sampled_from([32, 64, 128]), st.integers(0, TOKENS - 1), st.integers(1, TOKENS), st.randoms(),
)  # fmt: skip
def test_any_layout_into_any_other(
    source: str, target: str, from_size: int, to_size: int, start: int, length: int, random: Any
) -> None:
    end = min(start + length, TOKENS)
    truth = torch.randn(-(-TOKENS // CHUNK_TOKENS), 2, CHUNK_TOKENS, HEADS, HEAD_SIZE)
    wire, back = torch.zeros_like(truth), torch.zeros_like(truth)
    for kind, size, fed, read in ((source, from_size, truth, wire), (target, to_size, wire, back)):
        cache = layer(kind, size)
        count = -(-end // size) - start // size
        table = random.sample(range(2 * TOKENS // size + 4), count)
        copy(cache, fed, start, end, table, out=False)
        copy(cache, read, start, end, table, out=True)
    flat, found = (t.transpose(1, 2).reshape(-1, 2, HEADS, HEAD_SIZE) for t in (truth, back))
    assert torch.equal(found[start:end], flat[start:end])
    assert not found[:start].any() and not found[end:].any()


@given(st.sampled_from([32, 64, 128]), st.sampled_from([16, 32]), st.integers(0, 999), st.integers(1, 500))
def test_small_blocks_of_the_cache_inside_large_ones(size: int, small: int, start: int, length: int) -> None:
    end = start + length
    table = list(range(start // size, -(-end // size)))  # block number = its place: token t is in block t // size
    found = list(pieces(start, end, kernel_blocks(start, table, size, small), small))
    tokens = [p.block * small + p.at + i for p in found for i in range(p.n)]
    assert tokens == list(range(start, end))
    assert tokens == [p.chunk * CHUNK_TOKENS + p.chunk_at + i for p in found for i in range(p.n)]


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from(sorted(MAKERS)), st.sampled_from([32, 64, 128]), st.sampled_from(list(TYPES)),
    st.sampled_from(list(TYPES)), st.integers(0, CHUNK_TOKENS - 1), st.integers(1, CHUNK_TOKENS),
    st.sampled_from([0, 1]), st.randoms(),
)  # fmt: skip
def test_the_native_core_copies_what_torch_does(
    kind: str, size: int, dtype: torch.dtype, wire: torch.dtype, start: int, length: int, first_head: int, random: Any
) -> None:
    """One layer; a chunk has one more head than the cache, as that of a rank among several."""
    end = min(start + length, CHUNK_TOKENS)
    table = random.sample(range(2 * TOKENS // size + 4), -(-end // size) - start // size)
    truth = torch.randn(1, 2, CHUNK_TOKENS, HEADS + 1, HEAD_SIZE).to(wire)
    mine = slice(first_head, first_head + HEADS)
    by_torch, native = layer(kind, size, dtype), layer(kind, size, dtype)
    part = PagesPart(table, start % size, end - start, start)
    copy(by_torch, truth[:, :, :, mine], start, end, table, out=False)
    crc = pages_of([native], HEAD_SIZE).copy_in(part, chunk_of(truth, first_head))
    assert crc == crc32c(bytes_of(truth[:, :, start:end, mine]))
    found = [torch.zeros_like(truth) for _ in range(3)]
    copy(by_torch, found[0][:, :, :, mine], start, end, table, out=True)
    copy(native, found[1][:, :, :, mine], start, end, table, out=True)
    crc = pages_of([native], HEAD_SIZE).copy_out(part, chunk_of(found[2], first_head))
    assert crc == crc32c(bytes_of(found[2][:, :, start:end, mine]))
    assert found[0].any() and torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def bytes_of(data: torch.Tensor) -> bytes:
    """As they lie in memory, one element after the other."""
    return bytes(data.contiguous().view(torch.uint8).numpy())


def chunk_of(data: torch.Tensor, first_head: int) -> Chunk:
    """The tensor [1, K or V, token, head, head size] as a chunk."""
    return Chunk(data.data_ptr(), TYPES[data.dtype], CHUNK_TOKENS, data.shape[3], first_head)


def joined_row(cache: Any, block: int, at: int) -> Rows:
    return cache[block, :, at, :HEAD_SIZE], cache[block, :, at, HEAD_SIZE:]


def vector_row(cache: Any, block: int, at: int) -> Rows:
    size = cache.shape[2]
    k, v = cache[block].reshape(HEADS, 2, size * HEAD_SIZE).unbind(1)
    return k.view(HEADS, HEAD_SIZE, size)[:, :, at], v.view(HEADS, size, HEAD_SIZE)[:, at]


def tile_row(cache: Any, block: int, at: int) -> Rows:
    size = cache.shape[2]
    k, v = cache[block].reshape(HEADS, 2, size * HEAD_SIZE).unbind(1)
    pairs = k.view(HEADS, HEAD_SIZE // 2, size, 2)[:, :, at]
    return pairs.reshape(HEADS, HEAD_SIZE), v.view(HEADS, size // 2, HEAD_SIZE, 2)[:, at // 2, :, at % 2]


# Where K and V [head, head size] of a token lie, said without the code under test.
ACCELERATORS: dict[str, Callable[[Any, int, int], Rows]] = {
    "cuda, heads first": joined_row,
    "cuda, tokens first": joined_row,
    "cuda, every second block of a larger cache": joined_row,
    "cuda, K and V apart": lambda cache, block, at: (cache[0, block, at], cache[1, block, at]),
    "flashinfer": lambda cache, block, at: (cache[block, 0, at], cache[block, 1, at]),
    "ascend": lambda cache, block, at: (cache[0][block, at], cache[1][block, at]),
}
CPUS: dict[str, Callable[[Any, int, int], Rows]] = {
    "cpu, vectors": vector_row,
    "cpu, tiles": tile_row,
    "cpu, K and V apart": lambda cache, block, at: (
        cache[0, block].view(HEADS, HEAD_SIZE, -1)[:, :, at], cache[1, block, :, at]
    ),
}  # fmt: skip
LAYERS, LENGTH = 2, 200


@pytest.mark.parametrize("wire", list(TYPES))
@pytest.mark.parametrize("cpu, cpu_size", [("cpu, vectors", 32), ("cpu, tiles", 128), ("cpu, K and V apart", 64)])
@pytest.mark.parametrize("kind", sorted(ACCELERATORS))
def test_an_accelerator_s_kv_comes_to_the_cpus_through_a_pool(
    kind: str, cpu: str, cpu_size: int, wire: torch.dtype, tmp_path: Path
) -> None:
    """Copied as units do: out with torch, as beside a device, and in by the native core; every element is looked up."""
    size = 128 if kind == "ascend" else 16
    dtype = torch.float32 if wire == torch.float32 else torch.float16
    count = torch.arange(LAYERS * 2 * LENGTH * HEADS * HEAD_SIZE)
    numbers = count + 1.0 if wire == torch.float32 else count * 7 % 251 - 125.0  # exact in every type
    truth = numbers.to(dtype).view(LAYERS, 2, LENGTH, HEADS, HEAD_SIZE)
    tables = [list(range(LENGTH // s + 1, 0, -1)) for s in (size, cpu_size)]
    caches = [made(kind, size, dtype) for _ in range(LAYERS)]
    for cache, data in zip(caches, truth):
        for token in range(LENGTH):
            for row, half in zip(ACCELERATORS[kind](cache, tables[0][token // size], token % size), data):
                row.copy_(half[token])
    found = [made(cpu, cpu_size, torch.float32) for _ in range(LAYERS)]
    path, shape = str(tmp_path / "gpu.pool"), Geometry(LAYERS, HEADS, HEAD_SIZE, TYPES[wire], b"m".ljust(32))
    with Outbox.create(path, shape, chunks=4, tickets=1, max_tokens=LENGTH) as outbox, Inbox.open(path, shape) as inbox:
        save_as_an_accelerator(outbox, [layer_of(cache, HEAD_SIZE) for cache in caches], tables[0], wire)
        load_as_cpus(inbox, [layer_of(cache, HEAD_SIZE, FILLS[cpu]) for cache in found], tables[1], wire)
    for cache, data in zip(found, truth):
        for token in range(LENGTH):
            rows = CPUS[cpu](cache, tables[1][token // cpu_size], token % cpu_size)
            assert torch.equal(torch.stack(rows), data[:, token].float())


TICKET = bytes(range(16))


def save_as_an_accelerator(outbox: Outbox, layers: list[LayerKV], table: list[int], wire: torch.dtype) -> None:
    """A READY ticket of LENGTH tokens."""
    ticket = outbox.begin(TICKET, 60)
    ticket.append(range(LENGTH))
    for piece in pieces(0, LENGTH, table, layers[0].block_size):
        flat = torch.frombuffer(ticket.chunk(piece.chunk), dtype=wire)
        chunk = flat[: LAYERS * 2 * CHUNK_TOKENS * HEADS * HEAD_SIZE].view(LAYERS, 2, CHUNK_TOKENS, HEADS, HEAD_SIZE)
        for one, data in zip(layers, chunk[:, :, piece.chunk_at : piece.chunk_at + piece.n]):
            one.k.read(piece, data[0])
            one.v.read(piece, data[1])
    for index in range(-(-LENGTH // CHUNK_TOKENS)):
        ticket.seal(index)
    ticket.publish(LENGTH)


def load_as_cpus(inbox: Inbox, layers: list[LayerKV], table: list[int], wire: torch.dtype) -> None:
    """All of the ticket."""
    view, pages = inbox.pin(TICKET), pages_of(layers, HEAD_SIZE)
    for index in range(view.n_chunks):
        found = view.locate(index)
        block, first = divmod(index * CHUNK_TOKENS, layers[0].block_size)
        part = PagesPart(table[block:], first, found.n_tokens, 0)
        view.match(index, found.n_tokens, pages.copy_in(part, Chunk(found.address, TYPES[wire], CHUNK_TOKENS, HEADS)))
    view.release()


def test_infinity_becomes_finite_in_half_precision() -> None:
    cache = layer("cpu, vectors", 32, torch.float16)
    wire = torch.full((1, 2, CHUNK_TOKENS, HEADS, HEAD_SIZE), float("-inf"), dtype=torch.float16)
    pages_of([cache], HEAD_SIZE).copy_in(PagesPart([0, 1], 0, CHUNK_TOKENS, 0), chunk_of(wire, 0))
    found = torch.zeros_like(wire)
    copy(cache, found, 0, CHUNK_TOKENS, [0, 1], out=True)
    assert (found == -65504).all()


@pytest.mark.parametrize(
    "part", [PagesPart([9999], 0, 8, 0), PagesPart([0], 30, 8, 0), PagesPart([0], 0, 8, 60), PagesPart([-1], 0, 8, 0)]
)
def test_tokens_that_are_not_there_are_refused(part: PagesPart) -> None:
    wire = torch.zeros(1, 2, CHUNK_TOKENS, HEADS, HEAD_SIZE)
    with pytest.raises(KernelError, match="pages:"):
        pages_of([layer("cpu, vectors", 32)], HEAD_SIZE).copy_out(part, chunk_of(wire, 0))


def test_probing_finds_strides_where_there_are_some() -> None:
    vectors, tiles = layer("cpu, vectors", 32), layer("cpu, tiles", 32)
    assert isinstance(vectors.k, Strided) and isinstance(vectors.v, Strided)
    assert isinstance(tiles.k, Indexed) or isinstance(tiles.v, Indexed)
