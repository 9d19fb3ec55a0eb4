"""How each kind of unit is started: configuration in, one complete LaunchSpec out. Pure."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from syshaxd.backends.base import LaunchSpec
from syshaxd.config import unit_digest
from syshaxd.config.types import UnitConfig
from syshaxd.errors import BackendError
from syshaxd.model.unit import BackendKind, UnitKind
from syshaxd.topology import format_cpu_list

from . import vllm_recipe
from .binding.apply import environment, vllm_environment
from .binding.inputs import own_environment
from .binding.plan import Binding
from .container_spec import CONTAINERS, PLUGIN_START, Inside, container_spec, listen_host

# What a unit may inherit. Everything else, above all the service manager's variables and other people's secrets, stays.
INHERITED = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "XDG_CACHE_HOME",
)  # fmt: skip
INHERITED_PREFIXES = ("LC_",)
CONTRACT = "1"  # version of docs/kv-handoff.md; a running unit of another one is adopted, and then replaced


@dataclass(frozen=True)
class Surroundings:
    """What a start needs besides the unit's own configuration. `port` 0 and `secret_file` "": not chosen yet."""

    model_name: str
    pool_dir: str
    pool_bytes: int
    binding: Binding
    port: int = 0
    secret_file: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)  # the daemon's own
    api_key: str = field(default="", repr=False)  # what is in secret_file, for servers that take it by environment
    donor: str = ""  # container whose IPC namespace the unit joins
    pool_group: str = ""  # group id of the pool folder
    plugin_dir: str = ""  # folder with our Python packages, for containers and vLLM
    transport: str = "pool"  # kv.transport
    side_channel_host: str = ""
    side_channel_port: int = 0  # of NIXL; 0: not chosen yet


def launch_spec(unit: UnitConfig, around: Surroundings) -> LaunchSpec:
    """The start of one unit. Raises BackendError where there is no recipe for it."""
    if unit.backend is BackendKind.EXTERNAL:
        return LaunchSpec(unit.name, (), {}, unit.url.rstrip("/"))
    port = unit.port or around.port
    if unit.backend in CONTAINERS:
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
    argv = _command(replace(unit, host=listen_host(unit)), around)
    handoff = _handoff(unit, around)
    inside = Inside(
        port=around.port,
        binding=around.binding,
        pool_dir=around.pool_dir if pool_file(unit, around) else "",
        pool_group=around.pool_group,
        plugin_dir=around.plugin_dir if unit.kind is not UnitKind.OPENAI else "",
        secret_file=around.secret_file if around.secret_file and around.secret_file in "\0".join(argv) else "",
        donor=around.donor,
    )
    server = vllm_recipe.environment(unit, "", around.api_key) if unit.kind is UnitKind.VLLM else {}
    url = f"http://{_bracketed(unit.host)}:{around.port}"
    container = container_spec(unit, argv, server, {**handoff, **_own_env(unit, around)}, inside)
    return LaunchSpec(
        unit=unit.name,
        argv=argv,
        env=container.env,
        url=url,
        digest=digest(unit, around),
        contract=contract(unit),
        container=container,
    )


def contract(unit: UnitConfig) -> str:
    """Version of the contract that our packages in the unit speak; "" where there are none of ours in it."""
    return "" if unit.kind is UnitKind.OPENAI or unit.backend is BackendKind.EXTERNAL else CONTRACT


def digest(unit: UnitConfig, around: Surroundings) -> str:
    """Identity of a unit: what the configuration says of it, the name it serves and the CPUs it was given.

    Not the port, the secret and what the daemon's own environment holds.
    """
    cpus, nodes = format_cpu_list(around.binding.cpus), format_cpu_list(around.binding.memory_nodes)
    nixl = (f"nixl at {around.side_channel_host}",) if uses_nixl(unit, around) else ()
    parts = (unit_digest(unit, around.pool_bytes), served_name(unit, around.model_name), cpus, nodes, *nixl)
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def served_name(unit: UnitConfig, default: str) -> str:
    """The model name under which the unit answers."""
    return unit.served_name or default or unit.model_path.rstrip("/").rpartition("/")[2]


