"""The connector in the scheduler's process: follows every request from arrival to end. One thread, no copies.

A preempted request keeps its KV in its own ticket (a private one where it has none) and takes it back from there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from syshax_contract.transfer import HandoffParams, parse_transfer
from syshax_vllm import compat
from syshax_vllm.counts import Counts
from syshax_vllm.loading import Arrival, Loader
from syshax_vllm.meta import HandoffMetadata, Load, Write, blocks_for
from syshax_vllm.pages import Pages
from syshax_vllm.saving import Saved, Saver

log = logging.getLogger("vllm.syshax")

PUBLISHED = {  # by save_on
    "finish": ("FINISHED_LENGTH_CAPPED", "FINISHED_STOPPED", "FINISHED_ABORTED"),
    "length": ("FINISHED_LENGTH_CAPPED", "FINISHED_ABORTED"),
    "abort": ("FINISHED_ABORTED",),
}


@dataclass
class Tracked:
    """A living request."""

    request: Any
    wish: HandoffParams
    saved: Saved | None = None
    arrival: Arrival | None = None
    blocks: list[int] = field(default_factory=list)
    computed: int = 0  # tokens whose KV is in `blocks` once all ordered steps are over
    rescued: bool = False  # preempted, its KV in `saved`
    loading: Load | None = None


class SchedulerSide:
    """Decides what is loaded and saved; the workers are told by build_meta()."""

    def __init__(
        self, saver: Saver | None, loader: Loader | None, pages: Pages, counts: Counts, block_size: int
    ) -> None:
        self._saver, self._loader, self._pages, self._counts = saver, loader, pages, counts
        self._block_size = block_size
        self._requests: dict[str, Tracked] = {}
        self._ending: dict[str, tuple[Saved, bool]] = {}  # finished, writes under way; whether to publish
        self._meta = HandoffMetadata()
        self._left: dict[str, Tracked] = {}  # finished in the middle of a load

    # ---- arrival ----
    def arrived(self, request: Any) -> Tracked:
        """Begins to follow a request; fine to be called again."""
        found = self._requests.get(request.request_id)
        return found if found is not None else self._track(request)

    def _track(self, request: Any) -> Tracked:
        key = request.request_id
        try:
            wish = parse_transfer(request.kv_transfer_params)
        except ValueError as err:
            self._counts.load_failures["bad_request"] += 1
            log.warning("handoff of request %s ignored: %s", key, err)
            wish = HandoffParams()
        tracked = self._requests[key] = Tracked(request, wish)
        if wish.save is not None:
            tracked.saved = self._begin(key, wish.save)
        if wish.load is not None and self._loader is not None:
            tracked.arrival = self._loader.expect(wish.load)
        self._pages.arrived(request)
        return tracked

    def _begin(self, key: str, ticket: bytes | None) -> Saved | None:
        if self._saver is None:
            self._counts.save_failures["no_pool"] += 1
            return None
        return self._saver.begin(key, ticket)

    def matched(self, request: Any, local: int) -> tuple[int | None, bool]:
        """How many tokens beyond the first `local` come from a ticket; (None, False): ask again."""
        tracked = self.arrived(request)
        usable = self._usable(tracked)
        if usable is None:
            return None, False
        if usable <= local:
            self._settle(tracked)
            return 0, False
        return usable - local, True

    def _usable(self, tracked: Tracked) -> int | None:
        if tracked.rescued and tracked.saved is not None:
            return min(tracked.saved.done, int(tracked.request.num_tokens) - 1)
        if tracked.arrival is None or self._loader is None:
            return 0
        if tracked.arrival.view is not None:
            return tracked.arrival.usable
        return self._loader.poll(tracked.request.request_id, tracked.arrival, tracked.request.all_token_ids)

    def _settle(self, tracked: Tracked) -> None:
        """Nothing (more) is loaded for this request."""
        tracked.rescued = False
        if tracked.arrival is not None and self._loader is not None:
            self._loader.release(tracked.arrival)

    def allocated(self, request: Any, blocks: Any, external: int) -> None:
        """Orders the load of `external` tokens into freshly allocated blocks."""
        tracked = self._requests.get(request.request_id)
        if external <= 0 or tracked is None or self._loader is None:
            return
        end = self._usable(tracked) or 0
        start = end - external
        table = blocks_for(blocks.get_block_ids()[0], start, end, self._block_size)
        load = Load(request.request_id, start, end, table, geometry=self._loader.geometry)
        if tracked.rescued and tracked.saved is not None:
            load = Load(load.request_id, start, end, table, slot=tracked.saved.ticket.slot)
        elif tracked.arrival is not None and tracked.arrival.view is not None:
            tracked.arrival.settled = True  # a failed load must not start again
            pin, pool = tracked.arrival.view.pinned, tracked.arrival.source.pool
            load = Load(load.request_id, start, end, table, pool=pool, pinned=pin, geometry=load.geometry)
        tracked.loading, tracked.rescued = load, False
        self._meta.loads.append(load)

    # ---- every step ----
    def build_meta(self, output: Any) -> HandoffMetadata:
        """What the workers do in this step."""
        self._rescue(output.preempted_req_ids or ())
        self._follow_new(output)
        self._follow_old(output)
        if self._saver is not None:
            self._saver.beat(self._pages.page(output))
        meta, self._meta = self._meta, HandoffMetadata()
        return meta

    def _follow_new(self, output: Any) -> None:
        for data in output.scheduled_new_reqs:
            tracked = self._requests.get(data.req_id)
            if tracked is not None:
                tracked.blocks = list(data.block_ids[0])
                self._advance(data.req_id, tracked, data.num_computed_tokens, output)

    def _follow_old(self, output: Any) -> None:
        old = output.scheduled_cached_reqs
        for key, new_blocks, computed in zip(old.req_ids, old.new_block_ids, old.num_computed_tokens):
            tracked = self._requests.get(key)
            if tracked is None:
                continue
            if key in old.resumed_req_ids:
                tracked.blocks = list(new_blocks[0])
            elif new_blocks is not None:
                tracked.blocks.extend(new_blocks[0])
            self._advance(key, tracked, computed, output)

    def _advance(self, key: str, tracked: Tracked, computed: int, output: Any) -> None:
        after = computed + output.num_scheduled_tokens[key]
        self._pages.advanced(tracked.request, tracked.computed, after)
        tracked.computed = after
        if tracked.saved is not None and after - tracked.saved.done >= 64:
            known = min(after, tracked.request.num_tokens)
            self._extend(key, tracked, known // 64 * 64, self._meta.writes)

    def _extend(self, key: str, tracked: Tracked, until: int, orders: list[Write]) -> None:
        if tracked.saved is None or self._saver is None:
            return
        write = self._saver.extend(key, tracked.saved, tracked.request.all_token_ids, until, tracked.blocks)
        if write is not None:
            orders.append(write)

    def _rescue(self, preempted: Any) -> None:
        """Keeps the KV of requests that have just lost their blocks; the workers copy before these are used again."""
        for key in preempted:
            tracked = self._requests.get(key)
            if tracked is None:
                continue
            self._pages.preempted(tracked.request, tracked.computed)
            known = min(tracked.computed, tracked.request.num_tokens)
            if tracked.saved is None and self._saver is not None and known > 0:
                tracked.saved = self._saver.begin(key, None)
            self._extend(key, tracked, known, self._meta.rescues)
            tracked.rescued = tracked.saved is not None and tracked.saved.done > 0 and not tracked.saved.over
            tracked.blocks, tracked.computed = [], 0

    # ---- end ----
    def finished(self, request: Any, blocks: list[int]) -> bool:
        """Whether the blocks must be kept until the workers report the request."""
        key = request.request_id
        tracked = self._requests.pop(key, None)
        if tracked is None:
            return False
        self._pages.finished(request, tracked.computed)
        if tracked.loading is not None:
            self._left[key] = tracked
            return False
        self._settle(tracked)
        if tracked.saved is None:
            return False
        publish = self._is_published(tracked)
        if publish:
            self._save_tail(key, tracked, blocks)
        self._ending[key] = (tracked.saved, publish)
        self._meta.finished.append(key)
        return True

    def _is_published(self, tracked: Tracked) -> bool:
        status = tracked.request.status.name
        if tracked.saved is None or tracked.saved.private:
            return False
        return status in PUBLISHED[tracked.wish.save_on]

    def _save_tail(self, key: str, tracked: Tracked, blocks: list[int]) -> None:
        request = tracked.request
        known = min(request.num_computed_tokens - compat.in_flight(request), request.num_tokens)
        tracked.blocks = blocks
        self._extend(key, tracked, min(known, len(blocks) * self._block_size), self._meta.tails)

    def reported(self, output: Any) -> None:
        """Takes up what the workers have done."""
        for key in output.finished_sending or ():
            saved, publish = self._ending.pop(key, (None, False))
            if saved is None or self._saver is None:
                continue
            if publish:
                self._saver.publish(key, saved)
            else:
                self._saver.drop(saved)
        for key in output.finished_recving or ():
            self._loaded(key, output)
        self._pages.step_over()

    def _loaded(self, key: str, output: Any) -> None:
        tracked = self._left.pop(key, None)
        over = tracked is not None
        tracked = tracked or self._requests.get(key)
        if tracked is None or tracked.loading is None or self._loader is None:
            return
        load, tracked.loading = tracked.loading, None
        if compat.load_failed(output, key, load.blocks):
            self._loader.refuse(key, "copy", "the copy did not hold or match")
        else:
            self._counts.loaded_tokens += load.end - load.start
        self._settle(tracked)
        if tracked.saved is not None and self._saver is not None and (over or tracked.saved.private):
            self._saver.drop(tracked.saved)
            tracked.saved = None

    def close(self) -> None:
        if self._loader is not None:
            self._loader.close()
        if self._saver is not None:
            self._saver.close()
