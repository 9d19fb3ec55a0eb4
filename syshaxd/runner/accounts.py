"""What one request cost: latencies, route, handoffs. Writes metrics, its ledger entry's times and its timeline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, List, Optional, Tuple

from syshaxd.admission.queue import RequestQueue
from syshaxd.errors import UnitError
from syshaxd.metrics import MetricsService
from syshaxd.model.plan import Prediction, Reason
from syshaxd.unitclient import Usage

from .ledger import Entry
from .request import milliseconds
from .steps import Step
from .timeline import Timeline


class Accounts:
    """Of one request. All times are monotonic seconds."""

    def __init__(
        self, metrics: MetricsService, entry: Entry, timeline: Timeline, arrived: float, queue: RequestQueue
    ) -> None:
        self._metrics = metrics
        self._queue = queue
        self._entry = entry
        self._timeline = timeline
        self._arrived = arrived
        self._sides: List[str] = []
        self._handoff: Optional[Tuple[str, float]] = None  # kind, last token before it
        self._ended = False
        self._reason: Optional[Reason] = None
        self._expected = Prediction()
        self._planned_at = arrived

    @property
    def route(self) -> str:
        """Sides in order of visit, such as `accelerator>cpu`."""
        return ">".join(self._sides) or "none"

    def leg(self, step: Step, now: float, kv_bytes: Optional[int] = None) -> None:
        """A stay on a unit begins; `kv_bytes`: of the KV that the unit before offers."""
        side = step.unit.role.value
        if not self._sides or self._sides[-1] != side:
            self._sides.append(side)
        kind = "prefill" if step.prefill_only else step.handoff or "whole"
        with_kv = (step.load is not None) if step.handoff else None
        self._timeline.add(now, "leg", unit=step.unit.name, kind=kind, with_kv=with_kv, kv_bytes=kv_bytes)
        if step.handoff:
            self._handoff = (step.handoff, self._entry.last_token or now)
            self._entry.last_move = now
            if step.handoff not in ("split", "failover"):
                self._entry.moves += 1

    def took(self, step: Step, usage: Usage, now: float) -> None:
        """What the unit says at its end about the KV it was to load; the rest it computed."""
        cached = (usage.details or {}).get("cached_tokens")
        if step.load is not None and cached is not None:
            self._timeline.add(now, "loaded", unit=step.unit.name, tokens=cached, of=usage.prompt_tokens)

    def planned(self, reason: Reason, expected: Prediction, now: float) -> None:
        """The request begins, or begins anew because nothing was delivered."""
        self._sides.clear()
        self._handoff = None
        self._reason, self._expected, self._planned_at = reason, expected, now

    def stays(self) -> None:
        """A split that is not carried out: what was predicted of its decode holds no more."""
        self._expected = replace(self._expected, tpot=None)

    def tokens(self, now: float) -> None:
        """Tokens were committed."""
        entry = self._entry
        if entry.first_token is None:
            entry.first_token = now
            self._queue.changed()  # its prefill is done: there is room for another one
            self._metrics.first_token(now - self._arrived)
            self._timeline.add(now, "first_token")
        else:
            self._metrics.next_token(now - (entry.last_token or now))
        if self._handoff is not None:
            kind, since = self._handoff
            self._handoff = None
            self._metrics.handed_over(kind, "ok")
            self._metrics.gap(kind, now - since)
            self._timeline.add(now, "handed_over", kind=kind, gap_ms=round((now - since) * 1e3, 3))
        entry.last_token = now

    def failed(self, err: UnitError, now: float) -> None:
        """A leg failed."""
        self._metrics.unit_failed(err.unit, err.kind.value)
        self._timeline.add(now, "failed", unit=err.unit, kind=err.kind.value, why=str(err))
        if self._handoff is not None:
            self.handoff_ended(self._handoff[0], "target_failed", now)
            self._handoff = None

    def handoff_ended(self, kind: str, result: str, now: float) -> None:
        """A handoff that came to nothing: the stream is where it was, has ended, or goes on elsewhere."""
        self._metrics.handed_over(kind, result)
        self._timeline.add(now, "not_moved", kind=kind, result=result)

    def end(self, status: int, now: float, output_tokens: int) -> None:
        """The request is over; counted once."""
        if self._ended:
            return
        self._ended = True
        entry = self._entry
        self._timeline.add(now, "end", status=status, tokens=output_tokens, route=self.route)
        route = self._route_label()
        self._metrics.request_ended(entry.info.endpoint.value, route, status)
        if status == 200:
            seconds = now - self._arrived
            self._metrics.served(route, entry.prompt_tokens, output_tokens, seconds, self._tpot(output_tokens))
            self._compare(now, output_tokens)

    def _compare(self, now: float, output_tokens: int) -> None:
        """Predicted against observed, where no move came between. TTFT counts from the decision it was predicted at."""
        first, tpot = self._entry.first_token, self._tpot(output_tokens)
        if self._entry.moves or first is None:
            return
        pairs = (("ttft", self._expected.ttft, first - self._planned_at), ("tpot", self._expected.tpot, tpot))
        for what, expected, observed in pairs:
            if expected is not None and observed:
                self._metrics.predicted(what, expected, observed)
                values = {"expected_ms": round(expected * 1e3, 2), "observed_ms": round(observed * 1e3, 2)}
                self._timeline.add(now, f"{what}_error", **values)

    def summary(self, now: float, output_tokens: int) -> Dict[str, Any]:
        """For the access line; milliseconds."""
        entry = self._entry
        tpot = self._tpot(output_tokens)
        return {
            "route": self.route,
            "reason": None if self._reason is None else f"{self._reason.code}: {self._reason.text}",
            "tier": entry.info.tier.value,
            "prompt_tokens": entry.prompt_tokens,
            "output_tokens": output_tokens,
            "ttft_ms": None if entry.first_token is None else round((entry.first_token - self._arrived) * 1e3, 1),
            "tpot_ms": None if tpot is None else round(tpot * 1e3, 2),
            "ms": round((now - self._arrived) * 1e3, 1),
            "moves": entry.moves or None,
            **{f"{name}_ms": value for name, value in milliseconds(self._expected).items()},
        }

    def _tpot(self, output_tokens: int) -> Optional[float]:
        entry = self._entry
        if entry.first_token is None or entry.last_token is None or output_tokens < 2:
            return None
        return (entry.last_token - entry.first_token) / (output_tokens - 1)

    def _route_label(self) -> str:
        """A closed set, for metrics."""
        return self.route if len(self._sides) < 3 and self.route != "cpu>accelerator" else "moved"
