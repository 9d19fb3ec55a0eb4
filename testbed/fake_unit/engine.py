"""Continuous batching in simulated time: a step law, a real KV cap, a queue, preemption of the newest."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from .language import EOS, Detokenizer, Speaker
from .tickets import Outbox, ticket_of

Emitted = tuple[int, str, Optional[str]]  # token, text, finish reason


@dataclass
class Law:
    """Step seconds = w0 + w1 b + w2 c + w3 K / 1000 (b decodes, c prefill tokens, K KV tokens), and the cap."""

    w0: float = 0.0
    w1: float = 0.0
    w2: float = 0.0
    w3: float = 0.0
    kv_blocks: int = 4096
    block_size: int = 16
    max_num_seqs: int = 256
    chunk: int = 512


@dataclass(eq=False)
class Sequence:
    """One request inside the unit."""

    ids: tuple[str, ...]
    body: Mapping[str, Any]
    prompt: list[int]
    max_tokens: int
    speaker: Speaker = field(init=False)
    detokenizer: Detokenizer = field(init=False)
    output: list[int] = field(default_factory=list)
    computed: int = 0
    loaded: int = -1
    kept: int = 0  # tokens whose KV is in its ticket since a preemption
    events: "asyncio.Queue[Emitted]" = field(default_factory=asyncio.Queue)
    done: bool = False

    def __post_init__(self) -> None:
        self.speaker, self.detokenizer = Speaker(self.prompt), Detokenizer(self.prompt)

    @property
    def length(self) -> int:
        """Tokens of prompt and output."""
        return len(self.prompt) + len(self.output)


class Engine:
    """The loop; one task."""

    def __init__(self, law: Law, outbox: Outbox, faults: "Any") -> None:
        self.law, self.outbox, self.faults = law, outbox, faults
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.totals: Counter[str] = Counter()
        self._wake = asyncio.Event()

    def submit(self, sequence: Sequence) -> None:
        """Adds a request."""
        self.waiting.append(sequence)
        self._wake.set()

    def blocks(self, sequence: Sequence, extra: int = 0) -> int:
        """KV blocks of a sequence."""
        return -(-(sequence.length + extra) // self.law.block_size)

    def used(self) -> int:
        """KV blocks of all running."""
        return sum(map(self.blocks, self.running))

    def abort(self, ids: list[str]) -> None:
        """Ends requests by id and publishes their KV."""
        for sequence in [s for s in self.running + self.waiting if set(s.ids) & set(ids)]:
            self.end(sequence, "abort", publish=True)

    def end(self, sequence: Sequence, reason: str, publish: bool) -> None:
        """Takes a request out; its ticket is published where its rule says so."""
        if sequence.done:
            return
        sequence.done = True
        for group in (self.running, self.waiting):
            if sequence in group:
                group.remove(sequence)
        save, save_on, _ = ticket_of(sequence.body)
        wanted = reason == "abort" or save_on == "finish" or (save_on, reason) == ("length", "length")
        computed = max(sequence.computed, sequence.kept)
        if save and publish and wanted and computed:
            have = (sequence.prompt + sequence.output)[:computed]
            self.outbox.publish(save, have, bool(self.faults.on("pool_full")), bool(self.faults.on("corrupt_tickets")))
        if reason == "abort":  # other finishes went with their token
            sequence.events.put_nowait((-1, "", reason))

    async def run(self) -> None:
        """Steps until cancelled."""
        while True:
            if not (self.running or self.waiting):
                self._wake.clear()
                self._write_stats(0, 0.0)
                await self._wake.wait()
            self._admit()
            began = time.monotonic()
            prefill = self._prefill()
            decodes = [s for s in self.running if s.computed >= s.length - 1 and s not in prefill]
            kv = sum(s.computed for s in self.running)
            await asyncio.sleep(self.step_seconds(len(decodes), sum(prefill.values()), kv))
            if self.faults.on("freeze"):
                await asyncio.sleep(0.02)
                continue
            self._advance(prefill, decodes)
            self.totals["steps"] += 1
            self._write_stats(len(decodes) + sum(prefill.values()), time.monotonic() - began)

    def step_seconds(self, decodes: int, prefill: int, kv: int) -> float:
        """The law, and what a fault adds."""
        law = self.law
        return law.w0 + law.w1 * decodes + law.w2 * prefill + law.w3 * kv / 1000 + (self.faults.on("slow") or 0.0)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.law.max_num_seqs:
            head = self.waiting[0]
            if self.used() + self.blocks(head, 1) > self.law.kv_blocks and self.running:
                return
            self.running.append(self.waiting.pop(0))
            if head.loaded < 0:
                self._load(head)
            elif head.kept:
                self.totals["restored"] += head.kept
                head.computed, head.kept = head.kept, 0

    def _load(self, sequence: Sequence) -> None:
        load = ticket_of(sequence.body)[2]
        sequence.loaded = self.outbox.load(load, sequence.prompt) if load else 0
        sequence.computed = sequence.loaded
        self.totals["external"] += sequence.loaded
        self.totals["local"] += len(sequence.prompt) - sequence.loaded

    def _prefill(self) -> "dict[Sequence, int]":
        budget, plan = self.law.chunk, {}
        for sequence in self.running:
            missing = sequence.length - sequence.computed - (1 if sequence.output else 0)
            if missing > 0 and budget > 0 and (not sequence.output or missing > 0):
                plan[sequence] = min(missing, budget)
                budget -= plan[sequence]
        return plan

    def _advance(self, prefill: "dict[Sequence, int]", decodes: list[Sequence]) -> None:
        for sequence, count in prefill.items():
            if not sequence.done:
                sequence.computed += count
                if sequence.computed >= sequence.length:
                    self._sample(sequence)
        for sequence in decodes:
            if not sequence.done and self._room(sequence):
                sequence.computed = sequence.length
                self._sample(sequence)

    def _room(self, sequence: Sequence) -> bool:
        while sequence in self.running and self.used() > self.law.kv_blocks and len(self.running) > 1:
            victim = self.running.pop()
            victim.kept, victim.computed = max(victim.kept, victim.computed), 0
            self.waiting.insert(0, victim)
            self.totals["preemptions"] += 1
        return sequence in self.running

    def _sample(self, sequence: Sequence) -> None:
        token = sequence.speaker.next()
        sequence.output.append(token)
        self.totals["generated"] += 1
        ended = "stop" if token == EOS and not sequence.body.get("ignore_eos") else None
        if ended is None and len(sequence.output) >= sequence.max_tokens:
            ended = "length"
        sequence.events.put_nowait((token, sequence.detokenizer.feed(token), ended))
        if ended:
            self.end(sequence, ended, publish=True)

    def _write_stats(self, tokens: int, seconds: float) -> None:
        fields = {
            "running": len(self.running),
            "waiting": len(self.waiting),
            "kv_blocks_used": self.used(),
            "kv_blocks_total": self.law.kv_blocks,
            "kv_block_size": self.law.block_size,
            "step_tokens": tokens,
            "step_ns": round(seconds * 1e9),
            "preemptions": self.totals["preemptions"],
            "prompt_tokens": self.totals["local"] + self.totals["external"],
            "generation_tokens": self.totals["generated"],
            "steps": self.totals["steps"],
            "waiting_prompt_tokens": sum(s.length for s in self.waiting),
            "kv_tokens": sum(s.computed for s in self.running),
            "pool_chunks_free": 100,
            "pool_chunks_total": 100,
            "max_num_seqs": self.law.max_num_seqs,
            "max_step_tokens": self.law.chunk,
        }
        self.outbox.write_stats(fields)
