"""From the configuration to the plan: what each unit asks for, its model's files read for their size."""

from __future__ import annotations

import functools
from typing import Callable

from syshax_contract.model_files import ModelFacts, NoFacts, read_model
from syshaxd.config.types import Config, UnitConfig
from syshaxd.errors import ConfigError, Problem
from syshaxd.units import KINDS

from .binding_plan import Ask, BindingPlan, plan
from .host_tree import HostTree
from .inputs import read_inputs

ReadModel = Callable[[str], ModelFacts]


def plan_units(config: Config, host: HostTree, read: ReadModel = read_model) -> BindingPlan:
    """CPUs and memory of the units that run here, problems included."""
    here = [unit for unit in config.units if unit.backend.starts]
    once = functools.lru_cache(maxsize=None)(read)  # units mostly share one model
    return plan(host, [_ask(config, unit, host, once) for unit in here])


def binding_plan(config: Config, host: HostTree) -> BindingPlan:
    """The same as a plan to apply. Raises ConfigError where the host can't give what is asked for."""
    planned = plan_units(config, host)
    if planned.problems:
        raise ConfigError(plan_problems(planned))
    return planned


def plan_problems(planned: BindingPlan) -> tuple[Problem, ...]:
    """Problems of a plan as faults of the configuration."""
    return tuple(Problem(text, key="units") for text in planned.problems)


def _ask(config: Config, unit: UnitConfig, host: HostTree, read: ReadModel) -> Ask:
    kind = KINDS[unit.kind]
    said = read_inputs(unit)
    facts, unknown = _facts(unit, read)
    pool = config.pd.pool_size if kind.ours else 0
    return Ask(
        name=unit.name,
        affinity=said.affinity,
        threads=said.threads,
        reserved=unit.cpu.reserved,
        memory_nodes=unit.cpu.memory_nodes,
        accelerator=unit.accelerator,
        device_ids=unit.device_ids,
        n_devices=len(unit.device_ids) or unit.tensor_parallel_size,
        ranks=kind.ranks(unit),
        rank_cpus=said.rank_cpus,
        one_rank_a_node=unit.on_cpus and bool(kind.rank_variable),
        memory=kind.memory(unit, facts, pool, sum(node.memory or 0 for node in host.nodes)),
        memory_unknown=unknown,
        kv_heads=kind.kv_heads(facts),
        problems=said.problems,
    )


def _facts(unit: UnitConfig, read: ReadModel) -> tuple[ModelFacts | None, str]:
    """None where the model is on a device, or where a command of the user's decides; the text is why it is unknown."""
    if not unit.on_cpus or unit.command or not KINDS[unit.kind].ours:
        return None, ""
    try:
        return read(unit.model_path), ""
    except NoFacts as err:
        return None, f"its memory is planned without weights and KV cache: {err}"
