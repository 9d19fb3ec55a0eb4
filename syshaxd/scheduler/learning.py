"""What the predictive decider learns from one snapshot to the next. One owner (Scheduler); time is the snapshot's."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Dict, Iterable, Mapping, Optional, Tuple

from syshaxd.model.snapshot import InFlight, Snapshot, UnitLoad, UnitSnapshot

from .lengths import LengthLog
from .outlook import Handoff, Knowledge
from .steptime import TRUSTED_SAMPLES, StepFit, StepModel, StepSample

PREFILL_MEMORY = 10.0  # seconds
HANDOFF_WEIGHT = 0.1

UnitKey = Tuple[str, int]  # name and epoch: a unit started anew is measured anew, from what was known of it


class Learner:
    """Fits step models, output lengths, prefill rates and the cost of a handoff."""

    def __init__(self) -> None:
        self._fits: Dict[str, StepFit] = {}
        self._last_step: Dict[UnitKey, int] = {}
        self._last_prompt: Dict[UnitKey, Tuple[float, int]] = {}
        self._prefill_rate: Dict[str, float] = {}
        self._running: Dict[str, int] = {}
        self._moving: Dict[str, float] = {}
        self._lengths = LengthLog()
        self._handoff = Handoff()

    def knowledge(self) -> Knowledge:
        """Everything learned so far."""
        return Knowledge(
            {name: fit.model for name, fit in self._fits.items()},
            self._lengths.lengths,
            dict(self._prefill_rate),
            self._handoff,
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

    def _look_at(self, unit: UnitSnapshot, load: UnitLoad) -> None:
        key = (unit.view.name, unit.view.epoch)
        sample = step_sample(load)
        if sample is not None and load.steps is not None and self._last_step.get(key) != load.steps:
            self._last_step[key] = load.steps
            self._fits.setdefault(unit.view.name, StepFit()).add(sample)
        if load.prompt_tokens is not None:
            self._note_prefill(key, load.at, load.prompt_tokens)

    def _note_prefill(self, key: UnitKey, at: float, total: int) -> None:
        before = self._last_prompt.get(key)
        self._last_prompt[key] = (at, total)
        if before is None or at <= before[0]:
            return
        fading = math.exp(-(at - before[0]) / PREFILL_MEMORY)
        rate = max(0, total - before[1]) / (at - before[0])
        self._prefill_rate[key[0]] = self._prefill_rate.get(key[0], 0.0) * fading + rate * (1.0 - fading)

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
            fixed = max(0.0, at - began - self._handoff.per_token * context)
            gap = self._handoff.fixed + HANDOFF_WEIGHT * (fixed - self._handoff.fixed)
            self._handoff = replace(self._handoff, fixed=gap)


def step_sample(load: UnitLoad) -> Optional[StepSample]:
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
    return StepSample(decoding, prefill, load.kv_used or 0, load.step_seconds)
