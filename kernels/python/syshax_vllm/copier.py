"""Copies between a worker's paged cache and handoff chunks: by the native core on CPUs, by torch on an accelerator.

On CPUs a few threads copy: saves in the step (the compute threads rest then), loads beside it. On an accelerator torch
does, on one thread and a stream of its own, with the pool registered as pinned memory, so that no step waits. That part
follows CUDA's documentation and has not been run.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Callable, Protocol

import torch

from syshax_handoff.chunks import ChunkPart, Copy, Then
from syshax_kernels import paged_kv as pages
from syshax_kernels.library import Library
from syshax_kernels.pool import BF16, CHUNK_TOKENS, F16, F32, PoolInfo
from syshax_vllm.layout import LayerKV, kernel_blocks, pages_of, pieces
from syshax_vllm.meta import Load, Write

log = logging.getLogger("vllm.syshax")

MAX_HELPERS = 4  # threads that copy on CPUs: a few reach the bandwidth of memory

TYPES = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}
Job = Callable[[], None]


def roam() -> None:
    """Lets this thread run where the unit may: vLLM pins its worker to one CPU, and threads take that over."""
    try:
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
    except OSError as err:
        log.debug("copies stay on the CPU of the compute thread: %s", err)


class Copier(Protocol):
    """What a worker asks of the place where its cache lies."""

    sums: bool
    """Whether a copy of all heads tells its checksum."""

    def writes(self, job: Job, thread: ThreadPoolExecutor) -> Future[None] | None:
        """Has a job of writes done after what the engine has computed so far: at once, or on `thread`."""

    def mark(self) -> Any:
        """A point in the engine's work on the device, for beside()."""

    def beside(self, mark: Any) -> AbstractContextManager[Any]:
        """Copies made inside begin after that point and do not hold up the engine's own work."""

    def run(self, parts: Sequence[ChunkPart], copy: Callable[[ChunkPart], int | None], then: Then) -> None:
        """chunks.Run."""

    def copy_out(self, order: Write, heads: slice, info: PoolInfo) -> Copy:
        """From the blocks of an order to chunks of a pool."""

    def copy_in(self, order: Load, heads: slice, info: PoolInfo) -> Copy:
        """From chunks of a pool to the blocks of an order."""

    def own_pool(self, info: PoolInfo) -> None:
        """The unit's own pool is mapped here."""

    def close(self) -> None:
        """No copy is made any more."""


class OrderBlocks:
    """The blocks of an order as the cache numbers them, which may be smaller ones than the scheduler's."""

    def __init__(self, order: Write | Load, block_size: int, kernel_size: int) -> None:
        self._first, self._size = order.start // kernel_size, kernel_size
        self._blocks = kernel_blocks(order.start, order.blocks, block_size, kernel_size)

    def of(self, part: ChunkPart) -> list[int]:
        """Those that hold the tokens of a part."""
        first, until = part.first // self._size, -(-(part.first + part.count) // self._size)
        return self._blocks[first - self._first : until - self._first]


