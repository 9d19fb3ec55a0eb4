"""The threshold decider and its moves: each fault of the original rule, and properties over any load."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syshaxd.model.plan import Plan, Queue, Refuse, Split, Whole
from syshaxd.model.request import Endpoint, RequestInfo, Route
from syshaxd.model.served import Model, Models
from syshaxd.model.snapshot import InFlight, PdStatus, Snapshot, UnitLoad, UnitSnapshot
from syshaxd.model.unit import BackendKind, Role, UnitState, UnitView
from syshaxd.scheduler import Policy, pressure
from syshaxd.scheduler.threshold import decide

POLICY = Policy(Models((Model("m"),)))


def unit(name: str, state: UnitState = UnitState.READY, pool: bool = True, epoch: int = 1, **load: Any) -> UnitSnapshot:
    role = Role.ACCELERATOR if name.startswith("gpu") else Role.CPU
    view = UnitView(name, role, "sysinfer", BackendKind.PROCESS, state, "", epoch, "m", pool_file=name if pool else "")
    in_flight = load.pop("in_flight", 0)
    tokens = load.pop("in_flight_tokens", 0)
    return UnitSnapshot(view, UnitLoad(0.0, "page", **load) if load else None, in_flight, tokens)


def info(**values: Any) -> RequestInfo:
    return replace(RequestInfo("R", Endpoint.CHAT, "m", True, 10, 100), **values)


def ask(*units: UnitSnapshot, failed: Any = frozenset(), queued: int = 0, pd: PdStatus = PdStatus(), **i: Any) -> Plan:
    return decide(info(**i), Snapshot(0.0, units, queued=queued, pd=pd), POLICY, failed)


FREE: dict[str, Any] = dict(running=0, waiting=0, kv_used=0, kv_total=1000)
FULL: dict[str, Any] = dict(running=300, waiting=0, kv_used=100, kv_total=1000)


def test_the_accelerator_first() -> None:
    plan = ask(unit("gpu", **FREE), unit("cpu", **FREE))
    assert isinstance(plan, Whole) and (plan.unit, plan.route) == ("gpu", Route.ACCELERATOR)


@pytest.mark.parametrize(
    "load",
    [
        FULL,
        dict(running=1, waiting=1, kv_used=0, kv_total=1000),  # waiting counts with a sequence limit too
        dict(running=1, waiting=0, kv_used=895, kv_total=1000),  # the request itself would fill it
        dict(running=0, waiting=0, in_flight=256, kv_total=1000),  # the unit's own figure may be old
        dict(running=1, waiting=0, kv_used=0, kv_total=1000, in_flight_tokens=900, in_flight=1),
    ],
)
def test_a_full_accelerator_means_split(load: Any) -> None:
    plan = ask(unit("gpu", **load), unit("cpu", **FREE))
    assert isinstance(plan, Split) and (plan.prefill, plan.decode, plan.k) == ("gpu", "cpu", 1)
    plan = ask(unit("gpu", **load), unit("cpu", **FREE), first_token_stays="seed")
    assert isinstance(plan, Split) and plan.k == 0


def test_busy_on_both_sides_queues_and_never_splits() -> None:
    assert isinstance(ask(unit("gpu", **FULL), unit("cpu", **FULL)), Queue)
    refused = ask(unit("gpu", **FULL), unit("cpu", **FULL), queued=256)
    assert isinstance(refused, Refuse) and refused.status == 429


@pytest.mark.parametrize("why", ["no_pool", "stays", "pd_off", "no_room_for_prefill"])
def test_where_a_split_is_impossible_the_cpu_serves_it_whole(why: str) -> None:
    load = dict(FULL, kv_used=995) if why == "no_room_for_prefill" else FULL
    plan = ask(
        unit("gpu", **load),
        unit("cpu", pool=why != "no_pool", **FREE),
        pd=PdStatus(why != "pd_off", "diverges"),
        stays="n" if why == "stays" else None,
    )
    assert isinstance(plan, Whole) and plan.unit == "cpu"


def test_a_missing_signal_is_not_zero_and_not_full() -> None:
    plan = ask(unit("gpu"), unit("cpu"))
    assert isinstance(plan, Whole) and plan.unit == "gpu"
    plan = ask(unit("gpu", in_flight=300), unit("cpu"))
    assert isinstance(plan, Split)


def test_what_a_unit_says_of_itself_goes_before_a_default_and_after_the_operator() -> None:
    def served(count: int, policy: Policy = POLICY, **told: Any) -> bool:
        gpu = unit("gpu", in_flight=count)
        gpu = replace(gpu, view=replace(gpu.view, max_num_seqs=told.pop("configured", None)))
        gpu = replace(gpu, load=UnitLoad(0.0, "page", **told)) if told else gpu
        return isinstance(decide(info(), Snapshot(0.0, (gpu,)), policy), Whole)

    assert served(255) and not served(256)
    assert served(512, configured=8192) and served(512, max_num_seqs=1024) and not served(8, max_num_seqs=8)
    threshold = replace(POLICY.scheduler.threshold, max_num_seqs=100)
    strict = replace(POLICY, scheduler=replace(POLICY.scheduler, threshold=threshold))
    assert not served(100, strict, configured=8192)


def test_only_one_side() -> None:
    assert isinstance(ask(unit("gpu", **FULL)), Queue)
    plan = ask(unit("gpu", UnitState.FAILED), unit("cpu", **FREE))
    assert isinstance(plan, Whole) and plan.reason.code == "accelerator_not_ready"
    none = ask(unit("gpu", UnitState.STARTING))
    assert isinstance(none, Refuse) and none.status == 503


def test_a_unit_that_failed_the_request_is_not_asked_again_until_restarted() -> None:
    failed = frozenset({("gpu", 1)})
    plan = ask(unit("gpu", **FREE), unit("cpu", **FREE), failed=failed)
    assert isinstance(plan, Whole) and plan.unit == "cpu"
    plan = ask(unit("gpu", epoch=2, **FREE), unit("cpu", **FREE), failed=failed)
    assert isinstance(plan, Whole) and plan.unit == "gpu"
    assert isinstance(ask(unit("gpu", **FREE), failed=failed), Queue)


@pytest.mark.parametrize("route", list(Route))
def test_forced_routes(route: Route) -> None:
    plan = ask(unit("gpu", **FULL), unit("cpu", **FULL), route=route)
    assert isinstance(plan, (Whole, Split)) and plan.route is route
    missing = ask(unit("cpu" if route is Route.ACCELERATOR else "gpu", **FREE), route=route)
    assert isinstance(missing, Refuse) and missing.status == 503
    bad = ask(unit("gpu", **FREE), unit("cpu", **FREE), route=Route.SPLIT, stays="echo")
    assert isinstance(bad, Refuse) and (bad.status, "echo" in bad.reason.text) == (400, True)


loads = st.fixed_dictionaries(
    {"running": st.integers(0, 400), "waiting": st.integers(0, 3), "kv_used": st.integers(0, 1000)}
).map(lambda load: {**load, "kv_total": 1000})
states = st.sampled_from([UnitState.READY, UnitState.READY, UnitState.FAILED, UnitState.DRAINING])


@given(loads, loads, states, states, st.integers(1, 500))
def test_only_ready_units_and_monotone_in_load(gpu: Any, cpu: Any, s1: UnitState, s2: UnitState, prompt: int) -> None:
    units = [unit("gpu", s1, **gpu), unit("cpu", s2, **cpu)]
    plan = ask(*units, prompt_tokens=prompt)
    ready = {u.view.name for u in units if u.view.ready}
    used = {plan.unit} if isinstance(plan, Whole) else {plan.prefill, plan.decode} if isinstance(plan, Split) else set()
    assert used <= ready
    busier = unit("gpu", s1, **{**gpu, "running": gpu["running"] + 100, "kv_used": min(1000, gpu["kv_used"] + 100)})
    worse = ask(busier, units[1], prompt_tokens=prompt)
    if isinstance(worse, Whole) and worse.route is Route.ACCELERATOR:
        assert isinstance(plan, Whole) and plan.route is Route.ACCELERATOR


# ---- moves


def entry(name: str, where: str, tokens: int, **values: Any) -> InFlight:
    made = InFlight(info(request_id=name, max_tokens=1000), where, 0.0, 1.0, tokens, 10)
    return replace(made, **values)


def moves(gpu: Any, cpu: Any, *entries: InFlight, at: float = 100.0, policy: Policy = POLICY) -> list[tuple[str, str]]:
    snapshot = Snapshot(at, (unit("gpu", **gpu), unit("cpu", **cpu)), entries)
    return [(move.request_id, move.target) for move in pressure.moves(snapshot, policy)]


PRESSED = dict(running=4, waiting=0, kv_used=950, kv_total=1000)


def test_the_largest_leave_under_pressure_and_no_more_than_needed() -> None:
    entries = [entry("a", "gpu", 90), entry("b", "gpu", 290), entry("c", "gpu", 190)]
    assert moves(PRESSED, FREE, *entries) == [("b", "cpu")]
    assert moves(dict(FREE, kv_used=800), FREE, *entries) == []


def test_growth_is_seen_before_the_cache_is_full() -> None:
    load = dict(running=10, waiting=0, kv_used=800, kv_total=1000, step_seconds=0.006)
    assert moves(load, FREE, entry("a", "gpu", 90)) == [("a", "cpu")]  # 10 x 0.1 s / 6 ms = 166 tokens to come


@pytest.mark.parametrize(
    "values",
    [
        {"moving": True},
        {"moves": 4},
        {"stays": "no_token_ids"},
        {"last_move": 99.5},
        {"first_token": None},
        {"output_tokens": 990},
    ],
)
def test_who_does_not_move(values: Any) -> None:
    assert moves(PRESSED, FREE, entry("a", "gpu", 300, **values)) == []


def test_what_already_leaves_counts() -> None:
    leaving = entry("a", "gpu", 290, moving=True, target="cpu")
    assert moves(PRESSED, FREE, leaving, entry("b", "gpu", 90)) == []


def test_what_has_left_counts_until_the_unit_says_so() -> None:
    """A page is as old as the unit's step: 40 cycles go by with the same one, and no stream too many leaves."""
    here = {f"r{number}": entry(f"r{number}", "gpu", 69, last_move=0.0) for number in range(12)}
    stale = dict(running=12, waiting=0, kv_used=948, kv_total=1000)
    went: list[str] = []
    for cycle in range(40):
        now = 100.0 + 0.05 * cycle
        for name, target in moves(stale, FREE, *here.values(), at=now):
            here[name] = replace(here[name], unit=target, left="gpu", last_move=now)
            went.append(name)
    assert len(went) == 2  # 79 tokens each, from 948 to below 850
    waiting = dict(stale, waiting=3)  # a queue that the same page tells of moves no one more either
    assert moves(waiting, FREE, *here.values(), at=102.0) == []
    fresh = [replace(one, last_move=-1.0) for one in here.values()]  # the page is younger than the moves
    assert len(moves(dict(stale, kv_used=948), FREE, *fresh, at=103.0)) == 2


