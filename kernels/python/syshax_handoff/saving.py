"""The owner's side: one ticket a saved request, filled as it runs, published or freed at its end.

`Saving` is what is known of one ticket and decides (pure); `Saver` does what it says to the outbox. Copies are the
engine's: order() says which tokens, the engine reports with failed() and settle().
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from syshax_handoff.reasons import NO_POOL, HandoffCounts, reason_of
from syshax_kernels.kernel_errors import KernelError
from syshax_kernels.pool import CHUNK_TOKENS, Ticket, UnitStats

READY_LEASE_S = 30.0  # how long a published ticket waits for its consumer

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Progress:
    """Copying of the first `total` tokens of a request into its blocks, part by part."""

    total: int
    done: int = 0

    def next(self, have: int, budget: int) -> range:
        """At most `budget` more tokens, behind the `have` that its blocks hold already."""
        start = max(self.done, have)
        return range(start, max(min(self.total, start + budget), start))

    def after(self, tokens: range) -> Progress:
        """These have come too."""
        return replace(self, done=tokens.stop)

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return self.done >= self.total


@dataclass(frozen=True)
class Saving:
    """What is known of one ticket that is being filled."""

    private: bool  # only to survive a preemption
    ordered: int = 0  # tokens in it whose KV is copied, or being copied
    spoilt: bool = False  # there was no room, or a copy failed: never published, never read back

    def next(self, known: int, tail: bool) -> range:
        """Tokens to be taken in now that `known` have KV: whole chunks, with `tail` the begun one too."""
        until = known if tail else known - known % CHUNK_TOKENS
        return range(self.ordered, self.ordered if self.spoilt else max(until, self.ordered))

    @property
    def readable(self) -> int:
        """Tokens that a preempted request finds again."""
        return 0 if self.spoilt else self.ordered

    def published(self, wanted: bool) -> int:
        """Tokens to publish at the request's end; 0: the ticket is freed."""
        return self.readable if wanted and not self.private else 0


class OwnPool(Protocol):
    """What is asked of an Outbox."""

    def begin(self, ticket_id: bytes, lease_s: float) -> Ticket:
        """A FILLING ticket."""

    def find(self, ticket_id: bytes) -> Ticket | None:
        """The ticket with this id, or None."""

    def reap(self) -> int:
        """Frees what is over."""

    def write_stats(self, stats: UnitStats) -> None:
        """Rewrites the stats page."""

    def close(self) -> None:
        """Unmaps the file."""


@dataclass
class _Kept:
    """A request's ticket. `publish`: known at its end, when copies may still run. `ready`: tokens published."""

    name: str
    ticket: Ticket
    state: Saving
    publish: bool = False
    ready: int = 0


