"""Properties of the predictive decider: what must hold for every load."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syshaxd.admission.queue import last_ask, turn_of
from syshaxd.config.types import Config, SchedulerConfig, SloConfig
from syshaxd.model.plan import Queue, Refuse, Split, Whole
from syshaxd.model.request import Endpoint, RequestInfo, Route, Tier
from syshaxd.model.snapshot import InFlight, PdStatus, Snapshot, UnitLoad, UnitSnapshot
from syshaxd.model.unit import BackendKind, Role, UnitState, UnitView
from syshaxd.scheduler import Scheduler
from syshaxd.scheduler.lengths import LengthLog, Lengths
from syshaxd.scheduler.moving import choose_moves
from syshaxd.scheduler.outlook import (
    Drift,
    Knowledge,
    Limits,
    PredictivePolicy,
    UnitTraits,
    candidate,
    cpu_mean_tpot,
    limits_of,
    predicted_ttft,
    side_of,
)
from syshaxd.scheduler.predictive import Remembered, decide, in_a_hurry, keep_split, patience
from syshaxd.scheduler.steptime import StepModel, StepSample

POLICY = PredictivePolicy()
GPU = StepModel(0.010, 0.0002, 0.00005, 0.0002, samples=1000, error=0.05)
CPU = StepModel(0.060, 0.0010, 0.0020, 0.0030, samples=1000, error=0.05)
KNOWLEDGE = Knowledge(models={"gpu": GPU, "cpu": CPU})


def view(name: str, role: Role, state: UnitState = UnitState.READY) -> UnitView:
    return UnitView(name, role, "vllm", BackendKind.EXTERNAL, state, "http://127.0.0.1:1", pool_file=name)


def info(number: int = 0, prompt: int = 500, tier: Tier = Tier.DEFAULT, stays: str | None = None) -> RequestInfo:
    return RequestInfo(str(number), Endpoint.CHAT, "m", True, prompt, None, tier=tier, stays=stays)


def running(count: int, unit: str, output: int = 50, now: float = 100.0, context: int = 500) -> tuple[InFlight, ...]:
    return tuple(
        InFlight(info(i if unit == "gpu" else 1000 + i), unit, now - 10, now - 5, context, output) for i in range(count)
    )


def world(
    gpu: int = 0,
    cpu: int = 0,
    queued: int = 0,
    context: int = 500,
    capacity: int = 100_000,
    states: tuple[UnitState, UnitState] = (UnitState.READY, UnitState.READY),
) -> Snapshot:
    load = UnitLoad(100.0, "page", kv_total=capacity)
    on_gpu, on_cpu = running(gpu, "gpu", context=context), running(cpu, "cpu", context=context)
    units = (
        UnitSnapshot(
            view("gpu", Role.ACCELERATOR, states[0]),
            load,
            gpu + queued,
            (gpu + queued) * context,
            queued,
            queued * context,
        ),
        UnitSnapshot(view("cpu", Role.CPU, states[1]), load, cpu, cpu * (context + 50)),
    )
    return Snapshot(100.0, units, on_gpu + on_cpu)


loads = st.builds(
    world,
    gpu=st.integers(0, 300),
    cpu=st.integers(0, 40),
    queued=st.integers(0, 50),
    context=st.integers(1, 6000),
    capacity=st.sampled_from([2000, 30_000, 250_000]),
    states=st.tuples(st.just(UnitState.READY), st.sampled_from(list(UnitState))),
)
hints = st.one_of(st.none(), st.sampled_from([1e-9, 0.05, 3.0, 1e6]), st.floats(1e-6, 1e6))
requests = st.builds(
    replace,
    st.builds(
        info,
        number=st.just(9999),
        prompt=st.integers(1, 20_000),
        tier=st.sampled_from(list(Tier)),
        stays=st.sampled_from([None, "tools"]),
    ),
    slo_ttft=hints,
    slo_tpot=hints,
    waited=st.one_of(st.just(0.0), st.floats(0.0, 5.0)),
)
loads = st.builds(
    lambda snapshot, queued, tokens, ahead: replace(
        snapshot, queued=queued, queued_tokens=tokens, queued_ahead=int(tokens * ahead)
    ),
    loads,
    st.sampled_from([0, 1, 255, 256]),
    st.integers(0, 50_000),
    st.floats(0, 1),
)


@given(loads, requests)
def test_only_ready_units_are_chosen(snapshot: Snapshot, request: RequestInfo) -> None:
    plan = decide(request, snapshot, KNOWLEDGE, Remembered(), POLICY).plan
    ready = {unit.view.name for unit in snapshot.units if unit.view.ready}
    named = (
        {plan.unit} if isinstance(plan, Whole) else {plan.prefill, plan.decode} if isinstance(plan, Split) else set()
    )
    assert named <= ready
    assert plan.reason.code and plan.reason.text


@given(loads, requests)
def test_a_plan_never_breaks_a_predicted_limit_it_was_told_to_keep(snapshot: Snapshot, request: RequestInfo) -> None:
    policy = replace(POLICY, serve_late=False)
    plan = decide(request, snapshot, KNOWLEDGE, Remembered(), policy).plan
    if isinstance(plan, (Whole, Split)):
        assert plan.prediction.ttft is not None and plan.prediction.tpot is not None
        limits, waited = limits_of(request, policy), request.waited if in_a_hurry(request) else 0.0
        assert plan.prediction.ttft <= policy.safety * limits.ttft
        assert plan.prediction.ttft + waited <= policy.held_safety * limits.ttft
        assert plan.prediction.tpot <= (policy.tpot_safety if isinstance(plan, Whole) else policy.safety) * limits.tpot
        assert policy.tpot_safety < 1.0


@given(requests)
def test_a_request_that_must_stay_is_never_split(request: RequestInfo) -> None:
    snapshot = world(gpu=200, context=2000)
    plan = decide(replace(request, stays="tools"), snapshot, KNOWLEDGE, Remembered(), POLICY).plan
    assert not isinstance(plan, Split)


@given(loads, requests)
def test_no_split_while_pd_is_off(snapshot: Snapshot, request: RequestInfo) -> None:
    off = replace(snapshot, pd=PdStatus(False, "self-check failed"))
    assert not isinstance(decide(request, off, KNOWLEDGE, Remembered(), POLICY).plan, Split)
    assert choose_moves(off, KNOWLEDGE, Remembered(), POLICY).moves == ()


@given(st.integers(0, 120), st.integers(1, 120), st.integers(1, 4000))
def test_more_load_never_turns_a_refusal_into_the_accelerator(few: int, more: int, prompt: int) -> None:
    request = info(9999, prompt)
    light = decide(request, world(gpu=few, queued=few // 8), KNOWLEDGE, Remembered(), POLICY).plan
    heavy = decide(request, world(gpu=few + more, queued=(few + more) // 8), KNOWLEDGE, Remembered(), POLICY).plan
    if isinstance(light, (Refuse, Queue)):
        assert not (isinstance(heavy, Whole) and heavy.unit == "gpu")


@given(loads, requests, st.integers(2, 20))
@settings(max_examples=50)
def test_no_oscillation_at_constant_load(snapshot: Snapshot, request: RequestInfo, times: int) -> None:
    decision = decide(request, snapshot, KNOWLEDGE, Remembered(), POLICY)
    decision = decide(request, snapshot, KNOWLEDGE, decision.memory, POLICY)
    for _ in range(times):
        again = decide(request, snapshot, KNOWLEDGE, decision.memory, POLICY)
        assert type(again.plan) is type(decision.plan)
        decision = again


def test_an_idle_accelerator_serves_alone() -> None:
    plan = decide(info(), world(), KNOWLEDGE, Remembered(), POLICY).plan
    assert isinstance(plan, Whole) and plan.unit == "gpu"


def test_a_pressed_accelerator_splits_to_an_idle_cpu() -> None:
    slow_cpu_helps = Knowledge(models={"gpu": GPU, "cpu": replace(CPU, base=0.03)})
    snapshot = world(gpu=50, context=500, capacity=30_000)
    plan = decide(info(prompt=400), snapshot, slow_cpu_helps, Remembered(), POLICY).plan
    assert isinstance(plan, Split) and plan.k == 1


def test_the_first_token_stays_where_it_must() -> None:
    helps = Knowledge(models={"gpu": GPU, "cpu": replace(CPU, base=0.03)})
    request = replace(info(prompt=400), first_token_stays="seed")
    plan = decide(request, world(gpu=50, capacity=30_000), helps, Remembered(), POLICY).plan
    assert isinstance(plan, Split) and plan.k == 0


def test_flex_is_queued_where_others_are_refused() -> None:
    snapshot = world(gpu=200, queued=20, context=4000, capacity=30_000, states=(UnitState.READY, UnitState.FAILED))
    assert isinstance(decide(info(tier=Tier.DEFAULT), snapshot, KNOWLEDGE, Remembered(), POLICY).plan, Refuse)
    assert isinstance(decide(info(tier=Tier.FLEX), snapshot, KNOWLEDGE, Remembered(), POLICY).plan, Queue)


NO_CPU = (UnitState.READY, UnitState.FAILED)


def test_who_may_still_be_in_time_waits_in_the_daemon() -> None:
    """The unit is full for now; a place there may come free before the limit is over."""
    full = world(gpu=66, context=500, capacity=30_000, states=NO_CPU)
    plan = decide(info(), full, KNOWLEDGE, Remembered(), POLICY).plan
    assert isinstance(plan, Queue) and plan.reason.code in ("queue_kv", "queue_ttft")
    assert 0 < plan.deadline < POLICY.limits[Tier.DEFAULT].ttft


def test_who_is_late_is_refused_before_his_prefill() -> None:
    full = world(gpu=66, context=500, capacity=30_000, states=NO_CPU)
    late = decide(replace(info(), waited=1.9), full, KNOWLEDGE, Remembered(), POLICY).plan
    assert isinstance(late, Refuse) and late.reason.code == "refuse_late" and (late.retry_after or 0) >= 0.1
    flex = decide(replace(info(tier=Tier.FLEX), waited=1.9), full, KNOWLEDGE, Remembered(), POLICY).plan
    assert isinstance(flex, Queue)


def test_who_is_late_by_himself_is_served_where_that_costs_nobody_anything() -> None:
    assert isinstance(decide(replace(info(), waited=9.0), world(gpu=2), KNOWLEDGE, Remembered(), POLICY).plan, Whole)


def test_a_unit_gets_no_more_prompts_than_it_needs_to_stay_busy() -> None:
    slow = Knowledge(models={"gpu": replace(GPU, per_prefill=0.0002), "cpu": CPU})
    few, many = world(queued=1, context=2000), world(queued=3, context=2000)
    assert isinstance(decide(info(), few, slow, Remembered(), POLICY).plan, Whole)
    plan = decide(info(), many, slow, Remembered(), POLICY).plan
    assert isinstance(plan, Queue) and plan.reason.code == "queue_backlog"
    full = replace(many, queued=POLICY.max_queue)
    assert isinstance(decide(info(), full, slow, Remembered(), POLICY).plan, Refuse)


@given(st.integers(0, 30), st.integers(2, 6), st.integers(1, 341), st.integers(1, 3000))
def test_nobody_is_held_back_for_a_unit_with_less_than_a_step_of_prompts(
    gpu: int, queued: int, context: int, prompt: int
) -> None:
    assert queued * context <= UnitTraits().prefill_chunk
    plan = decide(
        info(prompt=prompt), world(gpu=gpu, queued=queued, context=context), KNOWLEDGE, Remembered(), POLICY
    ).plan
    assert plan.reason.code != "queue_backlog"


@pytest.mark.parametrize("waits", ["queue", "others"])
def test_the_last_ask_comes_while_the_answer_may_still_be_yes(waits: str) -> None:
    """Who was never asked because others went first is not refused beside a unit that has room."""
    now, roomy = 100.0, world(gpu=10)
    turn = turn_of(info(), now + patience(info(), POLICY))
    busy = replace(world(gpu=66, context=500, capacity=30_000, states=NO_CPU), at=now)
    first = decide(info(), busy if waits == "queue" else roomy, KNOWLEDGE, Remembered(), POLICY).plan
    asked = last_ask(turn, first, now)
    assert now + 1.0 < asked < turn.deadline
    again = decide(replace(info(), waited=asked - now), replace(roomy, at=asked), KNOWLEDGE, Remembered(), POLICY).plan
    assert isinstance(again, Whole)


def test_who_stands_behind_a_long_queue_is_told_at_once() -> None:
    behind = replace(world(), queued=100, queued_tokens=90_000, queued_ahead=90_000)
    plan = decide(info(), behind, KNOWLEDGE, Remembered(), POLICY).plan
    assert isinstance(plan, Refuse) and plan.reason.code == "refuse_ttft" and (plan.retry_after or 0) > 1.0


def test_what_no_empty_unit_could_keep_is_refused_at_once() -> None:
    absurd = replace(info(), slo_tpot=1e-6)
    assert isinstance(decide(absurd, world(gpu=3), KNOWLEDGE, Remembered(), POLICY).plan, Refuse)
    huge = decide(info(prompt=5000), world(capacity=2000), KNOWLEDGE, Remembered(), POLICY).plan
    assert isinstance(huge, Refuse)


@given(loads, requests)
def test_a_wait_ends_while_the_limit_can_still_be_kept(snapshot: Snapshot, request: RequestInfo) -> None:
    plan = decide(request, snapshot, KNOWLEDGE, Remembered(), POLICY).plan
    if isinstance(plan, Queue):
        assert snapshot.queued < POLICY.max_queue
        assert 0 <= plan.deadline <= POLICY.queue_timeout
        assert request.waited + plan.deadline <= patience(request, POLICY) or plan.deadline == 0


@given(loads, requests, st.sampled_from(list(UnitState)), st.sampled_from(list(UnitState)))
@settings(max_examples=50)
def test_the_scheduler_names_only_ready_units_whichever_are_down(
    snapshot: Snapshot, request: RequestInfo, gpu: UnitState, cpu: UnitState
) -> None:
    scheduler = Scheduler(Config(scheduler=SchedulerConfig(slo={"default": SloConfig(2.0, 0.1)})))
    points = [(b, c, b * k) for b in (1, 8, 32) for k in (100, 900) for c in (0, 512, 2048)]
    for name, model in (("gpu", GPU), ("cpu", CPU)):
        scheduler.calibrate(name, [StepSample(b, c, kv, model.seconds(b, c, kv)) for b, c, kv in points])
    states = {"gpu": gpu, "cpu": cpu}
    units = tuple(replace(u, view=replace(u.view, state=states[u.view.name])) for u in snapshot.units)
    ready = {unit.view.name for unit in units if unit.view.ready}
    snapshot = replace(snapshot, units=units)
    plan = scheduler.decide(request, snapshot)
    if isinstance(plan, Whole):
        assert plan.unit in ready
    elif isinstance(plan, Split):
        assert {plan.prefill, plan.decode} <= ready
    for move in scheduler.moves(snapshot):
        assert move.target in ready


def test_routes_when_a_side_is_down() -> None:
    no_cpu = world(gpu=50, capacity=30_000, states=(UnitState.READY, UnitState.FAILED))
    plan = decide(info(prompt=400), no_cpu, KNOWLEDGE, Remembered(), POLICY).plan
    assert isinstance(plan, Whole) and plan.unit == "gpu"


def test_a_prompt_too_long_for_its_limit_is_served_late_while_nobody_waits() -> None:
    slow_prefill = Knowledge(models={"gpu": replace(GPU, per_prefill=0.0005), "cpu": CPU})
    plan = decide(info(prompt=6000), world(), slow_prefill, Remembered(), POLICY).plan
    assert isinstance(plan, Whole)


def test_victims_keep_their_promise_and_are_the_largest() -> None:
    helps = Knowledge(models={"gpu": GPU, "cpu": replace(CPU, base=0.02, per_kv=0.0005)})
    snapshot = world(gpu=55, context=500, capacity=28_000)
    big = replace(snapshot.in_flight[7], prompt_tokens=3000)
    snapshot = replace(snapshot, in_flight=snapshot.in_flight[:7] + (big,) + snapshot.in_flight[8:])
    moves = choose_moves(snapshot, helps, Remembered(), POLICY).moves
    assert [move.request_id for move in moves] == [big.info.request_id]
    who = candidate(big, snapshot.at, helps.lengths, POLICY)
    cpu = side_of(snapshot.units[1], helps)
    assert cpu_mean_tpot(cpu, who, helps) <= POLICY.safety * limits_of(big.info, POLICY).tpot


def test_the_preempted_leave_first() -> None:
    """They get no token while others wait: their KV is saved, and they lose nothing by a move."""
    helps = Knowledge(models={"gpu": GPU, "cpu": replace(CPU, base=0.02, per_kv=0.0005)})
    snapshot = world(gpu=55, context=500, capacity=28_000)
    entries = [replace(entry, last_token=snapshot.at) for entry in snapshot.in_flight]
    entries[4] = replace(entries[4], last_token=snapshot.at - 2)
    gpu = snapshot.units[0]
    assert gpu.load is not None
    waiting = replace(gpu, load=replace(gpu.load, waiting=1))
    snapshot = replace(snapshot, units=(waiting, *snapshot.units[1:]), in_flight=tuple(entries))
    moves = choose_moves(snapshot, helps, Remembered(), POLICY).moves
    assert [(move.request_id, move.reason.code) for move in moves] == [(entries[4].info.request_id, "preempted")]


@pytest.mark.parametrize("values", [{"stays": "n"}, {"first_token_stays": "seed"}, {"route": Route.ACCELERATOR}])
def test_what_the_rules_keep_is_no_victim(values: dict[str, Any]) -> None:
    helps = Knowledge(models={"gpu": GPU, "cpu": replace(CPU, base=0.02, per_kv=0.0005)})
    snapshot = world(gpu=55, context=500, capacity=28_000)
    kept = tuple(replace(entry, info=replace(entry.info, **values)) for entry in snapshot.in_flight)
    assert choose_moves(snapshot, helps, Remembered(), POLICY).moves
    assert choose_moves(replace(snapshot, in_flight=kept), helps, Remembered(), POLICY).moves == ()


def test_what_has_left_is_not_counted_by_the_units_old_figures() -> None:
    """40 cycles with the same page of the unit: the daemon's own counters say when enough have gone."""
    helps = Knowledge(models={"gpu": GPU, "cpu": replace(CPU, base=0.02, per_kv=0.0005)})
    snapshot, memory, went = world(gpu=55, context=500, capacity=28_000), Remembered(), 0
    for cycle in range(40):
        chosen = choose_moves(replace(snapshot, at=100.0 + cycle), helps, memory, POLICY)
        memory = chosen.memory
        for _ in chosen.moves:
            went += 1
            left = world(gpu=55 - went, context=500, capacity=28_000)
            gone = replace(running(1, "cpu", now=100.0 + cycle)[0], left="gpu", last_move=100.0 + cycle)
            snapshot = replace(left, in_flight=(*left.in_flight, gone))
    assert went == 2  # 500 tokens each, from 27,500 to below 26,600