def test_a_full_cpu_takes_nobody() -> None:
    assert moves(PRESSED, dict(FREE, running=16), entry("a", "gpu", 300)) == []


def test_a_queue_at_a_full_unit_moves_one() -> None:
    load = dict(running=4, waiting=2, kv_used=800, kv_total=1000, preemptions=1)
    assert moves(load, FREE, entry("a", "gpu", 90), entry("b", "gpu", 50)) == [("a", "cpu")]


def test_the_preempted_leave_first() -> None:
    load = dict(running=4, waiting=2, kv_used=800, kv_total=1000, preemptions=1, step_seconds=0.01)
    entries = [entry("a", "gpu", 90, last_token=99.99), entry("b", "gpu", 50, last_token=99.0)]
    assert moves(load, FREE, *entries) == [("b", "cpu")]
    slow = dict(load, waiting=0, kv_used=900)  # nobody waits: it is only slow
    assert moves(slow, FREE, *entries)[0] == ("a", "cpu")


def test_return_when_there_is_room_one_at_a_time() -> None:
    entries = [entry("a", "cpu", 90), entry("b", "cpu", 50, output_tokens=5)]
    assert moves(FREE, FREE, *entries) == [("b", "gpu")]  # the most left
    assert moves(dict(FREE, kv_used=550), FREE, *entries) == []
    assert moves(FREE, FREE, *entries, entry("c", "gpu", 9, last_move=99.9)) == []
    assert moves(dict(FREE, waiting=1), FREE, *entries) == []


