"""No plan and no move names a unit that can't serve the request: of another model, or with too short a context."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syshaxd.config.types import Config, ModelConfig, SchedulerConfig
from syshaxd.model.abilities import Abilities, Feature
from syshaxd.model.plan import Plan, Queue, Refuse, Split, Whole
from syshaxd.model.request import Endpoint, RequestInfo, Route
from syshaxd.model.served import Model, Models
from syshaxd.model.snapshot import InFlight, Snapshot, UnitLoad, UnitSnapshot
from syshaxd.model.unit import BackendKind, Role, UnitState, UnitView
from syshaxd.scheduler import Scheduler

FREE = UnitLoad(0.0, "page", running=0, waiting=0, kv_used=0, kv_total=100_000)
FULL = UnitLoad(0.0, "page", running=300, waiting=9, kv_used=0, kv_total=100_000)
READY, FAILED = UnitState.READY, UnitState.FAILED


def unit(
    name: str, context: int | None, model: str = "m", load: UnitLoad = FREE, state: UnitState = READY
) -> UnitSnapshot:
    role = Role.ACCELERATOR if name.startswith("gpu") else Role.CPU
    abilities = Abilities(max_context=context)
    view = UnitView(
        name, role, "sysinfer", BackendKind.PROCESS, state, "", 1, model, pool_file=name, abilities=abilities
    )
    return UnitSnapshot(view, load)


def scheduler(**config: Any) -> Scheduler:
    return Scheduler(Config(model_name="m", scheduler=SchedulerConfig(decider="threshold"), **config))


def ask(*units: UnitSnapshot, prompt: int = 400, most: int | None = 300, **info: Any) -> Plan:
    request = RequestInfo("R", Endpoint.CHAT, "m", True, prompt, most, counted=True)
    return scheduler().decide(replace(request, **info), Snapshot(0.0, units))


def places(plan: Plan) -> "set[str]":
    return {plan.unit} if isinstance(plan, Whole) else {plan.prefill, plan.decode} if isinstance(plan, Split) else set()


def test_a_request_too_long_for_one_side_goes_to_the_other() -> None:
    assert places(ask(unit("gpu", 1024), unit("cpu", 384))) == {"gpu"}
    assert places(ask(unit("gpu", 384), unit("cpu", 1024))) == {"cpu"}
    assert isinstance(ask(unit("gpu", 1024, load=FULL), unit("cpu", 384)), Queue), "it waits; a split would cut it"
    assert places(ask(unit("gpu", 1024, load=FULL), unit("cpu", 1024))) == {"gpu", "cpu"}


@pytest.mark.parametrize("endpoint, param", [(Endpoint.CHAT, "messages"), (Endpoint.COMPLETIONS, "prompt")])
def test_what_no_unit_holds_is_refused_at_once_and_for_good(endpoint: Endpoint, param: str) -> None:
    plan = ask(unit("gpu", 384), unit("cpu", 512), endpoint=endpoint)
    assert isinstance(plan, Refuse) and (plan.status, plan.retry_after) == (400, None)
    assert (plan.reason.code, plan.param) == ("context_length_exceeded", param)
    assert "maximum context length is 512 tokens" in plan.reason.text and "needs 700" in plan.reason.text


def test_a_unit_that_may_be_long_enough_is_waited_for() -> None:
    plan = ask(unit("gpu", None, state=FAILED), unit("cpu", 384))
    assert isinstance(plan, Refuse) and plan.status == 503 and plan.retry_after
    assert places(ask(unit("gpu", None), unit("cpu", 384))) == {"gpu"}, "one that does not tell says no itself"


def test_an_estimate_refuses_nobody() -> None:
    assert not isinstance(ask(unit("gpu", 384), unit("cpu", 384), counted=False), Whole)
    plan = ask(unit("gpu", 384), unit("cpu", 384), counted=False)
    assert not (isinstance(plan, Refuse) and plan.status == 400)


def test_without_a_limit_of_its_own_only_the_longest_context_may_end_it() -> None:
    assert places(ask(unit("gpu", 384), unit("cpu", 1024), prompt=10, most=None)) == {"cpu"}
    assert places(ask(unit("gpu", 1024, state=FAILED), unit("cpu", 384), prompt=10, most=None)) == {"cpu"}
    too_long = ask(unit("gpu", 384), unit("cpu", 384), prompt=384, most=None)
    assert isinstance(too_long, Refuse) and too_long.status == 400


@pytest.mark.parametrize("route", list(Route))
def test_a_route_asked_for_is_held_to_its_own_context(route: Route) -> None:
    plan = ask(unit("gpu", 1024), unit("cpu", 384), route=route)
    if route is Route.ACCELERATOR:
        assert places(plan) == {"gpu"}
    else:
        assert isinstance(plan, Refuse) and (plan.status, plan.reason.code) == (400, "context_length_exceeded")


def test_moves_go_only_where_the_whole_request_fits() -> None:
    def moves(cpu: UnitSnapshot) -> "list[str]":
        info = RequestInfo("R", Endpoint.CHAT, "m", True, 400, 300)
        entry = InFlight(info, "gpu", 0.0, 1.0, 400, 10)
        pressed = replace(FREE, kv_used=95_000)
        seen = Snapshot(100.0, (unit("gpu", 1024, load=pressed), cpu), (entry,))
        return [move.target for move in scheduler().moves(seen)]

    assert moves(unit("cpu", 700)) == ["cpu"]
    assert moves(unit("cpu", 699)) == moves(unit("cpu", 4096, model="other")) == []


def test_after_a_failure_it_goes_on_only_where_it_can_end() -> None:
    info = RequestInfo("R", Endpoint.CHAT, "m", True, 400, 300)
    assert scheduler().rescue(info, Snapshot(0.0, (unit("cpu", 699),)), frozenset()) is None
    assert scheduler().rescue(info, Snapshot(0.0, (unit("cpu", 700),)), frozenset()) is not None


def test_a_split_whose_prompt_turned_out_too_long_for_the_other_side_stays() -> None:
    info = RequestInfo("R", Endpoint.CHAT, "m", True, 10, 300)
    seen = Snapshot(0.0, (unit("gpu", 1024), unit("cpu", 384)))
    assert scheduler().keep_split(info, "cpu", 84, seen) and not scheduler().keep_split(info, "cpu", 85, seen)


@given(
    st.integers(1, 2000), st.none() | st.integers(1, 2000), st.integers(1, 3000), st.integers(1, 3000),
    st.sampled_from([FREE, FULL]), st.sampled_from([FREE, FULL]),
)  # fmt: skip
def test_no_plan_names_a_unit_that_is_too_short(
    prompt: int, most: int | None, gpu: int, cpu: int, first: UnitLoad, second: UnitLoad
) -> None:
    plan = ask(unit("gpu", gpu, load=first), unit("cpu", cpu, load=second), prompt=prompt, most=most)
    needed = prompt + most if most is not None else max(prompt + 1, gpu, cpu)
    assert all({"gpu": gpu, "cpu": cpu}[name] >= needed for name in places(plan))
    fits = prompt + (most or 1) <= max(gpu, cpu)
    assert fits == (not isinstance(plan, Refuse))


# ---- abilities and models


def limited(name: str, load: UnitLoad = FREE, state: UnitState = READY) -> UnitSnapshot:
    """Without structured output and forced tools."""
    seen = unit(name, 4096, load=load, state=state)
    lesser = frozenset({Feature.PROMPT_LOGPROBS, Feature.SEVERAL_PROMPTS})
    return replace(seen, view=replace(seen.view, abilities=replace(seen.view.abilities, features=lesser)))


SCHEMA: dict[str, Any] = {"features": frozenset({Feature.STRUCTURED_OUTPUT}), "first_token_stays": "response_format"}


def test_what_only_one_side_can_do_goes_there_or_waits_for_it() -> None:
    assert places(ask(unit("gpu", 4096), limited("cpu"), **SCHEMA)) == {"gpu"}
    assert places(ask(limited("gpu"), unit("cpu", 4096), **SCHEMA)) == {"cpu"}
    assert isinstance(ask(unit("gpu", 4096, load=FULL), limited("cpu"), **SCHEMA), Queue)
    assert places(ask(unit("gpu", 4096, load=FULL), unit("cpu", 4096), **SCHEMA)) == {"gpu", "cpu"}
    away = ask(unit("gpu", 4096, state=FAILED), limited("cpu"), **SCHEMA)
    assert isinstance(away, Refuse) and away.status == 503, "it comes back"


def test_what_nobody_can_do_is_refused_by_name() -> None:
    for plan in (ask(limited("cpu"), **SCHEMA), ask(limited("gpu"), unit("cpu", 9), route=Route.ACCELERATOR, **SCHEMA)):
        assert isinstance(plan, Refuse) and (plan.status, plan.reason.code) == (400, "unsupported_by_units")
        assert "structured_output" in plan.reason.text and plan.retry_after is None


def test_it_moves_only_to_who_can_carry_it_on() -> None:
    info = RequestInfo("R", Endpoint.CHAT, "m", True, 400, 300, features=SCHEMA["features"])
    assert scheduler().rescue(info, Snapshot(0.0, (limited("cpu"),)), frozenset()) is None
    assert scheduler().rescue(info, Snapshot(0.0, (unit("cpu", 4096),)), frozenset()) is not None


def test_units_of_another_model_do_not_exist_for_a_request() -> None:
    plan = ask(unit("gpu", 4096, load=FULL), unit("cpu", 4096, model="other"))
    assert isinstance(plan, Queue)
    assert places(ask(unit("gpu", 4096), unit("cpu", 4096, model="other"), model="other")) == {"cpu"}
    nobody = ask(unit("gpu", 4096, state=FAILED), unit("cpu", 4096, model="other"))
    assert isinstance(nobody, Refuse) and nobody.status == 503


def test_names_aliases_and_units() -> None:
    served = Config(model_name="a", models={"b": ModelConfig(("bee",), ("cpu",)), "a": ModelConfig(("ay",))}).served
    gpu, cpu = unit("gpu", 1, model="a").view, unit("cpu", 1, model="b-on-disk").view
    assert served.default == "a" and served.names((gpu, cpu)) == ("a", "ay", "b", "bee")
    assert [name for name in ("a", "ay", "", "b", "bee", "x") if served.serves(gpu, name)] == ["a", "ay", ""]
    assert [name for name in ("a", "ay", "", "b", "bee", "x") if served.serves(cpu, name)] == ["b", "bee"]
    assert Models().serves(gpu, "") and Models().serves(gpu, "a") and not Models().serves(gpu, "b")
    assert Models((Model("m", clip_max_tokens=True),)).clips("m") and not Models().clips("m")
