"""The Scheduler learns from snapshots and falls back to thresholds until it can predict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from syshaxd.config.types import Config, SchedulerConfig, SloConfig
from syshaxd.model.plan import Split, Whole
from syshaxd.model.request import Endpoint, RequestInfo, Route, Tier
from syshaxd.model.snapshot import InFlight, Snapshot, UnitLoad, UnitSnapshot
from syshaxd.model.unit import BackendKind, Role, UnitState, UnitView
from syshaxd.scheduler import Scheduler
from syshaxd.scheduler.learning import Learner, step_sample
from syshaxd.scheduler.policy import policy_of
from syshaxd.scheduler.scheduler import predictive_policy
from syshaxd.scheduler.steptime import StepModel, StepSample

LAW = StepModel(0.010, 0.0003, 0.00005, 0.0004)
CONFIG = Config(scheduler=SchedulerConfig(decider="predictive", slo={"default": SloConfig(1.0, 0.05)}))


def unit(name: str, role: Role, load: UnitLoad) -> UnitSnapshot:
    view = UnitView(name, role, "sysinfer", BackendKind.PROCESS, UnitState.READY, "u", 1, pool_file=name)
    return UnitSnapshot(view, load)


def load(step: int, running: int = 4, tokens: int = 4, kv: int = 2000, at: float = 0.0) -> UnitLoad:
    prefill = tokens - running if tokens > running else 0
    decoding = running - 1 if prefill else tokens
    prefill = tokens - decoding if prefill else 0
    return UnitLoad(
        at, "page", running=running, waiting=0, kv_used=kv, kv_total=50_000, step_tokens=tokens,
        step_seconds=LAW.seconds(decoding, prefill, kv), steps=step, prompt_tokens=step * 10,
    )  # fmt: skip


def snapshot(step: int, entries: tuple[InFlight, ...] = (), at: float = 0.0) -> Snapshot:
    loads = load(step, 1 + step % 16, 1 + step % 16 if step % 3 else 512, 100 * (step % 97), at)
    return Snapshot(at, (unit("gpu", Role.ACCELERATOR, loads), unit("cpu", Role.CPU, loads)), entries)


def request(number: int = 0, route: Route | None = None) -> RequestInfo:
    return RequestInfo(str(number), Endpoint.CHAT, "", True, 200, None, route=route)


def test_it_learns_the_law_from_stats_pages() -> None:
    learner = Learner()
    for step in range(400):
        learner.look(snapshot(step, at=step * 0.25))
    model = learner.models()["gpu"]
    assert model.trusted
    assert model.seconds(8, 0, 5000) == pytest.approx(LAW.seconds(8, 0, 5000), rel=0.05)


def test_the_same_page_counts_once() -> None:
    learner = Learner()
    for _ in range(100):
        learner.look(snapshot(7))
    assert learner.models()["gpu"].samples == 1


def test_lengths_come_from_requests_that_ended() -> None:
    learner = Learner()
    entry = InFlight(request(1), "gpu", 0.0, 0.1, 200, 30)
    learner.look(snapshot(1, (entry,)))
    learner.look(snapshot(2, (replace(entry, output_tokens=55),)))
    learner.look(snapshot(3))
    assert learner.knowledge(0.0).lengths.values == (55,)


def test_the_cost_of_a_handoff_follows_what_moves_took() -> None:
    learner, entry = Learner(), InFlight(request(1), "gpu", 0.0, 0.1, 200, 30)
    for number in range(60):
        learner.look(snapshot(0, (replace(entry, moving=True),), at=number * 2.0))
        learner.look(snapshot(0, (entry,), at=number * 2.0 + 0.5))
    assert learner.knowledge(0.0).handoff.seconds(230) == pytest.approx(0.5, abs=0.05)


def test_a_step_with_prefill_is_told_from_decoding() -> None:
    assert step_sample(load(1, running=4, tokens=4)) == StepSample(4, 0, 2000, LAW.seconds(4, 0, 2000))
    sample = step_sample(load(1, running=4, tokens=515))
    assert sample is not None and (sample.decoding, sample.prefill_tokens) == (3, 512)
    assert step_sample(UnitLoad(0.0, "metrics", running=4)) is None


def test_thresholds_answer_until_the_models_are_trusted() -> None:
    scheduler = Scheduler(CONFIG)
    first = scheduler.decide(request(), snapshot(1))
    assert isinstance(first, Whole) and first.reason.code == "accelerator_free" and first.prediction.ttft is None
    for step in range(200):
        scheduler.moves(snapshot(step, at=step * 0.25))
    later = scheduler.decide(request(), snapshot(200, at=60.0))
    assert isinstance(later, Whole) and later.reason.code == "accelerator_fits" and later.prediction.ttft is not None


def test_a_calibration_makes_it_predict_at_once() -> None:
    scheduler = Scheduler(CONFIG)
    samples = [
        StepSample(b, c, kv, LAW.seconds(b, c, kv)) for b in (1, 4, 16) for c in (0, 256, 512) for kv in (100, 9000)
    ]
    scheduler.calibrate("gpu", samples * 4)
    plan = scheduler.decide(request(), snapshot(1))
    assert plan.reason.code == "accelerator_fits"


def test_a_forced_route_is_kept() -> None:
    scheduler = Scheduler(CONFIG)
    for step in range(200):
        scheduler.moves(snapshot(step, at=step * 0.25))
    assert isinstance(scheduler.decide(request(route=Route.SPLIT), snapshot(1)), Split)


def test_the_operators_limits_reach_the_policy() -> None:
    policy = predictive_policy(policy_of(CONFIG))
    assert (policy.limits[Tier.DEFAULT].ttft, policy.limits[Tier.DEFAULT].tpot) == (1.0, 0.05)
    assert policy.limits[Tier.FLEX].tpot == 0.25


def test_one_stuck_handoff_does_not_end_the_use_of_the_cpus() -> None:
    learner, entry = Learner(), InFlight(request(1), "gpu", 0.0, 0.1, 200, 30)
    learner.look(snapshot(0, (replace(entry, moving=True),), at=0.0))
    learner.look(snapshot(0, (entry,), at=3600.0))
    assert learner.knowledge(3600.0).handoff.seconds(230) < 0.1


def test_what_a_handoff_cost_is_forgotten_when_none_is_tried() -> None:
    learner, entry = Learner(), InFlight(request(1), "gpu", 0.0, 0.1, 200, 30)
    for number in range(60):
        learner.look(snapshot(0, (replace(entry, moving=True),), at=number * 2.0))
        learner.look(snapshot(0, (entry,), at=number * 2.0 + 1.0))
    slow = learner.knowledge(0.0).handoff.fixed
    for second in range(120, 3600, 10):
        learner.look(snapshot(0, at=float(second)))
    assert learner.knowledge(0.0).handoff.fixed < slow / 10


def test_the_prefill_rate_fades_while_nothing_is_heard() -> None:
    learner = Learner()
    for step in range(100):
        learner.look(snapshot(step, at=step * 0.25))
    now, later = (learner.knowledge(at).prefill_rate["gpu"] for at in (25.0, 65.0))
    assert now == pytest.approx(40.0, rel=0.2) and later < now / 20


def drifting(count: int, in_flight: int, running: int, held: int) -> Learner:
    learner = Learner()
    for step in range(count):
        loads = replace(load(step, running, running, held, at=float(step)))
        seen = replace(unit("gpu", Role.ACCELERATOR, loads), in_flight=in_flight, in_flight_tokens=in_flight * 500)
        learner.look(Snapshot(float(step), (seen,)))
    return learner


@pytest.mark.parametrize(
    "count, in_flight, running, held, seqs, kv",
    [
        (20, 4, 4, 2000, 0, 0),  # as the daemon counts
        (20, 4, 9, 6000, 5, 6000 - 2000 - 5 * 32),  # others use the unit
        (20, 4, 4, 900, 0, 900 - 2000),  # a shared prefix is held once
        (7, 4, 9, 6000, 0, 0),  # not for long enough
    ],
)
def test_a_units_own_figures_correct_the_daemons(
    count: int, in_flight: int, running: int, held: int, seqs: int, kv: int
) -> None:
    drift = drifting(count, in_flight, running, held).knowledge(0.0).drift["gpu"]
    assert (drift.seqs, drift.kv) == (seqs, kv)


def test_a_request_on_its_way_is_no_drift() -> None:
    learner = Learner()
    for step in range(40):
        loads = load(step, 4 + step % 2, 4, 2000, at=float(step))
        seen = replace(unit("gpu", Role.ACCELERATOR, loads), in_flight=4, in_flight_tokens=2000)
        learner.look(Snapshot(float(step), (seen,)))
    assert learner.knowledge(0.0).drift["gpu"].seqs == 0
