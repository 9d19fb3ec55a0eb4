"""Numbers for the stats page, kept up as requests come, advance and go. No work per request and step but additions."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from syshax_kernels.pool_types import UnitStats


class StatsCounts:
    """Makes the stats page of each step."""

    def __init__(self, block_size: int, max_num_seqs: int, max_step_tokens: int) -> None:
        self._block_size, self._max_num_seqs, self._max_step_tokens = block_size, max_num_seqs, max_step_tokens
        self._blocks: Any = None  # vLLM's block pool
        self._waiting: dict[str, int] = {}  # tokens that are still to be computed
        self._running: set[str] = set()
        self._copied: dict[str, int] = {}  # blocks of ended requests, held until their KV is copied
        self._kv_tokens = self._preemptions = self._prompt_tokens = self._generation_tokens = self._steps = 0
        self._begun: deque[tuple[int, int]] = deque(maxlen=4)  # tokens and begin of steps under way, oldest first
        self._step_tokens = self._step_ns = self._over = 0

    def bind(self, block_pool: Any) -> None:
        self._blocks = block_pool

    def arrived(self, request: Any) -> None:
        self._waiting[request.request_id] = request.num_tokens

    def advanced(self, request: Any, before: int, after: int) -> None:
        key = request.request_id
        self._kv_tokens += after - before
        if key not in self._running:
            self._running.add(key)
            self._waiting.pop(key, None)
            self._prompt_tokens += request.num_prompt_tokens if request.num_preemptions == 0 else 0
        self._generation_tokens += after >= request.num_tokens

    def preempted(self, request: Any, computed: int) -> None:
        self._preemptions += 1
        self._kv_tokens -= computed
        self._running.discard(request.request_id)
        self._waiting[request.request_id] = request.num_tokens

    def finished(self, request: Any, computed: int) -> None:
        self._kv_tokens -= computed
        self._running.discard(request.request_id)
        self._waiting.pop(request.request_id, None)

    def ending(self, key: str, blocks: list[int]) -> None:
        """An ended request's blocks are kept for a copy: they do not count, for who asks whether this unit is full."""
        known = self._blocks.blocks if self._blocks is not None else {}
        self._copied[key] = sum(known[block].ref_cnt == 1 for block in blocks if known)

    def ended(self, key: str) -> None:
        """That copy is over."""
        self._copied.pop(key, None)

    def step_over(self) -> None:
        """The workers have reported: the oldest step that page() began has run. Scheduled ahead, it began to run only
        when the one before it was over."""
        if not self._begun:
            return
        tokens, begun = self._begun.popleft()
        now = time.perf_counter_ns()
        self._step_tokens, self._step_ns, self._over = tokens, now - max(begun, self._over), now
        self._steps += 1

    def step_begins(self, tokens: int) -> None:
        """So many tokens are scheduled."""
        if tokens:
            self._begun.append((tokens, time.perf_counter_ns()))

    def page(self) -> UnitStats:
        """What is so now; any thread may ask. `step_tokens`, `step_ns` and `steps` are the last whole step's."""
        total = self._blocks.num_gpu_blocks if self._blocks is not None else 0
        free = self._blocks.get_num_free_blocks() if self._blocks is not None else 0
        used = total - 1 - free - sum(list(self._copied.values()))
        return UnitStats(
            running=len(self._running), waiting=len(self._waiting), kv_blocks_used=max(0, used),
            kv_blocks_total=total, kv_block_size=self._block_size, step_tokens=self._step_tokens, step_ns=self._step_ns,
            preemptions=self._preemptions, prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens, steps=self._steps,
            waiting_prompt_tokens=sum(list(self._waiting.values())), kv_tokens=self._kv_tokens,
            max_num_seqs=self._max_num_seqs, max_step_tokens=self._max_step_tokens,
        )  # fmt: skip