def test_no_move_where_pd_is_off() -> None:
    off = replace(POLICY, pd=replace(POLICY.pd, auto_offload=False))
    assert moves(PRESSED, FREE, entry("a", "gpu", 300), policy=off) == []


@given(st.integers(0, 1000), st.integers(0, 1000), st.lists(st.integers(1, 300), max_size=6))
def test_no_oscillation_at_constant_load(gpu_kv: int, cpu_kv: int, sizes: list[int]) -> None:
    """What has just been moved is not moved back in the state that the move leads to."""
    entries = [entry(str(i), "gpu", size) for i, size in enumerate(sizes)]
    total = min(1000, gpu_kv + sum(sizes))
    load = dict(running=len(sizes), waiting=0, kv_used=total, kv_total=1000)
    chosen = moves(load, FREE, *entries)
    freed = sum(entry.prompt_tokens + 10 for entry in entries if entry.info.request_id in dict(chosen))
    after = [replace(e, unit=dict(chosen).get(e.info.request_id, e.unit), last_move=100.0) for e in entries]
    load_after = dict(load, kv_used=max(0, total - freed))
    back: list[tuple[str, str]] | None = moves(load_after, FREE, *after, at=100.5)
    assert not [move for move in back or [] if move[1] == "gpu" and move[0] in dict(chosen)]
