"""What happened to a request, for `syshax explain`: text, JSON and Chrome trace out of one list of events."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_EVENTS = 128  # of one request; the end is always kept
MAX_REQUESTS = 1024


@dataclass(frozen=True)
class TimelineEvent:
    """`at`: monotonic seconds; `values`: JSON-ready."""

    at: float
    what: str
    values: Mapping[str, Any]


@dataclass
class Timeline:
    """Events of one request in order. Written by its stream only."""

    request_id: str
    started: float
    events: list[TimelineEvent] = field(default_factory=list)
    dropped: int = 0

    def add(self, at: float, what: str, **values: Any) -> None:
        """Adds an event; beyond the bound the newest replaces the one before."""
        if len(self.events) >= MAX_EVENTS:
            self.dropped += 1
            self.events.pop()
        self.events.append(TimelineEvent(at, what, {key: value for key, value in values.items() if value is not None}))

    def as_json(self) -> dict[str, Any]:
        """Times in milliseconds since admission; with the same as text and as Chrome trace."""
        events = [{"ms": self._ms(event), "event": event.what, **event.values} for event in self.events]
        return {
            "request_id": self.request_id,
            "dropped": self.dropped,
            "events": events,
            "text": self.as_text(),
            "trace": self.as_trace(),
        }

    def as_text(self) -> str:
        """One line per event."""
        lines = (
            f"{self._ms(event):>10.1f} ms  {event.what:<12} " + " ".join(f"{k}={v}" for k, v in event.values.items())
            for event in self.events
        )
        return "\n".join([f"request {self.request_id}", *(line.rstrip() for line in lines)])

    def as_trace(self) -> dict[str, Any]:
        """Chrome's trace event format: a span per stay on a unit, an instant per event."""
        spans: list[dict[str, Any]] = []
        for event in self.events:
            spans.append(self._entry(event.what, event, ph="i", s="t", args=dict(event.values)))
        return {"traceEvents": [*self._legs(), *spans], "displayTimeUnit": "ms"}

    def _legs(self) -> list[dict[str, Any]]:
        opened: TimelineEvent | None = None
        spans: list[dict[str, Any]] = []
        for event in self.events:
            if opened is not None and event.what in ("leg", "end"):
                duration = round((event.at - opened.at) * 1e6)
                spans.append(self._entry(str(opened.values.get("unit")), opened, ph="X", dur=duration))
                opened = None
            if event.what == "leg":
                opened = event
        return spans

    def _entry(self, name: str, event: TimelineEvent, **values: Any) -> dict[str, Any]:
        return {"name": name, "pid": 1, "tid": 1, "ts": round((event.at - self.started) * 1e6), **values}

    def _ms(self, event: TimelineEvent) -> float:
        return round((event.at - self.started) * 1e3, 3)


class Timelines:
    """The last MAX_REQUESTS timelines by request id."""

    def __init__(self, size: int = MAX_REQUESTS) -> None:
        self._size = size
        self._kept: "OrderedDict[str, Timeline]" = OrderedDict()

    def begin(self, request_id: str, at: float) -> Timeline:
        """A new timeline; the oldest is forgotten."""
        timeline = Timeline(request_id, at)
        self._kept.pop(request_id, None)
        self._kept[request_id] = timeline
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return timeline

    def find(self, request_id: str) -> Timeline | None:
        """By id; None when never seen or forgotten."""
        return self._kept.get(request_id)

    def ids(self) -> tuple[str, ...]:
        """Oldest first."""
        return tuple(self._kept)
