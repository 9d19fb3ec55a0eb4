"""Where K and V of a token lie in a paged KV cache, for every layout that vLLM's back ends use.

Each layer becomes one K and one V view [block, token, head, head size], so that every copy is an ordinary strided one:
CUDA by the tensor's strides, Ascend from its (K, V) tuple, CPU_ATTN by probing the op that fills it (K is stored
transposed there). Where the probed order has no strides (AMX packs both for its tiles) it is an index table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Protocol

import torch

from syshax_kernels.library import Library
from syshax_kernels.paged_kv import Pages, Shape, Side
from syshax_kernels.pool_types import BF16, F16, F32

CHUNK_TOKENS = 64
KINDS = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16}
Fill = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


class Piece(NamedTuple):
    """Tokens in a row that share a block and a chunk."""

    block: int  # as the cache numbers them
    at: int  # first token inside the block
    chunk: int
    chunk_at: int
    n: int


def pieces(start: int, end: int, blocks: Sequence[int], block_size: int) -> Iterator[Piece]:
    """Cuts tokens start .. end at the borders of blocks and chunks. `blocks`: from the one that holds `start` on."""
    token, first = start, start // block_size
    while token < end:
        in_block, in_chunk = token % block_size, token % CHUNK_TOKENS
        n = min(end - token, block_size - in_block, CHUNK_TOKENS - in_chunk)
        yield Piece(blocks[token // block_size - first], in_block, token // CHUNK_TOKENS, in_chunk, n)
        token += n


def kernel_blocks(start: int, blocks: Sequence[int], block_size: int, kernel_size: int) -> list[int]:
    """Blocks of the scheduler as the smaller ones of the cache tensor, from the one that holds `start` on."""
    ratio = block_size // kernel_size
    small = [block * ratio + i for block in blocks for i in range(ratio)]
    return small[start % block_size // kernel_size :]


class Half(Protocol):
    """K or V of one layer."""

    def read(self, piece: Piece, out: torch.Tensor) -> None:
        """Copies a piece to `out` [n, heads, head size], converting."""

    def write(self, piece: Piece, data: torch.Tensor) -> None:
        """Copies `data` [n, heads, head size] into the cache, converting."""

    def side(self) -> Side:
        """The same for the native core; the memory must be the CPU's."""


@dataclass(frozen=True)
class Strided:
    """`view` [block, token, head, head size]."""

    view: torch.Tensor

    def read(self, piece: Piece, out: torch.Tensor) -> None:
        out.copy_(self.view[piece.block, piece.at : piece.at + piece.n], non_blocking=True)

    def write(self, piece: Piece, data: torch.Tensor) -> None:
        self.view[piece.block, piece.at : piece.at + piece.n].copy_(data, non_blocking=True)

    def side(self) -> Side:
        block, token, head, dim = self.view.stride()
        return Side(self.view.data_ptr(), block, token, head, dim)


@dataclass(frozen=True)
class Indexed:
    """`cells` [block, head, cell]; `places` [token, head size]: the cell of each element."""

    cells: torch.Tensor
    places: torch.Tensor

    def read(self, piece: Piece, out: torch.Tensor) -> None:
        found = self.cells[piece.block][:, self.places[piece.at : piece.at + piece.n]]
        out.copy_(found.transpose(0, 1))

    def write(self, piece: Piece, data: torch.Tensor) -> None:
        places = self.places[piece.at : piece.at + piece.n]
        self.cells[piece.block][:, places] = data.transpose(0, 1).to(self.cells.dtype)

    def side(self) -> Side:
        block, head, _ = self.cells.stride()
        return Side(self.cells.data_ptr(), block, 0, head, 0, self.places.flatten().tolist())


@dataclass(frozen=True)
class LayerKV:
    """One layer of a cache. `block_size`: of the tensor, which may divide the scheduler's."""

    k: Half
    v: Half
    block_size: int
    heads: int
    blocks: int
    dtype: torch.dtype


def pages_of(layers: Sequence[LayerKV], head_size: int, library: Library | None = None) -> Pages:
    """All layers of a cache in the CPU's memory, for the native core."""
    one = layers[0]
    sides = [half.side() for layer in layers for half in (layer.k, layer.v)]
    return Pages(sides, Shape(KINDS[one.dtype], one.blocks, one.block_size, one.heads, head_size), library)