def test_a_late_resident_returns_when_there_is_room() -> None:
    crawling = Knowledge(models={"gpu": GPU, "cpu": replace(CPU, base=0.5)})
    moves = choose_moves(world(gpu=2, cpu=3), crawling, Remembered(), POLICY).moves
    assert len(moves) == 1 and moves[0].target == "gpu" and moves[0].reason.code == "return"


def test_moves_are_paced() -> None:
    crawling = Knowledge(models={"gpu": GPU, "cpu": replace(CPU, base=0.5)})
    first = choose_moves(world(gpu=2, cpu=3), crawling, Remembered(), POLICY)
    assert choose_moves(world(gpu=2, cpu=3), crawling, first.memory, POLICY).moves == ()


@given(loads)
def test_moves_name_running_movable_requests_and_ready_targets(snapshot: Snapshot) -> None:
    for move in choose_moves(snapshot, KNOWLEDGE, Remembered(), POLICY).moves:
        entry = next(e for e in snapshot.in_flight if e.info.request_id == move.request_id)
        target = snapshot.unit(move.target)
        assert target is not None and target.view.ready and entry.unit != move.target and not entry.moving


@given(st.lists(st.integers(1, 5000), max_size=800), st.integers(0, 6000))
@settings(max_examples=50)
def test_length_statistics_match_their_definition(outputs: list[int], generated: int) -> None:
    log = LengthLog()
    for tokens in outputs:
        log.add(tokens)
    window = outputs[-500:]
    longer = [x for x in window if x > generated]
    if len(longer) > 5:
        assert abs(log.lengths.remaining(generated) - max(1.0, sum(longer) / len(longer) - generated)) < 1e-6
    assert log.lengths.remaining(generated) >= 1.0
    assert len(log.lengths.values) == len(window)