class NativeCopier:
    """A cache in the CPU's memory."""

    sums = True

    def __init__(
        self, layers: Sequence[LayerKV], head_size: int, block_size: int, ranks: int, library: Library
    ) -> None:
        """`ranks`: workers that share the CPUs of the unit."""
        self._pages = pages_of(layers, head_size, library)
        self._small, self._block_size = layers[0].block_size, block_size
        helpers = max(1, min(MAX_HELPERS, len(os.sched_getaffinity(os.getppid())) // ranks))
        self._helpers = ThreadPoolExecutor(helpers, "syshax-copy", roam)

    def writes(self, job: Job, thread: ThreadPoolExecutor) -> None:
        job()

    def mark(self) -> None:
        """The CPU has computed what it was asked to."""

    def beside(self, mark: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    def run(self, parts: Sequence[ChunkPart], copy: Callable[[ChunkPart], int | None], then: Then) -> None:
        """On the helper threads, a single part in this one; back when all have ended."""

        def move(part: ChunkPart) -> None:
            then(part, copy(part))

        if len(parts) == 1:
            return move(parts[0])
        jobs = [self._helpers.submit(move, part) for part in parts]
        wait(jobs)
        for done in jobs:
            done.result()

    def copy_out(self, order: Write, heads: slice, info: PoolInfo) -> Copy:
        return self._copy(self._pages.copy_out, order, heads, info)

    def copy_in(self, order: Load, heads: slice, info: PoolInfo) -> Copy:
        return self._copy(self._pages.copy_in, order, heads, info)

    def _copy(
        self, move: Callable[[pages.PagesPart, pages.Chunk], int], order: Write | Load, heads: slice, info: PoolInfo
    ) -> Copy:
        blocks, shape = OrderBlocks(order, self._block_size, self._small), info.geometry

        def copy(part: ChunkPart, address: int) -> int:
            chunk = pages.Chunk(address, shape.wire_type, CHUNK_TOKENS, shape.n_kv_heads, heads.start)
            return move(pages.PagesPart(blocks.of(part), part.first % self._small, part.count, part.at), chunk)

        return copy

    def own_pool(self, info: PoolInfo) -> None:
        """Memory like any other."""

    def close(self) -> None:
        self._helpers.shutdown(wait=True)


def chunk_tensor(address: int, info: PoolInfo) -> torch.Tensor:
    """A chunk as [layer, K or V, token, kv head, head size]."""
    shape = info.geometry
    memory = (ctypes.c_uint8 * info.chunk_bytes).from_address(address)
    dtype = TYPES[shape.wire_type]
    count = shape.n_layers * 2 * CHUNK_TOKENS * shape.n_kv_heads * shape.head_size
    flat = torch.frombuffer(memory, dtype=dtype, count=count)
    return flat.view(shape.n_layers, 2, CHUNK_TOKENS, shape.n_kv_heads, shape.head_size)


class TorchCopier:
    """A cache on an accelerator. Those that are not CUDA's copy on their own default stream, in the engine's thread."""

    sums = False

    def __init__(
        self, layers: Sequence[LayerKV], block_size: int, device: torch.device, thread: ThreadPoolExecutor
    ) -> None:
        self._layers, self._small, self._block_size = layers, layers[0].block_size, block_size
        self._device = device
        thread.submit(getattr(torch, device.type).set_device, device).result()  # a new thread's is number 0
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    def writes(self, job: Job, thread: ThreadPoolExecutor) -> Future[None] | None:
        if self._stream is not None:
            return thread.submit(job)
        job()
        return None

    def mark(self) -> Any:
        if self._stream is None:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def beside(self, mark: Any) -> AbstractContextManager[Any]:
        if self._stream is None:
            return nullcontext()
        self._stream.wait_event(mark)
        return torch.cuda.stream(self._stream)  # type: ignore[no-any-return]

    def run(self, parts: Sequence[ChunkPart], copy: Callable[[ChunkPart], int | None], then: Then) -> None:
        """All copies are begun, then waited for: nothing may still be writing into blocks or tickets given back."""
        try:
            for part in parts:
                copy(part)
        finally:
            self._settle()
        for part in parts:
            then(part, None)

    def _settle(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()
        else:
            getattr(torch, self._device.type).synchronize(self._device)

    def copy_out(self, order: Write, heads: slice, info: PoolInfo) -> Copy:
        blocks = OrderBlocks(order, self._block_size, self._small)

        def copy(part: ChunkPart, address: int) -> None:
            data = chunk_tensor(address, info)[:, :, :, heads]
            for piece in pieces(part.first, part.first + part.count, blocks.of(part), self._small):
                to = slice(piece.chunk_at, piece.chunk_at + piece.n)
                for layer, target in zip(self._layers, data):
                    layer.k.read(piece, target[0, to])
                    layer.v.read(piece, target[1, to])

        return copy

    def copy_in(self, order: Load, heads: slice, info: PoolInfo) -> Copy:
        blocks = OrderBlocks(order, self._block_size, self._small)

        def copy(part: ChunkPart, address: int) -> None:
            data = chunk_tensor(address, info)[:, :, :, heads]
            for piece in pieces(part.first, part.first + part.count, blocks.of(part), self._small):
                of = slice(piece.chunk_at, piece.chunk_at + piece.n)
                for layer, source in zip(self._layers, data):
                    layer.k.write(piece, source[0, of])
                    layer.v.write(piece, source[1, of])

        return copy

    def own_pool(self, info: PoolInfo) -> None:
        """Registers the pool, so that copies need no second buffer."""
        if self._stream is None:
            return
        failed = int(torch.cuda.cudart().cudaHostRegister(info.chunks, info.chunks_size, 0))
        if failed:
            log.warning("the pool is not pinned (CUDA error %d): saving takes longer", failed)

    def close(self) -> None:
        """The engine ends its device."""