def layer_of(cache: Any, head_size: int, fill: Fill | None = None) -> LayerKV:
    """Views on the cache of one layer, as vLLM gives it to register_kv_caches().

    `fill`: the op of CPU_ATTN, where that is the back end. ValueError: a shape we don't know.
    """
    if isinstance(cache, (tuple, list)):
        return _split(*cache)
    shape = tuple(cache.shape)
    if len(shape) == 4 and shape[-1] == 2 * head_size:
        return _joined(cache) if fill is None else _cpu_joined(cache, fill)
    if len(shape) == 5 and shape[-1] == head_size and 2 in shape[:2]:
        k, v = cache.unbind(0 if shape[0] == 2 else 1)
        return _split(k, v) if fill is None else _cpu_split(k, v, fill)
    raise ValueError(f"KV cache of shape {shape} with head size {head_size} is of no layout we know")


def _split(k: torch.Tensor, v: torch.Tensor) -> LayerKV:
    """K and V [block, token, head, head size] each: Ascend, and CUDA in older versions."""
    return LayerKV(Strided(k), Strided(v), k.shape[1], k.shape[2], k.shape[0], k.dtype)


def _joined(cache: torch.Tensor) -> LayerKV:
    """[block, head, token, K and V], in any order of memory."""
    k, v = cache.permute(0, 2, 1, 3).split(cache.shape[3] // 2, dim=3)
    return LayerKV(Strided(k), Strided(v), cache.shape[2], cache.shape[1], cache.shape[0], cache.dtype)


def _cpu_joined(cache: torch.Tensor, fill: Fill) -> LayerKV:
    """[block, head, token, K and V] by name only: the op orders the inside of a block and head as it likes."""
    blocks, heads, block_size, both = cache.shape
    cells = cache.view(blocks, heads, block_size * both)
    k, v = probe(block_size, both // 2, cache.dtype, fill)
    return LayerKV(_half(cells, k), _half(cells, v), block_size, heads, blocks, cache.dtype)


def _cpu_split(k: torch.Tensor, v: torch.Tensor, fill: Fill) -> LayerKV:
    """K and V [block, head, token, head size] each, again by name only."""
    blocks, heads, block_size, head_size = k.shape
    cells = block_size * head_size
    of_k, of_v = probe(block_size, head_size, k.dtype, fill)
    flat_k, flat_v = k.view(blocks, heads, cells), v.view(blocks, heads, cells)
    return LayerKV(_half(flat_k, of_k), _half(flat_v, of_v - cells), block_size, heads, blocks, k.dtype)


def _half(cells: torch.Tensor, places: torch.Tensor) -> Half:
    """A strided view where the places are a grid, else the table itself."""
    first = int(places[0, 0])
    per_token, per_dim = int(places[1, 0]) - first, int(places[0, 1]) - first
    tokens, dims = places.shape
    grid = first + torch.arange(tokens)[:, None] * per_token + torch.arange(dims)[None] * per_dim
    if not torch.equal(grid, places):
        return Indexed(cells, places)
    blocks, heads, _ = cells.shape
    shape, stride = (blocks, tokens, heads, dims), (cells.stride(0), per_token, cells.stride(1), per_dim)
    return Strided(cells.as_strided(shape, stride, cells.storage_offset() + first))


def probe(block_size: int, head_size: int, dtype: torch.dtype, fill: Fill) -> torch.Tensor:
    """[K or V, token, head size]: the cell of a block in which `fill` puts each element of one head.

    Elements are written as digits of base 128, which every KV type holds exactly.
    """
    token = torch.arange(block_size)[:, None].expand(block_size, head_size)
    dim = torch.arange(head_size)[None].expand(block_size, head_size)
    number = token * head_size + dim
    cells = block_size * head_size
    found = torch.zeros(2 * cells, dtype=torch.long)
    for place in (1, 128, 128 * 128):
        digit = (number // place % 128)[:, None].to(dtype).contiguous()
        found += _filled(digit, digit.clone(), fill) * place
    zeros = torch.zeros(block_size, 1, head_size, dtype=dtype)
    found += _filled(zeros, torch.ones_like(zeros), fill) * cells
    if not torch.equal(found.sort().values, torch.arange(2 * cells)):
        raise ValueError(f"vLLM's CPU cache of block size {block_size}, head size {head_size} is not a permutation")
    return found.argsort().view(2, block_size, head_size)


def _filled(k: torch.Tensor, v: torch.Tensor, fill: Fill) -> torch.Tensor:
    """The cells of one block and head after `fill`."""
    cache = torch.zeros(1, 1, k.shape[0], 2 * k.shape[2], dtype=k.dtype)
    fill(k, v, cache)
    return cache.view(-1).float().long()