def test_unknown_lengths_have_a_default() -> None:
    assert Lengths().remaining(0) == 50.0


def test_a_clients_absurd_hint_changes_nothing_for_others() -> None:
    memory = Remembered()
    for number in range(200):
        absurd = replace(info(number), slo_ttft=1e-6, slo_tpot=1e-6)
        memory = decide(absurd, world(gpu=3), KNOWLEDGE, memory, POLICY).memory
    assert not memory.offloading
    plan = decide(info(), world(gpu=3), KNOWLEDGE, memory, POLICY).plan
    assert isinstance(plan, Whole) and plan.unit == "gpu"


def test_who_has_more_time_than_its_tier_waits_in_the_daemon_not_before_others() -> None:
    busy = world(gpu=20, queued=60, context=3000, capacity=250_000)
    patient = decide(replace(info(), slo_ttft=500.0), busy, KNOWLEDGE, Remembered(), POLICY).plan
    assert isinstance(patient, Queue) and patient.reason.code == "queue_ttft"
    assert isinstance(decide(info(), busy, KNOWLEDGE, Remembered(), POLICY).plan, Refuse)


def test_the_time_to_come_back_after_is_bounded() -> None:
    crawling = Knowledge(models={"gpu": replace(GPU, base=50.0, per_prefill=10.0), "cpu": CPU})
    plan = decide(info(), world(gpu=200, queued=50), crawling, Remembered(), POLICY).plan
    assert isinstance(plan, Refuse) and plan.retry_after is not None and 0.1 <= plan.retry_after <= 60.0


