"""One process of `bench.handoff`: GB/s of saving and loading one long prompt's KV, and of memcpy over the same bytes.

    PYTHONPATH=.:kernels/python PYTHON -m bench.handoff.copies vllm|sysinfer [--tokens 4096] [--rounds 7]

Runs the code that the units run, without model and server: the plugin's worker (`vllm`, in a Python that has vLLM) or
sysinfer's cache. Shape of Qwen2.5-7B: 28 layers, 4 kv heads of 128, 16 bits. Checksums included. Copies use as many
threads as this process has CPUs (4 at most); memcpy is measured on one thread and on as many. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Protocol

from syshax_kernels.pool import BF16, CHUNK_TOKENS, F16, Geometry, Inbox, Outbox

LAYERS, HEADS, HEAD_SIZE = 28, 4, 128
TICKET = b"bench-of-handoff"
THREADS = min(4, len(os.sched_getaffinity(0)))
LEASE = 600.0


class Subject(Protocol):
    """What is measured."""

    wire: int

    def save(self, slot: int, outbox: Outbox) -> None:
        """All tokens into the FILLING ticket, sealed."""

    def load(self, inbox: Inbox) -> None:
        """Pins the ticket, takes all tokens, gives it back unconsumed."""


def geometry(wire: int) -> Geometry:
    """Of the pool file."""
    return Geometry(LAYERS, HEADS, HEAD_SIZE, wire, bytes(32), block_size=32)


class Vllm:
    """The plugin's worker on a cache as CPU_ATTN lays it out, blocks in random order."""

    wire = BF16

    def __init__(self, folder: Path, tokens: int, block: int = 128) -> None:
        import torch
        from vllm.platforms import current_platform

        from syshax_vllm.env import Pool
        from syshax_vllm.worker_side import Share, WorkerSide, cpu_fill

        current_platform.import_kernels()
        torch.set_num_threads(1)
        self.tokens, self.folder, count = tokens, folder, -(-tokens // block)
        shape = count, HEADS, block, 2 * HEAD_SIZE
        caches = {str(layer): torch.randn(shape).to(torch.bfloat16) for layer in range(LAYERS)}
        self.worker = WorkerSide(Pool(folder, "bench.pool"), Share(0, 1, HEADS), block, HEAD_SIZE)
        self.worker.register(caches, cpu_fill())
        self.blocks = tuple(random.Random(1).sample(range(count), count))

    def save(self, slot: int, outbox: Outbox) -> None:
        from syshax_vllm.meta import HandoffMetadata, Write

        self.worker.save(HandoffMetadata(writes=[Write(slot, 0, self.tokens, self.blocks)]))

    def load(self, inbox: Inbox) -> None:
        from syshax_vllm.meta import HandoffMetadata, Load

        view = inbox.pin(TICKET, lease_s=LEASE)
        order = Load("r", 0, self.tokens, self.blocks, pool="bench.pool", pinned=view.pinned, geometry=geometry(BF16))
        self.worker.start(HandoffMetadata(loads=[order]))
        received: set[str] = set()
        while not received:
            time.sleep(0.0005)
            _, received, failed = self.worker.results()
            assert not failed
        view.release(consumed=False)


class Sysinfer:
    """sysinfer's cache in f16, blocks of 16 in random order."""

    wire = F16

    def __init__(self, folder: Path, tokens: int, block: int = 16) -> None:
        from syshax_kernels.context import Context
        from syshax_kernels.model import Model, ModelShape

        count = -(-tokens // block)
        shape = ModelShape(
            LAYERS, HEADS * HEAD_SIZE, HEADS, HEADS, HEAD_SIZE, 128, 32, [1.0] * (HEAD_SIZE // 2), 1e-5, tokens, count,
            block,
        )  # fmt: skip
        self.tokens, self.model = tokens, Model(Context(threads=THREADS), shape)
        self.blocks = random.Random(1).sample(range(count), count)

    def _move(self, call: Callable[[Any, Any], int], memory: memoryview, index: int) -> int:
        import numpy as np

        from syshax_kernels.model import KvSlice

        part = KvSlice(self.blocks, index * CHUNK_TOKENS, CHUNK_TOKENS, CHUNK_TOKENS)
        return call(part, np.frombuffer(memory, np.uint8))

    def save(self, slot: int, outbox: Outbox) -> None:
        ticket = outbox.find(TICKET)
        assert ticket is not None
        for index in range(self.tokens // CHUNK_TOKENS):
            crc = self._move(self.model.export_kv, ticket.chunk(index), index)
            ticket.seal(index, 0, CHUNK_TOKENS, crc)

    def load(self, inbox: Inbox) -> None:
        view = inbox.pin(TICKET, lease_s=LEASE)
        for index in range(self.tokens // CHUNK_TOKENS):
            found = view.locate(index)
            view.match(index, found.n_tokens, self._move(self.model.import_kv, found.memory, index))
        view.release(consumed=False)


def seconds(work: Callable[[], None]) -> float:
    """Wall time."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def memcpy(pool: int, private: int, total: int, threads: ThreadPoolExecutor | None = None) -> None:
    """Into the pool file, by one thread or by THREADS, each a part."""
    if threads is None:
        ctypes.memmove(pool, private, total)
        return
    part = total // THREADS
    list(threads.map(lambda i: ctypes.memmove(pool + i * part, private + i * part, part), range(THREADS)))


def measure(kind: str, tokens: int, rounds: int, folder: Path) -> dict[str, float]:
    """Medians, in GB/s; `first_`: of the round that maps the pool's pages. The three take turns."""
    subject: Subject = Vllm(folder, tokens) if kind == "vllm" else Sysinfer(folder, tokens)
    chunks = tokens // CHUNK_TOKENS
    path = str(folder / "bench.pool")
    times: dict[str, list[float]] = {"memcpy": [], "memcpy_threads": [], "save": [], "load": []}
    shape = geometry(subject.wire)
    with (
        Outbox.create(path, shape, chunks=chunks, tickets=2, max_tokens=tokens) as outbox,
        ThreadPoolExecutor() as pool,
    ):
        total, area = chunks * outbox.info().chunk_bytes, outbox.info().chunks
        buffer = ctypes.create_string_buffer(b"\1", total)
        private = ctypes.addressof(buffer)
        with Inbox.open(path, shape) as inbox:
            for _ in range(rounds + 1):
                ticket = outbox.begin(TICKET, LEASE)
                ticket.append(range(tokens))
                times["save"].append(seconds(lambda: subject.save(ticket.slot, outbox)))
                ticket.publish(tokens)
                times["load"].append(seconds(lambda: subject.load(inbox)))
                ticket.free()
                times["memcpy"].append(seconds(lambda: memcpy(area, private, total)))
                times["memcpy_threads"].append(seconds(lambda: memcpy(area, private, total, pool)))
    found = {name: total / statistics.median(values[1:]) / 1e9 for name, values in times.items()}
    return {**found, **{f"first_{name}": total / times[name][0] / 1e9 for name in ("save", "load")}}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("vllm", "sysinfer"))
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="syshax-bench-", dir="/dev/shm") as folder:
        print(json.dumps(measure(args.kind, args.tokens, args.rounds, Path(folder))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
