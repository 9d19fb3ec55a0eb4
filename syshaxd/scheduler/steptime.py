"""How long one engine step of a unit takes: a five-coefficient model fitted online.

t(b, c, K) = base + per_seq*b + per_prefill*c + per_kv*K/1000 + per_crowd*max(0, b + c - KNEE) seconds for b decoding
sequences that hold K KV tokens together with c prefill tokens. The form follows the roofline of a decoder: weights are
read once, whatever the first tokens, compute counts from a knee on, KV is read per token. The fit is exponentially
forgotten least squares with non-negative coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

FORGETTING = 0.998
SOLVE_EVERY = 25
OUTLIER_RATIO = 4.0
TRUSTED_SAMPLES = 50
DIMENSIONS = 5
BIAS_WEIGHT, BIAS_SAMPLES, BIAS = 0.2, 12, math.log(1.3)  # a bias beyond 30 % over so many is no noise
KNEE = 128  # tokens of a step up to which accelerators wait for the weights, about


@dataclass(frozen=True)
class StepModel:
    """Coefficients in seconds (per_kv: seconds per 1,000 tokens), and how far to trust them."""

    base: float
    per_seq: float
    per_prefill: float
    per_kv: float
    samples: int = 0
    error: float = 1.0  # smoothed relative error of one-step predictions
    per_crowd: float = 0.0  # a token beyond KNEE

    def seconds(self, decoding: float, prefill_tokens: float, kv_tokens: float) -> float:
        """Duration of one step."""
        crowd = max(0.0, decoding + prefill_tokens - KNEE)
        linear = self.base + self.per_seq * decoding + self.per_prefill * prefill_tokens
        return linear + self.per_kv * kv_tokens / 1000.0 + self.per_crowd * crowd

    @property
    def trusted(self) -> bool:
        """Enough samples, and predictions that come true: below 50 % relative error."""
        return self.samples >= TRUSTED_SAMPLES and self.error <= 0.5


@dataclass(frozen=True)
class StepSample:
    """One observed step."""

    decoding: int
    prefill_tokens: int
    kv_tokens: int
    seconds: float


def _solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float] | None:
    """Gaussian elimination with pivoting; None for a singular matrix."""
    size = len(right)
    rows = [list(row) + [value] for row, value in zip(matrix, right)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda r: abs(rows[r][column]))
        if abs(rows[pivot][column]) < 1e-15:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for other in range(size):
            if other != column:
                factor = rows[other][column] / rows[column][column]
                rows[other] = [x - factor * y for x, y in zip(rows[other], rows[column])]
    return [rows[i][size] / rows[i][i] for i in range(size)]


class StepFit:
    """Fits a StepModel sample by sample. One owner; no clock, no I/O."""

    def __init__(self) -> None:
        self._gram = [[0.0] * DIMENSIONS for _ in range(DIMENSIONS)]
        self._right = [0.0] * DIMENSIONS
        self._scale = [1.0] * DIMENSIONS
        self._since_solve = 0
        self._surprises = 0
        self._bias = 0.0  # smoothed logarithm of seen over predicted
        self._since_scaling = 0
        self.model = StepModel(0.02, 0.0, 0.0, 0.0)

    def add(self, sample: StepSample) -> None:
        """Takes one step into account. Lone outliers (a page fault, a suspended machine) count little; a run of
        surprises means that the machine has changed, and then they count in full."""
        seconds = self._tempered(sample)
        crowd = max(0.0, float(sample.decoding + sample.prefill_tokens - KNEE))
        row = (1.0, float(sample.decoding), float(sample.prefill_tokens), sample.kv_tokens / 1000.0, crowd)
        for i in range(DIMENSIONS):
            self._scale[i] = max(self._scale[i], abs(row[i]))
            for j in range(DIMENSIONS):
                self._gram[i][j] = self._gram[i][j] * FORGETTING + row[i] * row[j]
            self._right[i] = self._right[i] * FORGETTING + row[i] * seconds
        self._note_error(sample)
        self._scale_all(seconds / self._predict(sample))
        self._since_solve += 1
        if self._since_solve >= SOLVE_EVERY or self.model.samples < SOLVE_EVERY:
            self._refit()

    def _scale_all(self, ratio: float) -> None:
        """A machine that has become slower or faster all over (a neighbour, a clock, another's calibration) is so at
        loads not seen since as well: then the whole model is scaled."""
        self._bias += BIAS_WEIGHT * (math.log(min(2.0, max(0.5, ratio))) - self._bias)
        self._since_scaling += 1
        if self._since_scaling < BIAS_SAMPLES or self.model.samples < TRUSTED_SAMPLES or abs(self._bias) < BIAS:
            return
        self._right = [value * math.exp(self._bias) for value in self._right]
        self._bias, self._since_scaling = 0.0, 0
        self._refit()

    def seed(self, samples: Iterable[StepSample]) -> None:
        """Takes a calibration run."""
        for sample in samples:
            self.add(sample)
        self._refit()

    def _tempered(self, sample: StepSample) -> float:
        if self.model.samples < TRUSTED_SAMPLES:
            return sample.seconds
        limit = OUTLIER_RATIO * self._predict(sample)
        if sample.seconds <= limit:
            self._surprises = 0
            return sample.seconds
        self._surprises += 1
        return sample.seconds if self._surprises > 3 else limit

    def _predict(self, sample: StepSample) -> float:
        return max(1e-6, self.model.seconds(sample.decoding, sample.prefill_tokens, sample.kv_tokens))

    def _note_error(self, sample: StepSample) -> None:
        relative = min(2.0, abs(self._predict(sample) - sample.seconds) / max(1e-6, sample.seconds))
        weight = max(0.02, 1.0 / (1 + self.model.samples))
        error = self.model.error + weight * (relative - self.model.error)
        m = self.model
        self.model = replace(m, samples=m.samples + 1, error=error)

    def _refit(self) -> None:
        self._since_solve = 0
        active = list(range(DIMENSIONS))
        while active:
            found = self._solve_for(active)
            if found is None:
                return
            if min(found) >= 0.0:
                weights = [0.0] * DIMENSIONS
                for index, value in zip(active, found):
                    weights[index] = value
                base, per_seq, per_prefill, per_kv, per_crowd = weights
                m = self.model
                self.model = StepModel(base, per_seq, per_prefill, per_kv, m.samples, m.error, per_crowd)
                return
            # Non-negative by active set: drop the most negative coefficient, relative to what it weighs.
            active.remove(min(zip(active, found), key=lambda pair: pair[1] * self._scale[pair[0]])[0])

    def _solve_for(self, active: Sequence[int]) -> list[float] | None:
        # A small ridge, relative to each column, keeps columns never exercised (no prefill seen yet) at zero.
        gram = [
            [self._gram[i][j] + (1e-6 * self._gram[i][i] + 1e-9 if i == j else 0.0) for j in active] for i in active
        ]
        return _solve(gram, [self._right[i] for i in active])
