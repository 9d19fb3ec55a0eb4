"""What the predictive decider learns from one snapshot to the next. One owner (Scheduler); time is the snapshot's."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace

from syshaxd.model.snapshot import InFlight, Snapshot, UnitLoad, UnitSnapshot

from .lengths import LengthLog
from .outlook import Drift, Handoff, Knowledge
from .steptime import TRUSTED_SAMPLES, StepFit, StepModel, StepSample

PREFILL_MEMORY = 10.0  # seconds
HANDOFF_WEIGHT = 0.1
HANDOFF_MEMORY = 600.0  # seconds after which the cost of a handoff is what it was at first: another try is due
HANDOFF_OUTLIER = 4.0  # times the expected gap; a stuck handoff counts no more than that
DRIFT_LOOKS = 8  # different figures of a unit that must agree, so that a request on its way is no drift
HANDOFF_LEAST = 0.005  # seconds
ROUNDING = 32  # KV tokens that a request may hold beyond its own, for the last block


class Learner:
    """Fits step models, output lengths, prefill rates and the cost of a handoff."""

    def __init__(self) -> None:
        self._fits: dict[str, StepFit] = {}
        # By name; epochs beside: a unit started anew is measured anew, from what was known of it.
        self._last_step: dict[str, tuple[int, int]] = {}
        self._last_prompt: dict[str, tuple[int, float, int]] = {}
        self._prefill_rate: dict[str, tuple[float, float]] = {}  # at, tokens/s
        self._drift: dict[str, Drifts] = {}
        self._running: dict[str, int] = {}
        self._moving: dict[str, float] = {}
        self._lengths = LengthLog()
        self._handoff = Handoff()
        self._looked = 0.0

    def knowledge(self, now: float) -> Knowledge:
        """Everything learned so far, at that monotonic second."""
        rates = {
            name: rate * math.exp(-max(0.0, now - at) / PREFILL_MEMORY)
            for name, (at, rate) in self._prefill_rate.items()
        }
        return Knowledge(
            {name: fit.model for name, fit in self._fits.items()},
            self._lengths.lengths,
            rates,
            self._handoff,
            {name: drifts.drift() for name, drifts in self._drift.items()},
        )

    def models(self) -> Mapping[str, StepModel]:
        """Step models by unit."""
        return {name: fit.model for name, fit in self._fits.items()}

    def seed(self, unit: str, samples: Iterable[StepSample]) -> None:
        """Takes a calibration run of a unit, in place of what was known of it."""
        taken = list(samples)
        fit = self._fits[unit] = StepFit()
        if taken:  # often enough to be trusted: each is a median of several steps
            fit.seed(taken * math.ceil(2 * TRUSTED_SAMPLES / len(taken)))

    def look(self, snapshot: Snapshot) -> None:
        """Takes one snapshot into account; the same one twice changes nothing but the fading of rates."""
        for unit in snapshot.units:
            if unit.load is not None and unit.view.ready:
                self._look_at(unit, unit.load)
        self._look_at_requests(snapshot)
        faded = min(1.0, max(0.0, snapshot.at - self._looked) / HANDOFF_MEMORY)
        self._looked = snapshot.at
        fixed = self._handoff.fixed + faded * (Handoff().fixed - self._handoff.fixed)
        self._handoff = replace(self._handoff, fixed=fixed)

    def _look_at(self, unit: UnitSnapshot, load: UnitLoad) -> None:
        name, epoch = unit.view.name, unit.view.epoch
        sample = step_sample(load)
        if sample is not None and load.steps is not None and self._last_step.get(name) != (epoch, load.steps):
            self._last_step[name] = (epoch, load.steps)
            self._fits.setdefault(name, StepFit()).add(sample)
        if load.prompt_tokens is not None:
            self._note_prefill(name, epoch, load.at, load.prompt_tokens)
        self._drift.setdefault(name, Drifts()).look(unit, load)

    def _note_prefill(self, name: str, epoch: int, at: float, total: int) -> None:
        before = self._last_prompt.get(name)
        self._last_prompt[name] = (epoch, at, total)
        if before is None or before[0] != epoch or at <= before[1]:
            return
        passed = at - before[1]
        fading = math.exp(-passed / PREFILL_MEMORY)
        rate = max(0, total - before[2]) / passed
        self._prefill_rate[name] = (at, self._prefill_rate.get(name, (at, 0.0))[1] * fading + rate * (1.0 - fading))

    def _look_at_requests(self, snapshot: Snapshot) -> None:
        present = {entry.info.request_id: entry for entry in snapshot.in_flight}
        for request_id in [known for known in self._running if known not in present]:
            tokens = self._running.pop(request_id)
            self._moving.pop(request_id, None)
            if tokens > 0:
                self._lengths.add(tokens)
        for request_id, entry in present.items():
            self._running[request_id] = entry.output_tokens
            self._note_move(entry, snapshot.at)

    def _note_move(self, entry: InFlight, at: float) -> None:
        request_id = entry.info.request_id
        if entry.moving:
            self._moving.setdefault(request_id, at)
            return
        began = self._moving.pop(request_id, None)
        if began is not None:
            context = entry.prompt_tokens + entry.output_tokens
            gap = min(at - began, HANDOFF_OUTLIER * self._handoff.seconds(context))
            fixed = max(0.0, gap - self._handoff.per_token * context)
            weighed = self._handoff.fixed + HANDOFF_WEIGHT * (fixed - self._handoff.fixed)
            self._handoff = replace(self._handoff, fixed=max(HANDOFF_LEAST, weighed))


class Drifts:
    """The last figures of one unit beside the daemon's counters. One owner."""

    def __init__(self) -> None:
        self._at = 0.0
        self._seen: deque[tuple[int, int, int]] = deque(maxlen=DRIFT_LOOKS)

    def look(self, unit: UnitSnapshot, load: UnitLoad) -> None:
        """Takes a new figure into account; one seen before changes nothing."""
        if load.at == self._at or load.running is None or load.kv_used is None:
            return
        self._at = load.at
        seqs = load.running + (load.waiting or 0) - unit.in_flight
        decoding = unit.in_flight_tokens - unit.queued_prompt_tokens
        beyond = load.kv_used - unit.in_flight_tokens - ROUNDING * (unit.in_flight + 1)
        self._seen.append((seqs, beyond, load.kv_used - decoding))

    def drift(self) -> Drift:
        """Only what all of them agree on."""
        if len(self._seen) < DRIFT_LOOKS:
            return Drift()
        seqs, beyond = (max(0, min(column)) for column in list(zip(*self._seen))[:2])
        shared = max(seen[2] for seen in self._seen)
        return Drift(seqs, beyond if beyond > 0 else min(0, shared))


def step_sample(load: UnitLoad) -> StepSample | None:
    """The unit's last step in the terms of the model; None where the page does not tell.

    A step computes one token for every decoding request and a chunk for the request in prefill, if there is one.
    """
    if not load.step_tokens or not load.step_seconds or load.running is None:
        return None
    if load.step_tokens <= load.running:
        decoding, prefill = load.step_tokens, 0
    else:
        decoding = max(0, load.running - 1)
        prefill = load.step_tokens - decoding
    kv_tokens = load.kv_tokens if load.kv_tokens is not None else load.kv_used or 0
    return StepSample(decoding, prefill, kv_tokens, load.step_seconds)
