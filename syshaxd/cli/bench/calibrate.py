"""Step times of one unit, measured from outside: prefill at several lengths, decode at several batches and contexts."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable

from syshaxd.scheduler.steptime import StepFit, StepModel, StepSample

from .completions_client import BenchError, BenchRequest, CompletionsClient, Outcome
from .dataset import random_asks

PREFILLS = (64, 256, 1024)
BATCHES = (1, 2, 4, 8, 16)
CONTEXTS = (128, 512, 1024)
DECODE_TOKENS = 24


@dataclass(frozen=True)
class Calibration:
    """Samples in the terms of the step model, and the model they give."""

    samples: tuple[StepSample, ...]
    model: StepModel

    def as_json(self) -> Mapping[str, object]:
        """What the daemon reads back."""
        return {"format": 1, "samples": [vars(sample) for sample in self.samples]}

    def sentence(self) -> str:
        """The model in words."""
        m = self.model
        return (
            f"step = {m.base * 1e3:.2f} ms + {m.per_seq * 1e3:.3f} ms a sequence + {m.per_prefill * 1e6:.1f} us "
            f"a prefill token + {m.per_kv * 1e3:.3f} ms per 1,000 tokens of context ({len(self.samples)} samples)"
        )


async def calibrate(endpoint: CompletionsClient, seed: int, progress: Callable[[int, int], None]) -> Calibration:
    """About a minute of load on an otherwise idle unit."""
    plans = [(length, 1, 1) for length in PREFILLS] + [(c, b, DECODE_TOKENS) for c in CONTEXTS for b in BATCHES]
    samples: list[StepSample] = []
    for number, (length, batch, output) in enumerate(plans, start=1):
        asks = await random_asks(endpoint, batch, length, output, seed + number)
        outcomes = await _together(endpoint, asks)
        samples += _prefill(outcomes, length) if output == 1 else _decode(outcomes, length, batch)
        progress(number, len(plans))
    fit = StepFit()
    fit.seed(samples * 3)
    return Calibration(tuple(samples), fit.model)


async def _together(endpoint: CompletionsClient, asks: Sequence[BenchRequest]) -> Sequence[Outcome]:
    outcomes = await asyncio.gather(*(endpoint.generate(ask) for ask in asks))
    failed = next((outcome.error for outcome in outcomes if outcome.error), "")
    if failed:
        raise BenchError(f"calibration: {failed}")
    return outcomes


def _prefill(outcomes: Sequence[Outcome], length: int) -> list[StepSample]:
    return [StepSample(0, length, 0, outcome.ttft) for outcome in outcomes]


def _decode(outcomes: Sequence[Outcome], context: int, batch: int) -> list[StepSample]:
    """The pace of the median stream over its second half, while all of the batch decode. Means, because tokens that are
    read late are read together: single gaps are then 0 or several steps."""
    halves = [outcome.gaps[len(outcome.gaps) // 2 :] for outcome in outcomes]
    paces = [statistics.fmean(half) for half in halves if half]
    if not paces:
        return []
    return [StepSample(batch, 0, batch * (context + DECODE_TOKENS * 3 // 4), statistics.median(paces))]