def test_what_the_unit_tells_of_itself_bounds_the_predictions() -> None:
    told = UnitLoad(100.0, "page", kv_total=100_000, max_num_seqs=8, max_step_tokens=64)
    plain = world(gpu=7, queued=4)
    gpu = plain.units[0]
    small = side_of(replace(gpu, load=told), KNOWLEDGE)
    assert (small.traits.max_num_seqs, small.traits.prefill_chunk) == (8, 64)
    usual = side_of(gpu, KNOWLEDGE)
    assert predicted_ttft(small, 500, KNOWLEDGE, POLICY) > 2 * predicted_ttft(usual, 500, KNOWLEDGE, POLICY)
    silent = replace(gpu, view=replace(gpu.view, max_num_seqs=16, max_step_tokens=512))  # as configured
    assert side_of(silent, KNOWLEDGE).traits == UnitTraits(16, 512)
    assert side_of(replace(silent, load=told), KNOWLEDGE).traits == UnitTraits(8, 64)


def test_requests_of_others_on_a_unit_count_and_shared_prefixes_are_held_once() -> None:
    gpu = world(gpu=10, capacity=30_000).units[0]
    foreign = side_of(gpu, replace(KNOWLEDGE, drift={"gpu": Drift(seqs=5, kv=9000)}))
    alone = side_of(gpu, KNOWLEDGE)
    assert (foreign.decoding, foreign.kv, foreign.held) == (alone.decoding + 5, alone.kv + 9000, alone.held + 9000)
    sharing = side_of(gpu, replace(KNOWLEDGE, drift={"gpu": Drift(kv=-3000)}))
    assert (sharing.kv, sharing.held) == (alone.kv, alone.held - 3000)


