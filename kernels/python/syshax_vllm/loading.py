"""The consumer's side of the handoff, in the scheduler's process: which tokens come from where."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from syshax_contract.transfer import LoadFrom
from syshax_kernels.errors import BusyError, KernelError, NotFoundError
from syshax_kernels.library import Library
from syshax_kernels.pool import Geometry, Inbox, View
from syshax_vllm.counts import Counts, reason_of
from syshax_vllm.env import Pool

log = logging.getLogger("vllm.syshax")

PIN_LEASE_S = 30.0  # how long a pinned ticket is ours, queueing included
FILLING_WAIT_S = 2.0  # how long a ticket may still be FILLING


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    limit = min(len(left), len(right))
    if list(left[:limit]) == list(right[:limit]):
        return limit
    return next(i for i in range(limit) if left[i] != right[i])


@dataclass
class Arrival:
    """The ticket that a request asks for. Settled once: taken up, or given up."""

    source: LoadFrom
    deadline: float  # of FILLING
    view: View | None = None
    usable: int = 0  # tokens of it that are the request's
    settled: bool = False


class Loader:
    """Pins tickets of other units; the workers copy; then they are released. One thread."""

    def __init__(self, pool: Pool, geometry: Geometry, counts: Counts, library: Library) -> None:
        """`library`: loaded already, since its file may be replaced while we run."""
        self._pool, self.geometry, self._counts, self._library = pool, geometry, counts, library
        self._inboxes: dict[str, Inbox] = {}

    def expect(self, source: LoadFrom) -> Arrival:
        return Arrival(source, time.monotonic() + FILLING_WAIT_S)

    def poll(self, request_id: str, arrival: Arrival, tokens: Sequence[int]) -> int | None:
        """How many of `tokens` the ticket holds; 0: it is of no use; None: it is still FILLING, ask again.

        The last token is always left to compute, since its logits are needed.
        """
        if arrival.settled:
            return 0
        if arrival.view is None:
            try:
                self._pin(arrival, tokens)
            except BusyError as err:
                if time.monotonic() < arrival.deadline:
                    return None
                self.fail(request_id, arrival, err)
            except (KernelError, OSError) as err:
                self.fail(request_id, arrival, err)
        return arrival.usable

    def _pin(self, arrival: Arrival, tokens: Sequence[int]) -> None:
        source = arrival.source
        view = self._inbox(source.pool).pin(source.ticket, source.generation, PIN_LEASE_S)
        arrival.view = view
        arrival.usable = min(common_prefix(view.tokens, tokens), len(tokens) - 1)

    def _inbox(self, name: str) -> Inbox:
        if name not in self._inboxes:
            path = self._pool.folder / name
            if not path.is_file():
                raise NotFoundError(f"{path}: no such pool file", -7)
            self._inboxes[name] = Inbox.open(str(path), self.geometry, library=self._library)
        return self._inboxes[name]

    def fail(self, request_id: str, arrival: Arrival, err: Exception) -> None:
        """Counts a handoff that can't be taken up."""
        self.refuse(request_id, reason_of(err), str(err))
        self.release(arrival)

    def refuse(self, request_id: str, reason: str, text: str) -> None:
        self._counts.load_failures[reason] += 1
        log.warning("handoff to request %s not loaded, its context is computed: %s", request_id, text)

    def release(self, arrival: Arrival) -> None:
        """The ticket is over: each handoff is consumed once."""
        arrival.settled, arrival.usable = True, 0
        view, arrival.view = arrival.view, None
        if view is None:
            return
        try:
            view.release(consumed=True)
        except KernelError as err:
            log.debug("a ticket was gone already: %s", err)

    def close(self) -> None:
        for inbox in self._inboxes.values():
            inbox.close()
