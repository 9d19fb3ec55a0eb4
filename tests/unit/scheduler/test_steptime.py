"""The step-time fit finds the law it is shown, stays non-negative and survives outliers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syshaxd.scheduler.steptime import StepFit, StepModel, StepSample
from syshaxd.simulation.law import hosts

LAW = StepModel(0.012, 0.0004, 0.00006, 0.0008)


def samples(law: StepModel, count: int, seed: int, noise: float = 0.0) -> list[StepSample]:
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        b, c, kv = draw.randint(1, 64), draw.choice([0, 0, 256, 2048]), draw.randint(100, 60_000)
        found.append(StepSample(b, c, kv, law.seconds(b, c, kv) * (1 + draw.gauss(0, noise) if noise else 1)))
    return found


def relative_error(model: StepModel, law: StepModel) -> float:
    points = [(b, c, kv) for b in (1, 16, 64) for c in (0, 2048) for kv in (500, 50_000)]
    return max(abs(model.seconds(*p) - law.seconds(*p)) / law.seconds(*p) for p in points)


@given(st.floats(0.001, 0.1), st.floats(0, 0.002), st.floats(0, 0.0005), st.floats(0, 0.005), st.integers(0, 1000))
@settings(max_examples=40)
def test_it_finds_any_law(base: float, per_seq: float, per_prefill: float, per_kv: float, seed: int) -> None:
    law, fit = StepModel(base, per_seq, per_prefill, per_kv), StepFit()
    fit.seed(samples(law, 200, seed))
    assert relative_error(fit.model, law) < 0.02
    assert fit.model.trusted


def test_noise_and_lone_outliers_move_it_little() -> None:
    fit, draw = StepFit(), random.Random(3)
    for sample in samples(LAW, 600, 1, noise=0.05):
        spoiled = sample.seconds * 50 if draw.random() < 0.01 else sample.seconds
        fit.add(StepSample(sample.decoding, sample.prefill_tokens, sample.kv_tokens, spoiled))
    assert relative_error(fit.model, LAW) < 0.20


def test_it_recovers_from_a_calibration_wrong_by_two() -> None:
    wrong = StepModel(2 * LAW.base, 2 * LAW.per_seq, 2 * LAW.per_prefill, 2 * LAW.per_kv)
    fit = StepFit()
    fit.seed(samples(wrong, 60, 1))
    for sample in samples(LAW, 2000, 2, noise=0.05):
        fit.add(sample)
    assert relative_error(fit.model, LAW) < 0.10


def test_coefficients_are_never_negative() -> None:
    fit, draw = StepFit(), random.Random(5)
    for _ in range(500):
        fit.add(StepSample(draw.randint(0, 9), draw.randint(0, 50), draw.randint(0, 900), draw.expovariate(10)))
        model = fit.model
        assert min(model.base, model.per_seq, model.per_prefill, model.per_kv, model.per_crowd) >= 0.0


def test_few_samples_are_not_trusted() -> None:
    fit = StepFit()
    fit.seed(samples(LAW, 10, 0))
    assert not fit.model.trusted


def test_it_follows_a_roofline_over_its_knee() -> None:
    law, fit, draw = hosts()["A100x1-32B"].accelerator, StepFit(), random.Random(1)
    for _ in range(600):
        b, c, kv = draw.randint(1, 64), draw.choice([0, 0, 100, 300, 700, 1500, 2048]), draw.randint(100, 27_000)
        fit.add(StepSample(b, c, kv, law.seconds(b, c, kv)))
    points = [(b, c, 10_000) for b in (1, 16, 64) for c in (0, 100, 500, 2048)]
    assert max(abs(fit.model.seconds(*p) - law.seconds(*p)) / law.seconds(*p) for p in points) < 0.15


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_calibration_that_is_wrong_all_over_is_put_right_at_loads_not_seen_since(factor: float) -> None:
    law = StepModel(0.020, 0.0005, 0.0001, 0.0010)
    points = [(b, c, b * k) for b in (1, 4, 16, 64) for k in (100, 1000) for c in (0, 512, 2048)]
    fit = StepFit()
    fit.seed(StepSample(b, c, k, factor * law.seconds(b, c, k)) for b, c, k in points * 3)
    for number in range(50):
        b, c = 8 + number % 4, 512 * (number % 2)
        fit.add(StepSample(b, c, b * 500, law.seconds(b, c, b * 500)))
    assert fit.model.seconds(64, 2048, 64_000) == pytest.approx(law.seconds(64, 2048, 64_000), rel=0.2)