class Saver(Generic[Key]):
    """Tickets by request. Any thread may beat and publish_sealed(); all else is called by one."""

    def __init__(
        self, outbox: OwnPool | None, counts: HandoffCounts, log: logging.Logger, at_once: bool = True
    ) -> None:
        """`outbox`: None where the unit has no pool: nothing is saved, and that is counted.

        `at_once`: a copy has ended when order()'s caller goes on, so that a spoilt ticket need not wait to be freed.
        """
        self._outbox, self._counts, self._log, self._at_once = outbox, counts, log, at_once
        self._kept: dict[Key, _Kept] = {}
        self._lock = threading.RLock()  # of the outbox, and of what becomes of a ticket at its end
        self.ending = threading.Event()  # set while tickets of ended requests wait for their copies

    def begin(self, key: Key, name: str, ticket_id: bytes | None = None) -> bool:
        """A FILLING ticket for a request, so that a consumer finds it; without an id a private one.

        False, counted and logged under the request's `name`, where there is none to be had.
        """
        if self._outbox is None:
            self._counts.save_failures[NO_POOL] += 1
            return False
        try:
            with self._lock:
                ticket = self._outbox.begin(ticket_id or secrets.token_bytes(16), READY_LEASE_S)
        except (KernelError, ValueError) as err:
            self._note(name, err)
            return False
        self._kept[key] = _Kept(name, ticket, Saving(private=ticket_id is None))
        return True

    @property
    def keys(self) -> list[Key]:
        """Requests whose tickets are being filled."""
        return list(self._kept)

    def ticket(self, key: Key) -> Ticket | None:
        """The ticket of a request that is being saved."""
        kept = self._kept.get(key)
        return None if kept is None else kept.ticket

    def order(self, key: Key, tokens: Sequence[int], known: int, tail: bool = False) -> range:
        """Takes what has come since into the ticket. The caller copies the KV of these tokens; empty: nothing to do.

        `tokens`: all of the request, of which the first `known` have KV.
        """
        kept = self._kept.get(key)
        wanted = range(0) if kept is None else kept.state.next(known, tail)
        if kept is None or not wanted:
            return range(0)
        try:
            with self._lock:
                kept.ticket.append(tokens[wanted.start : wanted.stop])
        except KernelError as err:
            self.failed(key, err)
            return range(0)
        kept.state = replace(kept.state, ordered=wanted.stop)
        return wanted

    def failed(self, key: Key, err: Exception) -> None:
        """A ticket that has no room or could not be written is of no use any more."""
        kept = self._kept.get(key)
        if kept is None:
            return
        self._note(kept.name, err)
        kept.state = replace(kept.state, spoilt=True)
        if self._at_once:
            self.drop(key)

    def keep(self, key: Key, name: str, tokens: Sequence[int], known: int) -> range:
        """order() for a request that is about to lose its blocks: all it has, in a private ticket if it has none."""
        if known <= 0 or self._outbox is None or (key not in self._kept and not self.begin(key, name)):
            return range(0)
        return self.order(key, tokens, known, tail=True)

    def readable(self, key: Key) -> int:
        """Tokens that a preempted request finds in its ticket."""
        kept = self._kept.get(key)
        return 0 if kept is None else kept.state.readable

    def restored(self, key: Key, whole: bool) -> None:
        """A preempted request has its KV back, or what was kept was not `whole`: then nobody else shall have it."""
        kept = self._kept.get(key)
        if kept is not None and (kept.state.private or not whole):
            self.drop(key)

    def end(self, key: Key, publish: bool) -> bool:
        """The request is over. True: copies into its ticket still run, settle() once they do not.

        Where all has been copied and sealed by now the ticket is READY before the request's answer goes out.
        """
        kept = self._kept.get(key)
        if kept is None:
            return False
        with self._lock:
            kept.publish = publish
            if self._at_once or self._sealed(kept):
                self.settle(key)
                return False
            self.ending.set()
        return True

    def publish_sealed(self) -> bool:
        """Publishes tickets of ended requests whose copies have ended since; False: no one waits for that any more."""
        with self._lock:
            waiting = [kept for kept in self._kept.values() if kept.publish and not self._sealed(kept)]
            if not waiting:
                self.ending.clear()
        return bool(waiting)

    def _sealed(self, kept: _Kept) -> bool:
        """FILLING -> READY, if every rank has sealed all tokens that were ordered: then no copy runs any more."""
        count = kept.ready or kept.state.published(kept.publish)
        if count and not kept.ready:
            try:
                kept.ticket.publish(count)
            except KernelError:
                return False
            kept.ready = count
        return count > 0

    def settle(self, key: Key) -> None:
        """No copy into the ticket of an ended request runs any more: READY or freed."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return
            if not self._sealed(kept):
                if kept.state.published(kept.publish):
                    self._note(kept.name, KernelError("not all that was ordered has been sealed", -4))
                return self.drop(key)
            del self._kept[key]
        self._counts.saved_tokens += kept.ready

    def drop(self, key: Key) -> None:
        """Frees the ticket, into which nothing may be writing; a consumer that waits for it recomputes."""
        with self._lock:
            kept = self._kept.pop(key, None)
            if kept is not None:
                kept.ticket.free()

    def discard(self, ticket_id: bytes) -> None:
        """Frees a ticket that nobody will come for, or, where a consumer has it by now, once that is done."""
        for key in [key for key, kept in self._kept.items() if kept.ticket.id == ticket_id]:
            del self._kept[key]
        with self._lock:
            ticket = self._outbox.find(ticket_id) if self._outbox is not None else None
            if ticket is not None:
                ticket.free()

    def beat(self, page: UnitStats) -> None:
        """Writes the stats page and frees tickets that are over."""
        with self._lock:
            if self._outbox is not None:
                self._outbox.reap()
                self._outbox.write_stats(page)

    def close(self) -> None:
        with self._lock:
            outbox, self._outbox = self._outbox, None
        if outbox is not None:
            outbox.close()

    def _note(self, name: str, err: Exception) -> None:
        self._counts.save_failures[reason_of(err)] += 1
        self._log.warning("handoff of request %s not saved: %s", name, err)
