"""The ticket that a request has left behind on a unit: until another unit has taken it, somebody must give it up."""

from __future__ import annotations

from .aborts import discard_later
from .services import Services
from .sink import Sink
from .steps import Step, Ticket


class LeftTicket:
    """Of one request, which has one at most. A unit's lease ends a ticket too, but holds its memory for that long."""

    def __init__(self, services: Services, sink: Sink) -> None:
        self._services = services
        self._sink = sink
        self._step: Step | None = None

    def offer(self, allowed: bool) -> Ticket | None:
        """KV for the next unit to begin with, where KV may go from unit to unit; else nobody will come for it."""
        if not allowed:
            self.discard()
        return self._step.save if self._step is not None else None

    def leave(self, step: Step) -> None:
        """The step has ended and its unit has published its ticket."""
        self.discard()
        self._keep(step if step.save is not None else None)

    def taken(self) -> None:
        """A unit that was told to load it has answered: it has had it, or could not use it, and has given it back."""
        self._keep(None)

    def discard(self) -> None:
        """Nobody will come for it."""
        step = self._step
        self._keep(None)
        if step is not None:
            discard_later(self._services, step)

    def _keep(self, step: Step | None) -> None:
        self._step = step
        self._sink.kept_by(step.unit.name if step is not None else "")
