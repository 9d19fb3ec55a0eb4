"""The scheduler's goals (docs/scheduling.md) on a thinned version of bench/scheduler.py: seeded, so always the same."""

from __future__ import annotations

import statistics
from multiprocessing import get_context
from typing import Any, Dict, List, Tuple

import pytest

from bench.scheduler import MAIN, Pair, one
from syshaxd.cli.simulate.deciders import contestants

THIN = tuple(Pair(p.host, p.trace, p.saturation, p.requests // 4, (0,), p.longest) for p in MAIN)
OVERLOAD, HALF = 1.3, 0.5
KV_BOUND = ("A100x1-32B / servegen_r1_sampled", "A10-8B / azure_conv")
Scores = Dict[Tuple[str, float, str], Dict[str, Any]]


@pytest.fixture(scope="module")
def scores() -> Scores:
    """By pair, load and policy."""
    fixed = [c.name for c in contestants() if c.name.startswith("threshold ")]
    assert len(fixed) == 8
    at_overload = [*fixed, "admission without CPU", "predictive"]
    jobs = [(pair, OVERLOAD, 0, name) for pair in THIN for name in at_overload]
    jobs += [(pair, HALF, 0, name) for pair in THIN for name in ("accelerator only", "predictive")]
    with get_context("spawn").Pool(2) as pool:
        rows = pool.map(one, jobs, chunksize=4)
    return {(row["pair"], row["load"], row["policy"]): row for row in rows}


def goodput(scores: Scores, pair: str, policy: str) -> float:
    return float(scores[pair, OVERLOAD, policy]["goodput"])


@pytest.mark.timeout(240)
def test_predictive_beats_the_best_threshold_in_hindsight(scores: Scores) -> None:
    ratios: List[float] = []
    for pair in THIN:
        best = max(goodput(scores, pair.name, p) for n, _, p in scores if n == pair.name and p.startswith("threshold "))
        ratios.append(goodput(scores, pair.name, "predictive") / best)
    print("against the best threshold:", [round(ratio, 2) for ratio in ratios])
    assert statistics.median(ratios) >= 1.0


def test_it_does_no_harm_at_half_load(scores: Scores) -> None:
    for pair in THIN:
        ours = scores[pair.name, HALF, "predictive"]["attainment"]
        alone = scores[pair.name, HALF, "accelerator only"]["attainment"]
        print(pair.name, ours, alone)
        assert ours >= alone - 0.01, pair.name


@pytest.mark.parametrize("pair", KV_BOUND)
def test_the_cpu_earns_its_place_where_kv_is_short(scores: Scores, pair: str) -> None:
    ratio = goodput(scores, pair, "predictive") / goodput(scores, pair, "admission without CPU")
    print(pair, round(ratio, 2))
    assert ratio >= 1.1
