"""The consumer's side: a ticket of another unit is waited for, pinned, copied and given back.

`Loading` is what is known of one handoff and decides (pure); `Loader` does what it says to other units' pools. The
engine copies what next() says. Nothing here ever fails a request: what goes wrong is counted, and tokens are computed.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Generic, Protocol, TypeVar

from syshax_handoff.chunks import common_prefix
from syshax_handoff.reasons import TIMEOUT, HandoffCounts, reason_of
from syshax_handoff.saving import Progress
from syshax_kernels.kernel_errors import BusyError, KernelError, NotFoundError
from syshax_kernels.pool import PoolInfo, View

PIN_LEASE_S = 30.0  # how long a pinned ticket is ours, queueing included
FILLING_WAIT_S = 30.0  # how long a ticket may still be FILLING while its owner lives: as long as its longest step
SILENCE_S = 3.0  # an owner that has not written its stats page for so long is dead, stopped or lost
POOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")

Key = TypeVar("Key", bound=Hashable)


class TicketSource(Protocol):
    """Which ticket a request asks for (`kv_transfer_params.syshax.load`)."""

    @property
    def ticket(self) -> bytes: ...

    @property
    def pool(self) -> str: ...

    @property
    def generation(self) -> int: ...


@dataclass(frozen=True)
class Loading:
    """What is known of one handoff: waited for until it is pinned, then copied."""

    since: float
    heard: float  # when its owner last said that it lives
    progress: Progress | None = None  # once it is pinned

    def waits(self, now: float) -> bool:
        """Whether a ticket that is still FILLING is asked for again."""
        return self.progress is None and now - self.since < FILLING_WAIT_S and now - self.heard < SILENCE_S

    def pinned(self, common: int, known: int) -> Loading:
        """It is ours. `common`: tokens of it that are the request's, which knows `known`.

        The last known token is always left to compute, since its logits are needed.
        """
        return replace(self, progress=Progress(max(min(common, known - 1), 0)))


@dataclass
class _Arrival:
    """A request's handoff."""

    name: str
    source: TicketSource
    state: Loading
    view: View | None = None
    info: PoolInfo | None = None


class OtherPool(Protocol):
    """What is asked of an Inbox."""

    def pin(self, ticket_id: bytes, generation: int, lease_s: float) -> View:
        """READY -> LOADING."""

    def info(self) -> PoolInfo:
        """Numbers of the file."""

    def last_beat(self) -> float:
        """When its owner last wrote its stats page, in seconds of the clock; 0.0 where that can't be told."""

    def close(self) -> None:
        """Unmaps the file."""


class Loader(Generic[Key]):
    """Handoffs by request. A life goes: expect, poll until it is not None, next and took until over, then done."""

    def __init__(
        self, folder: Path, open_inbox: Callable[[str], OtherPool], counts: HandoffCounts, log: logging.Logger,
        clock: Callable[[], float] = time.monotonic, lost: Callable[[Key, str], None] = lambda key, reason: None,
    ) -> None:  # fmt: skip
        """`open_inbox`: from the path of a pool file in `folder`. `lost`: told of each handoff that is, and why."""
        self._lost = lost
        self._folder, self._open, self._counts, self._log, self._clock = folder, open_inbox, counts, log, clock
        self._inboxes: dict[str, OtherPool] = {}
        self._arrivals: dict[Key, _Arrival] = {}

    def expect(self, key: Key, name: str, source: TicketSource) -> None:
        """A request that asks for a ticket has come; its waiting time begins."""
        now = self._clock()
        self._arrivals[key] = _Arrival(name, source, Loading(now, now))

    def poll(self, key: Key, tokens: Sequence[int]) -> int | None:
        """How many of `tokens` the ticket holds; 0: it is of no use (any more); None: still FILLING, ask again."""
        arrival = self._arrivals.get(key)
        if arrival is None:
            return 0
        if arrival.state.progress is None:
            try:
                self._pin(arrival, tokens)
            except BusyError as err:
                if self._waits(arrival):
                    return None
                self.fail(key, err, TIMEOUT)
            except (KernelError, OSError) as err:
                self.fail(key, err)
        progress = arrival.state.progress
        return progress.total if progress is not None and not progress.done else 0

    def _waits(self, arrival: _Arrival) -> bool:
        inbox = self._inboxes.get(arrival.source.pool)
        heard = inbox.last_beat() if inbox is not None else 0.0
        arrival.state = replace(arrival.state, heard=max(arrival.state.heard, heard))
        return arrival.state.waits(self._clock())

    def _pin(self, arrival: _Arrival, tokens: Sequence[int]) -> None:
        source = arrival.source
        inbox = self._inbox(source.pool)
        view = arrival.view = inbox.pin(source.ticket, source.generation, PIN_LEASE_S)
        arrival.info = inbox.info()
        arrival.state = arrival.state.pinned(common_prefix(view.tokens, tokens), len(tokens))

    def _inbox(self, name: str) -> OtherPool:
        if not POOL_NAME.fullmatch(name):
            raise KernelError(f"pool name {name!r}, expected a file name", -1)
        if name not in self._inboxes:
            path = self._folder / name
            if not path.is_file():
                raise NotFoundError(f"{path}: no such pool file", -7)
            self._inboxes[name] = self._open(str(path))
        return self._inboxes[name]

    def view(self, key: Key) -> View | None:
        """The pinned ticket of a request; None: it has none (any more)."""
        arrival = self._arrivals.get(key)
        return None if arrival is None else arrival.view

    def info(self, key: Key) -> PoolInfo:
        """Numbers of the pool file it is in."""
        info = self._arrivals[key].info
        assert info is not None
        return info

    def next(self, key: Key, have: int, budget: int = 1 << 62) -> range:
        """The next tokens to copy, at most `budget`; the request's blocks hold `have` already."""
        arrival = self._arrivals.get(key)
        progress = arrival.state.progress if arrival is not None else None
        return range(0) if progress is None else progress.next(have, budget)

    def took(self, key: Key, tokens: range) -> bool:
        """These are copied, or ordered; True when that was all."""
        arrival = self._arrivals[key]
        assert arrival.state.progress is not None
        progress = arrival.state.progress.after(tokens)
        arrival.state = replace(arrival.state, progress=progress)
        return progress.over

    def done(self, key: Key) -> bool:
        """All is copied: gives the ticket back. False (counted): the pin did not hold, what came is thrown away."""
        arrival = self._arrivals.get(key)
        if arrival is None or arrival.view is None:
            return False
        view, arrival.view = arrival.view, None
        try:
            view.release(consumed=True)
        except KernelError as err:
            self.fail(key, err)
            return False
        del self._arrivals[key]
        return True

    def fail(self, key: Key, err: Exception, reason: str = "") -> None:
        """Counts a handoff that can't be taken up; the request computes its context itself."""
        arrival = self._arrivals.get(key)
        reason = reason or reason_of(err)
        self._counts.load_failures[reason] += 1
        self._lost(key, reason)
        name = key if arrival is None else arrival.name
        self._log.warning("handoff to request %s not loaded, its context is computed: %s", name, err)
        self.cancel(key)

    def cancel(self, key: Key) -> None:
        """Lets go of the ticket, which is then over: each handoff is consumed once."""
        arrival = self._arrivals.pop(key, None)
        if arrival is None or arrival.view is None:
            return
        try:
            arrival.view.release(consumed=True)
        except KernelError as err:
            self._log.debug("the ticket of request %s was gone already: %s", arrival.name, err)

    def close(self) -> None:
        for inbox in self._inboxes.values():
            inbox.close()