@pytest.mark.parametrize("cpu, gpu_batch, kept", [(replace(CPU, base=0.02), 0, True), (CPU, 0, True), (CPU, 40, False)])
def test_the_cpus_promise_is_asked_again_at_the_first_token(cpu: StepModel, gpu_batch: int, kept: bool) -> None:
    known = Knowledge(models={"gpu": GPU, "cpu": cpu})
    assert keep_split(info(9999), "cpu", 500, world(cpu=gpu_batch), known, POLICY) is kept


def test_the_cpu_of_a_split_that_is_gone_by_then_keeps_nothing() -> None:
    gone = world(states=(UnitState.READY, UnitState.FAILED))
    assert not keep_split(info(), "cpu", 500, gone, KNOWLEDGE, POLICY)
    assert not keep_split(info(), "nobody", 500, gone, KNOWLEDGE, POLICY)


def test_the_guard_keeps_a_weak_cpu_for_flex() -> None:
    strong = StepModel(0.002, 0.00001, 0.00001, 0.0002, samples=1000, error=0.05)
    weak = StepModel(0.15, 0.030, 0.0020, 0.0030, samples=1000, error=0.05)
    known = Knowledge(models={"gpu": strong, "cpu": weak})
    full = world(gpu=100, context=500, capacity=56_000)
    policy = replace(POLICY, limits={tier: Limits(2.0, 0.25) for tier in Tier})
    assert isinstance(decide(info(prompt=400), full, known, Remembered(), policy).plan, Whole)
    assert isinstance(decide(info(prompt=400, tier=Tier.FLEX), full, known, Remembered(), policy).plan, Split)
