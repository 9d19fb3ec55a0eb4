"""Requests in flight: which unit holds what. Written by Runner, read by SystemMonitor."""

from __future__ import annotations

from dataclasses import dataclass

from syshaxd.model.request import RequestInfo
from syshaxd.model.snapshot import InFlight


@dataclass
class Entry:
    """One request; its stream keeps it current. Times are monotonic seconds."""

    info: RequestInfo
    started: float
    unit: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    first_token: float | None = None
    last_token: float | None = None
    moves: int = 0
    last_move: float | None = None
    moving: bool = False
    target: str = ""
    stays: str | None = None
    kept_by: str = ""
    silent: bool = False
    left: str = ""

    def frozen(self) -> InFlight:
        """As others see it."""
        return InFlight(
            self.info,
            self.unit,
            self.started,
            self.first_token,
            self.prompt_tokens,
            self.output_tokens,
            self.moves,
            self.last_move,
            self.moving,
            self.last_token,
            self.target,
            self.stays,
            self.kept_by,
            self.silent,
            self.left,
        )


class InFlightLedger:
    """Engine makes it first and gives it to Runner and SystemMonitor. A request is in it while a unit holds it."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self.queued = 0  # requests held in the daemon

    def in_flight(self) -> tuple[InFlight, ...]:
        """One entry a request, oldest first."""
        return tuple(entry.frozen() for entry in self._entries.values())

    def per_unit(self) -> dict[str, int]:
        """Requests by unit."""
        counts: dict[str, int] = {}
        for entry in self._entries.values():
            counts[entry.unit] = counts.get(entry.unit, 0) + 1
        return counts

    def per_client(self) -> dict[str, int]:
        """Requests by API key."""
        counts: dict[str, int] = {}
        for entry in self._entries.values():
            counts[entry.info.client] = counts.get(entry.info.client, 0) + 1
        return counts

    def others(self, request_id: str) -> int:
        """Requests besides this one."""
        return len(self._entries) - (request_id in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def place(self, entry: Entry, unit: str) -> None:
        """The request is on that unit from now on."""
        if entry.unit and entry.unit != unit:
            entry.left = entry.unit
        entry.unit = unit
        self._entries[entry.info.request_id] = entry

    def remove(self, entry: Entry) -> None:
        """No unit holds it any more."""
        if self._entries.get(entry.info.request_id) is entry:
            del self._entries[entry.info.request_id]
