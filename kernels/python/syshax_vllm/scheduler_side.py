"""The connector in the scheduler's process: follows every request from arrival to end. One thread, no copies.

A preempted request keeps its KV in its own ticket (a private one where it has none) and takes it back from there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from syshax_contract.transfer import HandoffParams, parse_transfer
from syshax_handoff.loading import Loader
from syshax_handoff.saving import Saver
from syshax_kernels.pool import CHUNK_TOKENS, Geometry
from syshax_vllm import compat
from syshax_vllm.counts import Counts
from syshax_vllm.meta import HandoffMetadata, Load, Write, blocks_for
from syshax_vllm.stats_counts import StatsCounts

log = logging.getLogger("vllm.syshax")

ENDS = {"FINISHED_LENGTH_CAPPED": "length", "FINISHED_STOPPED": "stop", "FINISHED_ABORTED": "abort"}


@dataclass
class Tracked:
    """A living request."""

    request: Any
    wish: HandoffParams
    blocks: list[int] = field(default_factory=list)
    computed: int = 0  # tokens whose KV is in `blocks` once all ordered steps are over
    ordered: int = 0  # of them, taken into its ticket
    rescued: bool = False  # preempted, its KV in its ticket
    loading: Load | None = None


def _ends_with(tracked: Tracked, after: int) -> bool:
    """Whether a request to be handed over ends, by its length, with the step that computes its tokens up to `after`.

    So does every prefill leg. Its tail goes with that step, and is sealed before the answer goes out.
    """
    request, wish = tracked.request, tracked.wish
    if wish.save is None or not wish.publishes("length") or after > request.num_tokens:
        return False
    return bool(after - request.num_prompt_tokens + 1 >= request.max_tokens)


class SchedulerSide:
    """Decides what is loaded and saved; the workers are told by build_meta()."""

    def __init__(
        self,
        saver: Saver[str],
        loader: Loader[str],
        geometry: Geometry,
        pages: StatsCounts,
        counts: Counts,
        block_size: int,
    ) -> None:
        """`geometry`: what other units' pools must be of."""
        self._saver, self._loader, self._geometry, self._pages, self._counts = saver, loader, geometry, pages, counts
        self._block_size = block_size
        self._requests: dict[str, Tracked] = {}
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
            self._saver.begin(key, key, wish.save)
        if wish.load is not None:
            self._loader.expect(key, key, wish.load)
        self._pages.arrived(request)
        return tracked

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
        key = tracked.request.request_id
        if tracked.rescued:
            return min(self._saver.readable(key), int(tracked.request.num_tokens) - 1)
        return self._loader.poll(key, tracked.request.all_token_ids)

    def _settle(self, tracked: Tracked) -> None:
        """Nothing (more) is loaded for this request."""
        tracked.rescued = False
        self._loader.cancel(tracked.request.request_id)

    def allocated(self, request: Any, blocks: Any, external: int) -> None:
        """Orders the load of `external` tokens into freshly allocated blocks."""
        key = request.request_id
        tracked = self._requests.get(key)
        if external <= 0 or tracked is None:
            return
        end = self._usable(tracked) or 0
        tokens = range(end - external, end)
        table = blocks_for(blocks.get_block_ids()[0], tokens, self._block_size)
        ticket, view = self._saver.ticket(key), self._loader.view(key)
        load = Load(key, tokens.start, end, table, geometry=self._geometry)
        if tracked.rescued and ticket is not None:
            load = Load(key, tokens.start, end, table, slot=ticket.slot)
        elif view is not None and tracked.wish.load is not None:
            self._loader.took(key, tokens)  # a failed load must not start again
            pool = tracked.wish.load.pool
            load = Load(key, tokens.start, end, table, pool=pool, pinned=view.pinned, geometry=self._geometry)
        tracked.loading, tracked.rescued = load, False
        self._meta.loads.append(load)

    # ---- every step ----
    def build_meta(self, output: Any) -> HandoffMetadata:
        """What the workers do in this step."""
        self._rescue(output.preempted_req_ids or ())
        self._follow_new(output)
        self._follow_old(output)
        self._pages.step_begins(output.total_num_scheduled_tokens)
        self._saver.beat(self._pages.page())
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
        last = _ends_with(tracked, after)
        if last or after - tracked.ordered >= CHUNK_TOKENS:
            request = tracked.request
            tokens = self._saver.order(key, request.all_token_ids, min(after, request.num_tokens), tail=last)
            self._write(key, tracked, tokens, self._meta.writes)

    def _write(self, key: str, tracked: Tracked, tokens: range, orders: list[Write]) -> None:
        ticket = self._saver.ticket(key)
        if not tokens or ticket is None:
            return
        tracked.ordered = tokens.stop
        blocks = blocks_for(tracked.blocks, tokens, self._block_size)
        orders.append(Write(ticket.slot, tokens.start, tokens.stop, blocks))

    def _rescue(self, preempted: Any) -> None:
        """Keeps the KV of requests that have just lost their blocks; the workers copy before these are used again."""
        for key in preempted:
            tracked = self._requests.get(key)
            if tracked is None:
                continue
            self._pages.preempted(tracked.request, tracked.computed)
            known = min(tracked.computed, tracked.request.num_tokens)
            tokens = self._saver.keep(key, key, tracked.request.all_token_ids, known)
            self._write(key, tracked, tokens, self._meta.rescues)
            tracked.rescued = self._saver.readable(key) > 0
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
        wish = tracked.wish
        publish = wish.save is not None and wish.publishes(ENDS.get(request.status.name, ""))
        if publish:
            self._save_tail(key, tracked, blocks)
        if not self._saver.end(key, publish):
            return False
        self._meta.finished.append(key)
        self._pages.ending(key, blocks)
        return True

    def _save_tail(self, key: str, tracked: Tracked, blocks: list[int]) -> None:
        request, tracked.blocks = tracked.request, blocks
        known = min(request.num_computed_tokens - compat.in_flight(request), request.num_tokens)
        known = min(known, len(blocks) * self._block_size)
        tokens = self._saver.order(key, request.all_token_ids, known, tail=True)
        self._write(key, tracked, tokens, self._meta.tails)

    def reported(self, output: Any) -> None:
        """Takes up what the workers have done."""
        for key in output.finished_sending or ():
            self._saver.settle(key)
            self._pages.ended(key)
        for key in output.finished_recving or ():
            self._loaded(key, output)
        self._pages.step_over()

    def _loaded(self, key: str, output: Any) -> None:
        tracked = self._left.pop(key, None)
        over = tracked is not None
        tracked = tracked or self._requests.get(key)
        if tracked is None or tracked.loading is None:
            return
        load, tracked.loading = tracked.loading, None
        failed = compat.load_failed(output, key, load.blocks)
        if failed:
            self._loader.fail(key, ValueError("the copy did not hold or match"), "copy")
        else:
            self._counts.loaded_tokens += load.end - load.start
        self._settle(tracked)
        if over:
            self._saver.drop(key)
        elif load.pinned is None:
            self._saver.restored(key, not failed)

    def close(self) -> None:
        self._loader.close()
        self._saver.close()
