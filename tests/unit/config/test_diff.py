"""What a reload does."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from syshaxd.config import Reload, ReloadPlan, diff, effective, loads, unit_digest
from syshaxd.config.diff import flatten
from syshaxd.config.types import Config, HealthConfig, UnitConfig
from syshaxd.model.unit import Role

from .strategies import configurations

BASE = loads(
    "models: {default: m, path: /m}\nunits: {gpu: {}, cpu: {}, far: {role: cpu, backend: external, port: 9}}\n"
)
GPU, CPU, FAR = BASE.units
CONFIGS = configurations().map(loads)


def keys(plan: ReloadPlan) -> list[str]:
    """Every key the plan names."""
    return [change.key for change in (*plan.applied, *plan.unit_changes, *plan.pending_restart)]


@settings(deadline=None, max_examples=40)
@given(config=CONFIGS)
def test_no_change_is_an_empty_plan(config: Config) -> None:
    assert diff(config, config).empty
    assert effective(config, config) == config


@settings(deadline=None, max_examples=40)
@given(old=CONFIGS, new=CONFIGS)
def test_every_changed_key_appears_once_and_units_in_one_list(old: Config, new: Config) -> None:
    plan = diff(old, new)
    before, after = flatten(old), flatten(new)
    gone = {*plan.added, *plan.removed}
    changed = {
        ".".join(map(str, path))
        for path in before.keys() | after.keys()
        if before.get(path) != after.get(path) and not (path[0] == "units" and path[1] in gone)
    }
    named = keys(plan)
    assert len(named) == len(set(named))
    assert {key for key in changed if ".env." not in key} == {key for key in named if ".env." not in key}
    lists = [*plan.added, *plan.removed, *plan.replaced]
    assert len(lists) == len(set(lists))


@settings(deadline=None, max_examples=40)
@given(old=CONFIGS, new=CONFIGS)
def test_what_is_in_force_after_a_reload_differs_by_the_pending_restarts_only(old: Config, new: Config) -> None:
    running = effective(old, new)
    left = diff(running, new)
    assert left.pending_restart == diff(old, new).pending_restart
    assert not left.applied and not left.unit_changes and not left.replaced
    assert not diff(old, running).pending_restart


def test_units_added_removed_and_replaced() -> None:
    new = replace(BASE, units=(replace(GPU, env={"A": "1"}), FAR, replace(CPU, name="cpu2")))
    plan = diff(BASE, new)
    assert (plan.added, plan.removed, plan.replaced) == (("cpu2",), ("cpu",), ("gpu",))


def test_supervision_of_a_unit_changes_without_replacing_it() -> None:
    new = replace(BASE, units=(replace(GPU, health=HealthConfig(failures=9), stop_timeout=1.0), CPU, FAR))
    plan = diff(BASE, new)
    assert plan.replaced == ()
    assert [change.reload for change in plan.applied] == [Reload.NOW, Reload.NOW]


def test_pool_size_replaces_units_that_have_an_outbox() -> None:
    plan = diff(BASE, replace(BASE, pd=replace(BASE.pd, pool_size=1 << 25)))
    assert plan.replaced == ("gpu", "cpu")
    assert keys(plan) == ["pd.pool_size"]


def test_order_of_units_is_no_change() -> None:
    assert diff(BASE, replace(BASE, units=BASE.units[::-1])).empty


def test_values_of_environment_variables_are_not_told() -> None:
    plan = diff(BASE, replace(BASE, units=(replace(GPU, env={"HF_TOKEN": "hf_secret"}), CPU, FAR)))
    assert "secret" not in str(plan) + str(plan.to_json())
    assert keys(plan) == ["units.gpu.env.HF_TOKEN"]


@settings(deadline=None, max_examples=40)
@given(port=st.integers(0, 65535))
def test_digest_depends_on_what_the_unit_is_started_with(port: int) -> None:
    other = replace(GPU, port=port)
    assert (unit_digest(other) == unit_digest(GPU)) == (port == GPU.port)
    assert unit_digest(replace(GPU, name="x", start_timeout=9.0)) == unit_digest(GPU)
    # Of a release before this one, whose units had fewer keys: they are adopted.
    assert unit_digest(UnitConfig("cpu", Role.CPU, model_path="/m.gguf")) == "04db552b01ea2931"
