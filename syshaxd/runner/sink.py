"""All that happens to a request is told here, once: it goes to its ledger entry, its timeline and the metrics."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from syshaxd.errors import UnitError
from syshaxd.model.plan import Move, Prediction, Reason
from syshaxd.unitclient import Usage

from .client_request import ClientRequest, milliseconds
from .ledger import Entry
from .services import Services
from .steps import Step, kv_width
from .timeline import Timeline

LOADED = "loaded"
LOST = (
    "missing", "stale", "corrupt", "mismatch", "busy", "timeout", "bad_request", "preempted", "no_pool", "copy",
    "error",
)  # fmt: skip


def kv_result(usage: Usage) -> tuple[str, int]:
    """What became of KV that a unit was to load, and how many tokens it was spared. Pure.

    A unit that can't say why (vLLM) has "recomputed" when less than half of the context came.
    """
    details = usage.details or {}
    told = details.get("cached_tokens")
    cached = min(max(told, 0), usage.prompt_tokens) if isinstance(told, int) else 0
    lost = details.get("handoff_lost")
    if lost:
        return (lost if lost in LOST else "error"), cached
    return (LOADED if 2 * cached >= usage.prompt_tokens - 1 else "recomputed"), cached


class Sink:
    """Of one request. All times are monotonic seconds."""

    def __init__(self, services: Services, request: ClientRequest, timeline: Timeline) -> None:
        self.timeline = timeline
        self.entry = Entry(request.info, request.arrived, prompt_tokens=request.info.prompt_tokens)
        self._services = services
        self._metrics = services.metrics
        self._clock = asyncio.get_running_loop().time
        self._arrived = request.arrived
        self._sides: list[str] = []  # in order of visit
        self._handoff: tuple[str, float] | None = None  # kind, last token before it
        self._told: Step | None = None  # the last one whose unit has said what it loaded
        self._ended = False
        self._reason: Reason | None = None
        self._expected = Prediction()
        self._planned_at = request.arrived
        timeline.add(request.arrived, "admitted", endpoint=request.info.endpoint.value, stream=request.info.stream)
        self.stays(request.info.stays or request.info.first_token_stays)

    # ---- where it goes ----

    def planned(self, reason: Reason, expected: Prediction) -> None:
        """The request begins, or begins anew because nothing was delivered."""
        self._sides.clear()
        self._handoff = None
        self._reason, self._expected, self._planned_at = reason, expected, self._clock()

    def stays(self, rule: str | None) -> None:
        """A rule by which it must stay on its unit; the first one is told and counted."""
        if rule is not None and self.entry.stays is None:
            self.entry.stays = rule
            self._metrics.stays(rule)
            self.timeline.add(self._clock(), "stays", rule=rule)

    def leg(self, step: Step, output_tokens: int) -> None:
        """A stay on a unit begins, after so many tokens of output."""
        entry, now = self.entry, self._clock()
        entry.silent, entry.output_tokens = False, output_tokens
        self._services.ledger.place(entry, step.unit.name)
        side = step.unit.role.value
        if not self._sides or self._sides[-1] != side:
            self._sides.append(side)
        kind = "prefill" if step.prefill_only else step.handoff or "whole"
        with_kv = (step.load is not None) if step.handoff else None
        # Every token has its KV but the last one, which no unit has computed yet.
        tokens = entry.prompt_tokens + max(0, output_tokens - 1)
        kv_bytes = tokens * kv_width(step, self._services.snapshots.snapshot()) or None
        self.timeline.add(now, "leg", unit=step.unit.name, kind=kind, with_kv=with_kv, kv_bytes=kv_bytes)
        if step.handoff:
            self._handoff = (step.handoff, entry.last_token or now)
            entry.last_move = now
            if step.handoff not in ("split", "failover"):
                entry.moves += 1

    def not_split(self, stays_on: str, late: str) -> None:
        """A split is not carried out: what was predicted of its decode holds no more."""
        self._metrics.decided("stay", "split_late")
        self._expected = replace(self._expected, tpot=None)
        self.timeline.add(self._clock(), "kept", unit=stays_on, why=f"{late} would be late")

    def kept_by(self, unit: str) -> None:
        """That unit holds KV of the request which nobody has taken yet; "": none does."""
        self.entry.kept_by = unit

    # ---- moves ----

    def moving(self, move: Move) -> None:
        """The unit is told to end it, so that it can go on elsewhere."""
        self.entry.moving, self.entry.target = True, move.target
        self.timeline.add(self._clock(), "move", to=move.target, reason=move.reason.code, why=move.reason.text)

    def move_refused(self, move: Move, why: str) -> None:
        """It can't be moved; it is left alone for a while."""
        now = self._clock()
        self.entry.last_move = now
        self.timeline.add(now, "not_moved", to=move.target, why=why)

    def move_over(self, kind: str, result: str) -> None:
        """The move is decided; `result` "" when it goes on with a new leg, else it stays or goes on elsewhere."""
        self.entry.moving, self.entry.target = False, ""
        if result:
            self.entry.last_move = self._clock()  # not again at once
            self._handoff_ended(kind, result)

    def _handoff_ended(self, kind: str, result: str) -> None:
        self._metrics.handed_over(kind, result)
        self.timeline.add(self._clock(), "not_moved", kind=kind, result=result)

    # ---- what its units say ----

    def silent(self) -> None:
        """Its unit says nothing until its answer is whole."""
        self.entry.silent = True

    def prompt(self, tokens: int) -> None:
        """The unit says how long its prompt is."""
        self.entry.prompt_tokens = tokens

    def loaded(self, step: Step, usage: Usage) -> None:
        """What the unit says at its end about the KV it was to load; the rest it computed."""
        if step.load is None or self._told is step:
            return
        self._told = step
        result, cached = kv_result(usage)
        self._metrics.kv_taken_over(step.handoff or "again", result, cached, usage.prompt_tokens - cached)
        why = None if result == LOADED else result
        self.timeline.add(self._clock(), "loaded", unit=step.unit.name, tokens=cached, of=usage.prompt_tokens, lost=why)

    def tokens(self, output_tokens: int, events: int) -> None:
        """There are so many tokens of output now, the last ones come with `events` events at once."""
        entry, now = self.entry, self._clock()
        entry.output_tokens = output_tokens
        if entry.first_token is None:
            entry.first_token = now
            self._services.queue.changed()  # its prefill is done: there is room for another one
            self._metrics.first_token(now - self._arrived)
            self.timeline.add(now, "first_token")
        else:
            self._metrics.next_token(now - (entry.last_token or now))
        if events > 1:
            self._metrics.next_token(0.0, events - 1)
        if self._handoff is not None:
            kind, since = self._handoff
            self._handoff = None
            self._metrics.handed_over(kind, "ok")
            self._metrics.gap(kind, now - since)
            self.timeline.add(now, "handed_over", kind=kind, gap_ms=round((now - since) * 1e3, 3))
        entry.last_token = now

    def failed(self, err: UnitError) -> None:
        """A leg failed."""
        self._metrics.unit_failed(err.unit, err.kind.value)
        self.timeline.add(self._clock(), "failed", unit=err.unit, kind=err.kind.value, why=str(err))
        if self._handoff is not None:
            self._handoff_ended(self._handoff[0], "target_failed")
            self._handoff = None

    # ---- the end ----

    def ended(self, status: int, output_tokens: int) -> None:
        """The request is over; counted once."""
        self._services.ledger.remove(self.entry)
        self._services.queue.changed()
        if self._ended:
            return
        self._ended = True
        entry, now = self.entry, self._clock()
        self.timeline.add(now, "end", status=status, tokens=output_tokens, route=self._route())
        # A closed set, for metrics.
        route = self._route() if len(self._sides) < 3 and self._sides != ["cpu", "accelerator"] else "moved"
        self._metrics.request_ended(entry.info.endpoint.value, route, status)
        if status == 200:
            seconds = now - self._arrived
            self._metrics.served(route, entry.prompt_tokens, output_tokens, seconds, self._tpot(output_tokens))
            self._compare(output_tokens)

    def _compare(self, output_tokens: int) -> None:
        """Predicted against observed, where no move came between. TTFT counts from the decision it was predicted at."""
        first, tpot = self.entry.first_token, self._tpot(output_tokens)
        if self.entry.moves or first is None:
            return
        pairs = (("ttft", self._expected.ttft, first - self._planned_at), ("tpot", self._expected.tpot, tpot))
        for what, expected, observed in pairs:
            if expected is not None and observed:
                self._metrics.predicted(what, expected, observed)
                values = {"expected_ms": round(expected * 1e3, 2), "observed_ms": round(observed * 1e3, 2)}
                self.timeline.add(self._clock(), f"{what}_error", **values)

    def summary(self) -> dict[str, Any]:
        """For the access line; milliseconds."""
        entry = self.entry
        tpot = self._tpot(entry.output_tokens)
        return {
            "route": self._route(),
            "reason": None if self._reason is None else f"{self._reason.code}: {self._reason.text}",
            "tier": entry.info.tier.value,
            "prompt_tokens": entry.prompt_tokens,
            "output_tokens": entry.output_tokens,
            "ttft_ms": None if entry.first_token is None else round((entry.first_token - self._arrived) * 1e3, 1),
            "tpot_ms": None if tpot is None else round(tpot * 1e3, 2),
            "ms": round((self._clock() - self._arrived) * 1e3, 1),
            "moves": entry.moves or None,
            **{f"{name}_ms": value for name, value in milliseconds(self._expected).items()},
        }

    def _route(self) -> str:
        return ">".join(self._sides) or "none"

    def _tpot(self, output_tokens: int) -> float | None:
        entry = self.entry
        if entry.first_token is None or entry.last_token is None or output_tokens < 2:
            return None
        return (entry.last_token - entry.first_token) / (output_tokens - 1)
