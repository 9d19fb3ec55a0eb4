"""KV of every shape that vLLM's back ends use goes through chunks into every other one. CPU tensors, no vLLM."""

from __future__ import annotations

from typing import Any, Callable, Dict, List

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from syshax_vllm.layout import CHUNK_TOKENS, Fill, Indexed, LayerKV, Strided, kernel_blocks, layer_of, pieces

HEADS, HEAD_SIZE, TOKENS = 2, 32, 300


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


MAKERS: Dict[str, Callable[[int, int], Any]] = {
    "cuda, heads first": lambda blocks, size: torch.zeros(blocks, HEADS, size, 2 * HEAD_SIZE),
    "cuda, tokens first": joined_by_token,
    "cuda, K and V apart": lambda blocks, size: torch.zeros(2, blocks, size, HEADS, HEAD_SIZE),
    "flashinfer": lambda blocks, size: torch.zeros(blocks, 2, size, HEADS, HEAD_SIZE),
    "ascend": lambda blocks, size: tuple(torch.zeros(2, blocks, size, HEADS, HEAD_SIZE)),
    "cpu, vectors": lambda blocks, size: torch.zeros(blocks, HEADS, size, 2 * HEAD_SIZE),
    "cpu, tiles": lambda blocks, size: torch.zeros(blocks, HEADS, size, 2 * HEAD_SIZE),
    "cpu, K and V apart": lambda blocks, size: torch.zeros(2, blocks, HEADS, size, HEAD_SIZE),
}
FILLS: Dict[str, Fill] = {"cpu, vectors": fill_vec, "cpu, tiles": fill_pairs, "cpu, K and V apart": fill_vec}


def layer(kind: str, size: int) -> LayerKV:
    """An empty cache of that kind with room for TOKENS tokens twice."""
    return layer_of(MAKERS[kind](2 * TOKENS // size + 4, size), HEAD_SIZE, FILLS.get(kind))


def copy(cache: LayerKV, chunks: torch.Tensor, start: int, end: int, table: List[int], out: bool) -> None:
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


def test_probing_finds_strides_where_there_are_some() -> None:
    vectors, tiles = layer("cpu, vectors", 32), layer("cpu, tiles", 32)
    assert isinstance(vectors.k, Strided) and isinstance(vectors.v, Strided)
    assert isinstance(tiles.k, Indexed) or isinstance(tiles.v, Indexed)