def pool_file(unit: UnitConfig, around: Surroundings) -> str:
    """Path of the unit's outbox; "" where it has none."""
    ours = unit.backend is not BackendKind.EXTERNAL and unit.kind is not UnitKind.OPENAI
    has_outbox = ours and around.pool_bytes > 0 and around.transport == "pool"
    return f"{around.pool_dir}/{unit.name}.pool" if has_outbox else ""


def uses_nixl(unit: UnitConfig, around: Surroundings) -> bool:
    """Whether its KV cache goes by NIXL. An external vLLM is taken to have been started so."""
    return around.transport == "nixl" and unit.kind is UnitKind.VLLM


def _command(unit: UnitConfig, around: Surroundings) -> tuple[str, ...]:
    if unit.command:
        return (*(_filled(word, unit, around) for word in unit.command), *unit.extra_args)
    if unit.kind is UnitKind.SYSINFER:
        return (*_sysinfer(unit, around), *unit.extra_args)
    if unit.kind is UnitKind.VLLM:
        transport = "nixl" if uses_nixl(unit, around) else "pool" if pool_file(unit, around) else ""
        start = (PLUGIN_START,) if unit.backend in CONTAINERS else vllm_recipe.MODULE
        return vllm_recipe.command(unit, served_name(unit, around.model_name), around.port, transport, start)
    what = f"kind {unit.kind.value} with backend {unit.backend.value}"
    way_out = f"give units.{unit.name}.command, or use backend: external with a url"
    raise BackendError(f"unit {unit.name}: there is no built-in way to start {what}; {way_out}")


def _filled(word: str, unit: UnitConfig, around: Surroundings) -> str:
    values = {
        "{host}": unit.host,
        "{port}": str(around.port),
        "{model}": unit.model_path,
        "{served_name}": served_name(unit, around.model_name),
        "{api_key_file}": around.secret_file,
        "{cpus}": format_cpu_list(around.binding.cpus),
        "{python}": _python(unit),
    }
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def _sysinfer(unit: UnitConfig, around: Surroundings) -> tuple[str, ...]:
    words = [_python(unit), "-m", "sysinfer", "serve", unit.model_path]
    options = {
        "--served-model-name": served_name(unit, around.model_name),
        "--host": unit.host,
        "--port": around.port,
        "--cpus": format_cpu_list(around.binding.cpus) or None,
        "--threads": unit.cpu.threads,
        "--api-key-file": around.secret_file,
        "--max-model-len": unit.max_model_len,
        "--kv-blocks": unit.kv_blocks,
        "--block-size": unit.block_size,
        "--quantize": unit.quantize or None,
        "--packed-cache": unit.packed_cache or None,
    }
    return (*words, *_options(options))


def _options(options: Mapping[str, object | None]) -> tuple[str, ...]:
    return tuple(word for name, value in options.items() if value is not None for word in (name, str(value)))


def _python(unit: UnitConfig) -> str:
    return unit.python or "python3" if unit.backend in CONTAINERS else sys.executable


def _environment(unit: UnitConfig, around: Surroundings) -> Mapping[str, str]:
    inherited = {
        name: value
        for name, value in around.environ.items()
        if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }
    if unit.kind is UnitKind.VLLM:
        inherited.pop("PYTHONPATH", None)  # ours has packages for the daemon's Python
        own = vllm_recipe.environment(unit, around.plugin_dir, around.api_key)
        own = {**own, **vllm_environment(around.binding)}
    else:
        own = environment(around.binding)
    return {**inherited, **own, **_handoff(unit, around), **_own_env(unit, around)}


def _own_env(unit: UnitConfig, around: Surroundings) -> Mapping[str, str]:
    """The user's variables, but for those that the binding has taken over."""
    return own_environment(unit, bool(around.binding.cpus))


def _handoff(unit: UnitConfig, around: Surroundings) -> Mapping[str, str]:
    """What the server must know of where KV goes."""
    if uses_nixl(unit, around):
        return vllm_recipe.nixl_environment(around.side_channel_host, around.side_channel_port)
    if not pool_file(unit, around):
        return {}
    return {
        "SYSHAX_POOL_DIR": around.pool_dir,
        "SYSHAX_POOL_NAME": f"{unit.name}.pool",
        "SYSHAX_POOL_BYTES": str(around.pool_bytes),
    }


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
