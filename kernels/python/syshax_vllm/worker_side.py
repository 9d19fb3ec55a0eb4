"""The connector in a worker: does what the scheduler's side orders in a step. How it is copied: copier.py."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from syshax_handoff import chunks
from syshax_handoff.chunks import WorkerTicket
from syshax_kernels.kernel_errors import KernelError
from syshax_kernels.pool import Inbox, PoolInfo, Worker, pool_library
from syshax_vllm import compat
from syshax_vllm.copier import Copier, NativeCopier, TorchCopier, roam
from syshax_vllm.env import Pool
from syshax_vllm.layout import Fill, layer_of
from syshax_vllm.meta import HandoffMetadata, Load, Write

log = logging.getLogger("vllm.syshax")


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


class WorkerSide:
    """One rank. Results are collected until the engine asks for them."""

    def __init__(self, pool: Pool, share: Share, block_size: int, head_size: int) -> None:
        self._pool, self._share, self._block_size, self._head_size = pool, share, block_size, head_size
        self._library = pool_library()  # now: its file may be replaced while we run
        self._copier: Copier | None = None
        self._own: tuple[Worker, PoolInfo] | None = None
        self._inboxes: dict[str, Inbox] = {}
        self._thread = ThreadPoolExecutor(1, "syshax-kv", roam)
        self._lock = threading.Lock()
        self._sent: set[str] = set()
        self._received: set[str] = set()
        self._failed: dict[str, tuple[int, ...]] = {}  # request -> blocks that were not filled

    def register(self, caches: dict[str, Any], fill: Fill | None) -> None:
        """Takes the cache of each layer, in the model's order. `fill`: see layout.layer_of()."""
        layers = [layer_of(cache, self._head_size, fill) for cache in caches.values()]
        device = next(iter(caches.values()))[0].device
        if device.type == "cpu":
            self._copier = NativeCopier(layers, self._head_size, self._block_size, self._share.ranks, self._library)
        else:
            self._copier = TorchCopier(layers, self._block_size, device, self._thread)

    @property
    def _copies(self) -> Copier:
        assert self._copier is not None, "vLLM registers its cache before it orders anything"
        return self._copier

    # ---- orders of a step ----
    def start(self, meta: HandoffMetadata) -> None:
        """Tails of finished requests, then loads. Also called in steps without a forward."""
        self._write(meta.tails)
        if meta.finished:
            self._copies.writes(lambda: self._note_sent(meta.finished), self._thread)
        for load in meta.loads:
            self._thread.submit(self._load, load, self._copies.mark())

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
        if self._copier is not None:
            self._copier.close()
        if self._own is not None:
            self._own[0].close()
        for inbox in self._inboxes.values():
            inbox.close()

    def _note_sent(self, requests: list[str]) -> None:
        with self._lock:
            self._sent.update(requests)

    # ---- saving ----
    def _write(self, writes: list[Write]) -> Future[None] | None:
        if not writes:
            return None
        mark = self._copies.mark()
        return self._copies.writes(lambda: self._write_all(writes, mark), self._thread)

    def _write_all(self, writes: list[Write], mark: Any) -> None:
        for write in writes:
            try:
                with self._copies.beside(mark):
                    self._write_one(write)
            except (KernelError, RuntimeError) as err:  # unsealed: publish will refuse it
                log.warning("KV of a request not saved: %s", err)

    def _write_one(self, write: Write) -> None:
        heads = self._share.writes
        if heads.start == heads.stop:
            return
        ticket, info = self._own_ticket(write.slot)
        copy = self._copies.copy_out(write, heads, info)
        chunks.save(ticket, range(write.start, write.end), copy, self._copies.run)

    def _own_ticket(self, slot: int) -> tuple[WorkerTicket, PoolInfo]:
        """In our own pool file. The scheduler's side makes it after the workers have started."""
        if self._own is None:
            worker = Worker.join(str(self._pool.outbox), library=self._library)
            self._own = worker, worker.info()
            self._copies.own_pool(self._own[1])
        worker, info = self._own
        return WorkerTicket(worker, slot, self._share.rank, self._share.writer), info

    # ---- loading ----
    def _load(self, load: Load, mark: Any) -> None:
        failed = False
        try:
            with self._copies.beside(mark):
                self._load_all(load)
        except (KernelError, OSError, RuntimeError, ValueError) as err:
            log.warning("handoff to request %s not copied: %s", load.request_id, err)
            failed = True
        with self._lock:
            self._received.add(load.request_id)
            if failed:
                self._failed[load.request_id] = load.blocks

    def _load_all(self, load: Load) -> None:
        tokens, heads, copier = range(load.start, load.end), self._share.reads, self._copies
        if load.pinned is None:
            ticket, info = self._own_ticket(load.slot)
            return chunks.restore(ticket, tokens, copier.copy_in(load, heads, info), copier.run)
        inbox = self._inbox(load)
        view, info = inbox.attach(load.pinned), inbox.info()
        whole = heads.stop - heads.start == info.geometry.n_kv_heads
        chunks.load(view, tokens, copier.copy_in(load, heads, info), copier.run, copier.sums and whole)
        view.check()

    def _inbox(self, load: Load) -> Inbox:
        if load.pool not in self._inboxes:
            assert load.geometry is not None
            path = str(self._pool.folder / load.pool)
            self._inboxes[load.pool] = Inbox.open(path, load.geometry, library=self._library)
        return self._inboxes[load.pool]


def cpu_fill() -> Fill | None:
    """CPU_ATTN's op where vLLM runs on CPUs."""
    from vllm.platforms import current_platform

    return compat.write_cpu_cache if current_platform.is_cpu() else None
