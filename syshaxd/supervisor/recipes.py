"""How each kind of unit is started: configuration in, one complete LaunchSpec out. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from syshaxd.backends.backend import LaunchSpec
from syshaxd.config import unit_digest
from syshaxd.config.types import UnitConfig
from syshaxd.topology import format_cpu_list
from syshaxd.units import KINDS, Surroundings, python, served_name

from .binding.inputs import own_environment
from .unit_container import Inside, container_spec, listen_host

# What a unit may inherit. Everything else, above all the service manager's variables and other people's secrets, stays.
INHERITED = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "XDG_CACHE_HOME",
)  # fmt: skip
INHERITED_PREFIXES = ("LC_",)
CONTRACT = "1"  # version of docs/kv-handoff.md; a running unit of another one is adopted, and then replaced


def launch_spec(unit: UnitConfig, around: Surroundings) -> LaunchSpec:
    """The start of one unit. Raises BackendError where there is no recipe for it."""
    if not unit.backend.starts:
        return LaunchSpec(unit.name, (), {}, unit.url.rstrip("/"))
    port = unit.port or around.port
    if unit.backend.in_container:
        return _in_container(unit, replace(around, port=port))
    spec = LaunchSpec(
        unit=unit.name,
        argv=_command(unit, replace(around, port=port)),
        env=_environment(unit, around),
        url=f"http://{_bracketed(unit.host)}:{port}",
        cpus=around.binding.all_cpus,
        memory_nodes=around.binding.memory_nodes if around.binding.bind_memory else (),
        contract=contract(unit),
    )
    return replace(spec, digest=digest(unit, around))


def _in_container(unit: UnitConfig, around: Surroundings) -> LaunchSpec:
    kind = KINDS[unit.kind]
    argv = _command(replace(unit, host=listen_host(unit)), around)
    inside = Inside(
        port=around.port,
        binding=around.binding,
        pool_dir=around.pool_dir if kind.pool_file(unit, around) else "",
        pool_group=around.pool_group,
        plugin_dir=around.plugin_dir if kind.ours else "",
        secret_file=around.secret_file if around.secret_file and around.secret_file in "\0".join(argv) else "",
        donor=around.donor,
    )
    last = {**kind.handoff_environment(unit, around), **_own_env(unit, around)}
    container = container_spec(unit, argv, kind.environment(unit, around), last, inside)
    return LaunchSpec(
        unit=unit.name,
        argv=argv,
        env=container.env,
        url=f"http://{_bracketed(unit.host)}:{around.port}",
        digest=digest(unit, around),
        contract=contract(unit),
        container=container,
    )


def contract(unit: UnitConfig) -> str:
    """Version of the contract that our packages in the unit speak; "" where there are none of ours in it."""
    return CONTRACT if KINDS[unit.kind].ours and unit.backend.starts else ""


def digest(unit: UnitConfig, around: Surroundings) -> str:
    """Identity of a unit: what the configuration says of it, the name it serves and the CPUs it was given.

    Not the port, the secret and what the daemon's own environment holds.
    """
    cpus, nodes = format_cpu_list(around.binding.cpus), format_cpu_list(around.binding.memory_nodes)
    nixl = (f"nixl at {around.side_channel_host}",) if KINDS[unit.kind].uses_nixl(around) else ()
    parts = (unit_digest(unit, around.pool_bytes), served_name(unit, around.model_name), cpus, nodes, *nixl)
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _command(unit: UnitConfig, around: Surroundings) -> tuple[str, ...]:
    if unit.command:
        return (*(_filled(word, unit, around) for word in unit.command), *unit.extra_args)
    return KINDS[unit.kind].command(unit, around)


def _filled(word: str, unit: UnitConfig, around: Surroundings) -> str:
    values = {
        "{host}": unit.host,
        "{port}": str(around.port),
        "{model}": unit.model_path,
        "{served_name}": served_name(unit, around.model_name),
        "{api_key_file}": around.secret_file,
        "{cpus}": format_cpu_list(around.binding.cpus),
        "{python}": python(unit),
    }
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def _environment(unit: UnitConfig, around: Surroundings) -> Mapping[str, str]:
    kind = KINDS[unit.kind]
    inherited = {
        name: value
        for name, value in around.environ.items()
        if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }
    if not kind.inherits_pythonpath:
        inherited.pop("PYTHONPATH", None)
    own = {**kind.environment(unit, around), **kind.binding_environment(around.binding)}
    return {**inherited, **own, **kind.handoff_environment(unit, around), **_own_env(unit, around)}


def _own_env(unit: UnitConfig, around: Surroundings) -> Mapping[str, str]:
    """The user's variables, but for those that the binding has taken over."""
    return own_environment(unit, bool(around.binding.cpus))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
