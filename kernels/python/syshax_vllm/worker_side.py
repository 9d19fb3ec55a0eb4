"""The connector in a worker: copies KV between the paged cache and the pool.

Where the cache lies on CPUs, the native core copies on a few threads: saves in the step (the compute threads rest
then), loads beside it. On an accelerator torch does, on one thread and a stream of its own, with the pool registered as
pinned memory, so that no step waits. That part follows CUDA's documentation and has not been run.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Callable

import torch

from syshax_kernels import pages
from syshax_kernels.errors import KernelError
from syshax_kernels.pool import BF16, CHUNK_TOKENS, F16, F32, Inbox, Located, PoolInfo, View, Worker, pool_library
from syshax_vllm import compat
from syshax_vllm.env import Pool
from syshax_vllm.layout import Fill, LayerKV, kernel_blocks, layer_of, pages_of, pieces
from syshax_vllm.meta import HandoffMetadata, Load, Write

log = logging.getLogger("vllm.syshax")

MAX_HELPERS = 4  # threads that copy on CPUs: a few reach the bandwidth of memory

TYPES = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}


@dataclass(frozen=True)
class Share:
    """The kv heads of this rank. More ranks than heads: a head has several, of which one writes."""

    rank: int
    ranks: int
    total: int  # kv heads of the model

    @property
    def reads(self) -> slice:
        if self.ranks <= self.total:
            return self.writes
        first = self.rank * self.total // self.ranks
        return slice(first, first + 1)

    @property
    def writes(self) -> slice:
        return slice(self.rank * self.total // self.ranks, (self.rank + 1) * self.total // self.ranks)

    @property
    def writer(self) -> int:
        """The rank that writes what this one reads."""
        if self.ranks <= self.total:
            return self.rank
        return int(-(-(self.reads.start + 1) * self.ranks // self.total) - 1)


def chunk_tensor(address: int, info: PoolInfo) -> torch.Tensor:
    """A chunk as [layer, K or V, token, kv head, head size]."""
    shape = info.geometry
    memory = (ctypes.c_uint8 * info.chunk_bytes).from_address(address)
    dtype = TYPES[shape.wire_type]
    count = shape.n_layers * 2 * CHUNK_TOKENS * shape.n_kv_heads * shape.head_size
    flat = torch.frombuffer(memory, dtype=dtype, count=count)
    return flat.view(shape.n_layers, 2, CHUNK_TOKENS, shape.n_kv_heads, shape.head_size)


def roam() -> None:
    """Lets this thread run where the unit may: vLLM pins its worker to one CPU, and threads take that over."""
    try:
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
    except OSError as err:
        log.debug("copies stay on the CPU of the compute thread: %s", err)


def helpers(ranks: int) -> int:
    """How many threads one of `ranks` workers copies with."""
    return max(1, min(MAX_HELPERS, len(os.sched_getaffinity(os.getppid())) // ranks))


class WorkerSide:
    """One rank. Results are collected until the engine asks for them."""

    def __init__(self, pool: Pool, share: Share, block_size: int, head_size: int) -> None:
        self._pool, self._share, self._block_size, self._head_size = pool, share, block_size, head_size
        self._library = pool_library()  # now: its file may be replaced while we run
        self._layers: list[LayerKV] = []
        self._device: torch.device | None = None
        self._stream: Any = None
        self._own: tuple[Worker, PoolInfo] | None = None
        self._inboxes: dict[str, Inbox] = {}
        self._pages: pages.Pages | None = None  # of a cache on CPUs
        self._thread = ThreadPoolExecutor(1, "syshax-kv", roam)
        self._helpers = ThreadPoolExecutor(helpers(share.ranks), "syshax-copy", roam)
        self._lock = threading.Lock()
        self._sent: set[str] = set()
        self._received: set[str] = set()
        self._failed: dict[str, tuple[int, ...]] = {}  # request -> blocks that were not filled

    def register(self, caches: dict[str, Any], fill: Fill | None) -> None:
        """Takes the cache of each layer, in the model's order. `fill`: see layout.layer_of()."""
        self._layers = [layer_of(cache, self._head_size, fill) for cache in caches.values()]
        first = next(iter(caches.values()))
        self._device = first[0].device
        if self._device.type != "cpu":  # a new thread's is number 0
            self._thread.submit(getattr(torch, self._device.type).set_device, self._device).result()
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)
        elif self._device.type == "cpu":
            self._pages = pages_of(self._layers, self._head_size, self._library)

    # ---- orders of a step ----
    def start(self, meta: HandoffMetadata) -> None:
        """Tails of finished requests, then loads. Also called in steps without a forward."""
        self._write(meta.tails)
        if meta.finished:
            self._run(lambda: self._note_sent(meta.finished))
        for load in meta.loads:
            self._thread.submit(self._load, load, self._mark())

    def save(self, meta: HandoffMetadata) -> None:
        """What this step's forward has computed."""
        self._write(meta.writes)

    def rescue(self, meta: HandoffMetadata) -> None:
        """Blocks that are about to be overwritten: this one waits."""
        job = self._write(meta.rescues)
        if job is not None:
            job.result()

    def results(self) -> tuple[set[str], set[str], dict[str, tuple[int, ...]]]:
        """Requests whose writes are done, whose loads are over, and of these the failed with their blocks."""
        with self._lock:
            found = self._sent, self._received, self._failed
            self._sent, self._received, self._failed = set(), set(), {}
        return found

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._helpers.shutdown(wait=True)
        if self._own is not None:
            self._own[0].close()
        for inbox in self._inboxes.values():
            inbox.close()

    # ---- where it runs ----
    def _run(self, job: Callable[[], None]) -> Future[None] | None:
        """At once on CPUs, else on the thread, in order."""
        if self._stream is None:
            job()
            return None
        return self._thread.submit(job)

    def _mark(self) -> Any:
        """An event after everything the engine has asked of the device so far."""
        if self._stream is None:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _beside(self, mark: Any) -> AbstractContextManager[Any]:
        if self._stream is None:
            return nullcontext()
        self._stream.wait_event(mark)
        return torch.cuda.stream(self._stream)  # type: ignore[no-any-return]

    def _settle(self) -> None:
        """All copies have ended. Accelerators that are not CUDA's copy on their own default stream."""
        assert self._device is not None
        if self._stream is not None:
            self._stream.synchronize()
        elif self._device.type != "cpu":
            getattr(torch, self._device.type).synchronize(self._device)

    def _note_sent(self, requests: list[str]) -> None:
        with self._lock:
            self._sent.update(requests)

    # ---- saving ----
    def _write(self, writes: list[Write]) -> Future[None] | None:
        if not writes:
            return None
        mark = self._mark()
        return self._run(lambda: self._write_all(writes, mark))

    def _write_all(self, writes: list[Write], mark: Any) -> None:
        for write in writes:
            try:
                self._write_one(write, mark)
            except (KernelError, RuntimeError) as err:  # unsealed: publish will refuse it
                log.warning("KV of a request not saved: %s", err)

    def _write_one(self, write: Write, mark: Any) -> None:
        worker, info = self._outbox()
        mine = self._share.writes
        if mine.start == mine.stop:
            return
        chunks = range(write.start // CHUNK_TOKENS, -(-write.end // CHUNK_TOKENS))
        if self._pages is not None:
            return self._spread(lambda chunk: self._save_chunk(write, chunk), chunks)
        try:
            with self._beside(mark):
                for chunk in chunks:
                    data = chunk_tensor(worker.chunk_address(write.slot, chunk), info)
                    self._copy_out(write, chunk, data[:, :, :, mine])
        finally:
            self._settle()  # after an error too: nothing may still be writing into a ticket that is given back
        for chunk in chunks:
            self._seal(write, chunk)

    def _spread(self, job: Callable[[int], None], chunks: Sequence[int]) -> None:
        """Does a job for each chunk on the helper threads; back when all have ended. Raises the first error."""
        if len(chunks) == 1:
            return job(chunks[0])
        jobs = [self._helpers.submit(job, chunk) for chunk in chunks]
        wait(jobs)
        for done in jobs:
            done.result()

    def _save_chunk(self, write: Write, chunk: int) -> None:
        worker, info = self._outbox()
        assert self._pages is not None
        address, part = worker.chunk_address(write.slot, chunk), self._part(write, chunk)
        crc = self._pages.copy_out(part, self._native(address, info, self._share.writes))
        self._seal(write, chunk, None if part.at else crc)  # a seal is over all tokens

    def _seal(self, write: Write, chunk: int, crc: int | None = None) -> None:
        valid = min(write.end - chunk * CHUNK_TOKENS, CHUNK_TOKENS)
        self._outbox()[0].seal(write.slot, chunk, self._share.rank, valid, crc)

    def _native(self, address: int, info: PoolInfo, heads: slice) -> pages.Chunk:
        shape = info.geometry
        return pages.Chunk(address, shape.wire_type, CHUNK_TOKENS, shape.n_kv_heads, heads.start)

    def _part(self, order: Write | Load, chunk: int) -> pages.Part:
        """The part of an order that lies in one chunk."""
        start, end = max(order.start, chunk * CHUNK_TOKENS), min(order.end, (chunk + 1) * CHUNK_TOKENS)
        small = self._layers[0].block_size
        blocks = kernel_blocks(order.start, order.blocks, self._block_size, small)
        skipped = start // small - order.start // small
        needed = -(-end // small) - start // small
        return pages.Part(blocks[skipped : skipped + needed], start % small, end - start, start % CHUNK_TOKENS)

    def _copy_out(self, write: Write, chunk: int, data: torch.Tensor) -> None:
        for piece in self._pieces(write, chunk):
            to = slice(piece.chunk_at, piece.chunk_at + piece.n)
            for layer, target in zip(self._layers, data):
                layer.k.read(piece, target[0, to])
                layer.v.read(piece, target[1, to])

    def _outbox(self) -> tuple[Worker, PoolInfo]:
        """Our own pool file. The scheduler's side makes it after the workers have started."""
        if self._own is None:
            worker = Worker.join(str(self._pool.outbox), library=self._library)
            info = worker.info()
            if self._stream is not None:
                failed = int(torch.cuda.cudart().cudaHostRegister(info.chunks, info.chunks_size, 0))
                if failed:
                    log.warning("the pool is not pinned (CUDA error %d): saving takes longer", failed)
            self._own = worker, info
        return self._own

    def _pieces(self, order: Write | Load, chunk: int) -> Iterator[Any]:
        """The part of an order that lies in one chunk, by blocks of the cache."""
        small = self._layers[0].block_size
        start = max(order.start, chunk * CHUNK_TOKENS)
        end = min(order.end, (chunk + 1) * CHUNK_TOKENS)
        blocks = kernel_blocks(order.start, order.blocks, self._block_size, small)
        skipped = start // small - order.start // small
        return pieces(start, end, blocks[skipped:], small)

    # ---- loading ----
    def _load(self, load: Load, mark: Any) -> None:
        failed = False
        try:
            with self._beside(mark):
                self._load_all(load)
        except (KernelError, OSError, RuntimeError, ValueError) as err:
            log.warning("handoff to request %s not copied: %s", load.request_id, err)
            failed = True
        with self._lock:
            self._received.add(load.request_id)
            if failed:
                self._failed[load.request_id] = load.blocks

    def _load_all(self, load: Load) -> None:
        view, info = self._source(load)
        chunks = range(load.start // CHUNK_TOKENS, -(-load.end // CHUNK_TOKENS))
        if self._pages is not None:
            self._spread(lambda chunk: self._load_chunk(load, chunk, view, info), chunks)
        else:
            try:
                for chunk in chunks:
                    data = chunk_tensor(self._address(load, chunk, view), info)
                    self._copy_in(load, chunk, data[:, :, :, self._share.reads])
            finally:
                self._settle()  # after an error too: vLLM gives these blocks to other requests
        if view is not None:
            view.check()

    def _address(self, load: Load, chunk: int, view: View | None) -> int:
        if view is not None:
            return view.chunk_address(chunk)
        worker = self._outbox()[0]
        valid = min(load.end - chunk * CHUNK_TOKENS, CHUNK_TOKENS)
        worker.verify(load.slot, chunk, self._share.writer, valid)
        return worker.chunk_address(load.slot, chunk)

    def _load_chunk(self, load: Load, chunk: int, view: View | None, info: PoolInfo) -> None:
        assert self._pages is not None
        part, reads = self._part(load, chunk), self._share.reads
        found = view.locate(chunk) if view is not None else None
        if view is None or found is None or not self._sealed_alone(found, part, info):
            self._pages.copy_in(part, self._native(self._address(load, chunk, view), info, reads))
            return
        crc = self._pages.copy_in(part, self._native(found.address, info, reads))
        view.match(chunk, part.count, crc)

    def _sealed_alone(self, found: Located, part: pages.Part, info: PoolInfo) -> bool:
        """Whether the chunk's seal is over exactly what is to be copied: then the checksum is made while copying."""
        reads = self._share.reads
        whole = reads.stop - reads.start == info.geometry.n_kv_heads
        return whole and part.at == 0 and part.count == found.n_tokens

    def _source(self, load: Load) -> tuple[View | None, PoolInfo]:
        if load.pinned is None:
            return None, self._outbox()[1]
        if load.pool not in self._inboxes:
            assert load.geometry is not None
            path = str(self._pool.folder / load.pool)
            self._inboxes[load.pool] = Inbox.open(path, load.geometry, library=self._library)
        inbox = self._inboxes[load.pool]
        view = inbox.attach(load.pinned)
        return view, inbox.info()

    def _copy_in(self, order: Load, chunk: int, data: torch.Tensor) -> None:
        for piece in self._pieces(order, chunk):
            of = slice(piece.chunk_at, piece.chunk_at + piece.n)
            for layer, source in zip(self._layers, data):
                layer.k.write(piece, source[0, of])
                layer.v.write(piece, source[1, of])


def cpu_fill() -> Fill | None:
    """CPU_ATTN's op where vLLM runs on CPUs."""
    from vllm.platforms import current_platform

    return compat.write_cpu_cache if current_platform.is_cpu() else None
