"""Rules that join several keys. Pure: the built configuration and what the files say in, faults out."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Callable

from syshaxd.model.unit import BackendKind, Role
from syshaxd.topology import format_cpu_list, parse_cpu_list
from syshaxd.units import KINDS

from .nodes import Node, Path, dotted, find
from .types import Config, ContainerConfig, UnitConfig

SHARED_SHM = 1 << 30  # bytes; a vLLM CPU unit alone takes 160 MiB of the /dev/shm it shares, and dies without
_DEAD_ON_EXTERNAL = (
    "model_path", "device_ids", "tensor_parallel_size", "kv_blocks", "block_size", "quantize", "packed_cache", "python",
    "command", "side_channel_port", "env", "extra_args", "start_timeout", "stop_timeout", "cpu", "restart", "container",
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """A broken rule. Placed at `path`; `also` are the other keys it is about."""

    path: Path
    message: str
    also: tuple[Path, ...] = ()
    on_key: bool = False


def broken_rules(config: Config, root: Node) -> list[Fault]:
    """Every broken rule. `root` tells what was written, as against what is only a default."""
    faults: list[Fault] = []
    for rule in _RULES:
        faults.extend(rule(config, root))
    for unit in config.units:
        for unit_rule in _UNIT_RULES:
            faults.extend(unit_rule(unit, root))
    return faults


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this host only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _at(unit: UnitConfig, *parts: str) -> Path:
    return ("units", unit.name) + parts


def _written(root: Node, path: Path) -> bool:
    return find(root, path) is not None


# ---- the whole -----------------------------------------------------------------------------------------------------
def _some_unit(config: Config, root: Node) -> Iterator[Fault]:
    if not config.units:
        message = "no unit; name at least one, for example units: {cpu: {model_path: /path/to/model.gguf}}"
        yield Fault(("units",), message)


def _ports(config: Config, root: Node) -> Iterator[Fault]:
    taken: dict[int, Path] = {}
    front: Path = ("services", "conductor", "port")
    own = [unit for unit in config.units if unit.backend.starts]
    for port, path in [(config.conductor.port, front)] + [(unit.port, _at(unit, "port")) for unit in own]:
        if port and port in taken:
            yield Fault(path, f"found {port}, which {dotted(taken[port])} has too; each needs its own", (taken[port],))
        taken.setdefault(port, path)


def _front_keys(config: Config, root: Node) -> Iterator[Fault]:
    host, path = config.conductor.host, ("services", "conductor", "host")
    keys: Path = ("services", "conductor", "api_keys_file")
    if not is_loopback(host) and not config.conductor.api_keys_file:
        yield Fault(
            path,
            f"found {host}, which others can reach; allowed is loopback (127.0.0.1, ::1, localhost), or any address "
            f"together with {dotted(keys)}",
            (keys,),
        )


def _models(config: Config, root: Node) -> Iterator[Fault]:
    """Every model has units, every unit one model, every name one meaning."""
    units, names, homes = {unit.name: unit for unit in config.units}, list(config.models), dict[str, str]()
    for name, model in config.models.items():
        path: Path = ("models", "served", name)
        for alias in model.aliases:
            if alias in names:
                yield Fault((*path, "aliases"), f"found {alias}, which another model is called too; each needs its own")
            names.append(alias)
        for unit in model.units:
            if unit not in units:
                yield Fault((*path, "units"), f"found {unit}; units are: {', '.join(units) or 'none'}")
            elif homes.setdefault(unit, name) != name:
                yield Fault((*path, "units"), f"found {unit}, which serves {homes[unit]}; a unit serves one model")
        if not model.units and not any(unit.served_name == name for unit in config.units):
            yield Fault(path, "no unit serves it; name some under units, or give one this served_name", on_key=True)


def _water_marks(config: Config, root: Node) -> Iterator[Fault]:
    low, high = ("pd", "return_below"), ("pd", "offload_above")
    if config.pd.return_below >= config.pd.offload_above:
        yield Fault(
            low if _written(root, low) else high,
            f"found return_below {config.pd.return_below:g} and offload_above {config.pd.offload_above:g}; "
            "return_below must be less, or requests would move to and fro",
            (low, high),
        )


def _time_limits(config: Config, root: Node) -> Iterator[Fault]:
    whole: Path = ("limits", "request_timeout")
    for name in ("queue_timeout", "first_token_timeout"):
        value = getattr(config.limits, name)
        if value > config.limits.request_timeout:
            yield Fault(
                ("limits", name) if _written(root, ("limits", name)) else whole,
                f"found {name} {value:g} s and request_timeout {config.limits.request_timeout:g} s; "
                f"{name} can't be the longer one",
                (("limits", name), whole),
            )


def _cpu_overlap(config: Config, root: Node) -> Iterator[Fault]:
    seen: list[tuple[UnitConfig, frozenset[int]]] = []
    for unit in config.units:
        cpus = bound_cpus(unit)
        for other, taken in seen:
            if cpus & taken:
                yield Fault(
                    _at(unit, "cpu", "affinity"),
                    f"found {unit.cpu.affinity}, which shares {format_cpu_list(cpus & taken)} with unit {other.name}; "
                    "units need CPUs of their own",
                    (_at(other, "cpu", "affinity"),),
                )
        seen.append((unit, cpus))


def _ipc(config: Config, root: Node) -> Iterator[Fault]:
    by_name = {unit.name: unit for unit in config.units}
    for unit in config.units:
        if not unit.container.ipc.startswith("unit:"):
            continue
        name, path = unit.container.ipc[5:], _at(unit, "container", "ipc")
        other = by_name.get(name)
        if other is None or other is unit:
            others = ", ".join(one for one in by_name if one != unit.name) or "there is none"
            yield Fault(path, f"found unit:{name}; allowed is the name of another unit ({others})")
        elif other.backend is not unit.backend:
            message = f"found unit:{name}, a unit of backend {other.backend.value}; both must be {unit.backend.value}"
            yield Fault(path, message, (_at(unit, "backend"), _at(other, "backend")))
        elif other.container.ipc not in ("shareable", "host"):
            message = f"found unit:{name}, whose own ipc is {other.container.ipc}; make that one shareable"
            yield Fault(path, message, (_at(other, "container", "ipc"),))
        elif other.container.ipc == "shareable" and 0 < other.container.shm_size < SHARED_SHM:
            size = _at(other, "container", "shm_size")
            message = f"shares the /dev/shm of {name}; set {dotted(size)} to 1g or more, or drop it"
            yield Fault(path, message, (size,))


def _container_names(config: Config, root: Node) -> Iterator[Fault]:
    taken: dict[str, str] = {}
    for unit in config.units:
        if unit.backend.in_container:
            name = unit.container.name or f"syshax-{unit.name}"
            if name in taken:
                path = _at(unit, "container", "name")
                yield Fault(path, f"found {name}, the name of unit {taken[name]}'s container; each needs its own")
            taken.setdefault(name, unit.name)


def _nixl(config: Config, root: Node) -> Iterator[Fault]:
    if config.kv.transport != "nixl":
        return
    for unit in config.units:
        path = _at(unit, "container", "network")
        if KINDS[unit.kind].knows_nixl and unit.backend.in_container and unit.container.network != "host":
            message = f"found {unit.container.network}; NIXL opens ports of its own choice, so this must be host"
            yield Fault(path if _written(root, path) else _at(unit), message, (path, ("kv", "transport")))


# ---- one unit ------------------------------------------------------------------------------------------------------
def _role(unit: UnitConfig, root: Node) -> Iterator[Fault]:
    if unit.role is Role.CPU and not unit.on_cpus:
        yield Fault(
            _at(unit, "accelerator"),
            f"found {unit.accelerator} on a unit of role cpu; drop it, or make the role accelerator",
            (_at(unit, "role"),),
        )


def _kind(unit: UnitConfig, root: Node) -> Iterator[Fault]:
    for fault in KINDS[unit.kind].faults(unit):
        key = _at(unit, fault.key)
        path = key if _written(root, key) else _at(unit)
        yield Fault(path, fault.message, tuple(_at(unit, name) for name in fault.also), fault.on_key)
    if unit.quantize and not unit.on_cpus:
        message = f"found {unit.quantize}, which the CPU kernels do; it is not for accelerator {unit.accelerator}"
        yield Fault(_at(unit, "quantize"), message, (_at(unit, "accelerator"),))


def _external(unit: UnitConfig, root: Node) -> Iterator[Fault]:
    backend, url = _at(unit, "backend"), _at(unit, "url")
    if unit.backend.starts:
        for name in ("url", "api_key_file"):
            if getattr(unit, name):
                message = f"found {name} on a unit that sysHAX starts itself; it is for backend: external"
                yield Fault(_at(unit, name), message, (backend,), on_key=True)
        return
    if not unit.url:
        message = "found external without url; say where it is, for example url: http://127.0.0.1:8001"
        yield Fault(backend, message, (url,))
    plain = UnitConfig(unit.name, unit.role)
    for name in _DEAD_ON_EXTERNAL:
        if getattr(unit, name) != getattr(plain, name):
            message = "has no effect on an external unit; drop it, or let sysHAX run the unit (backend)"
            yield Fault(_at(unit, name), message, (backend,), on_key=True)


def _own_address(unit: UnitConfig, root: Node) -> Iterator[Fault]:
    if unit.backend.starts and not is_loopback(unit.host):
        yield Fault(
            _at(unit, "host"),
            f"found {unit.host}; a unit listens on loopback only, clients reach it through services.conductor",
            (_at(unit, "backend"),),
        )


def _model(unit: UnitConfig, root: Node) -> Iterator[Fault]:
    if not unit.backend.starts or unit.command or unit.model_path:
        return
    message = "no model; give model_path (a GGUF file or a Hugging Face folder) here, or models.path for all units"
    yield Fault(_at(unit), message, (_at(unit, "model_path"), ("models", "path"), _at(unit, "backend")), on_key=True)


def _container(unit: UnitConfig, root: Node) -> Iterator[Fault]:
    backend, section = _at(unit, "backend"), _at(unit, "container")
    if unit.backend.in_container:
        if not unit.container.image:
            message = f"found {unit.backend.value} without container.image; name the image with its tag or digest"
            yield Fault(backend, message, (section + ("image",),))
        if unit.container.ipc == "host" and unit.container.shm_size:
            message = "found a size together with ipc: host, where the host's /dev/shm is used; drop one of them"
            yield Fault(section + ("shm_size",), message, (section + ("ipc",),))
    elif unit.backend is BackendKind.PROCESS and unit.container != ContainerConfig():
        message = "has no effect on backend process; drop it, or set backend: podman or docker"
        yield Fault(section, message, (backend,), on_key=True)


def _binding(unit: UnitConfig, root: Node) -> Iterator[Fault]:
    path, cpus = _at(unit, "cpu", "affinity"), bound_cpus(unit)
    for name in ("affinity", "reserved", "memory_nodes"):
        text = getattr(unit.cpu, name)
        try:
            parse_cpu_list("" if text in ("auto", "none") else text)
        except ValueError as err:
            yield Fault(_at(unit, "cpu", name), f"found {text}; {err}" if str(err).find(text) < 0 else str(err))
    if cpus and unit.cpu.threads not in (None, len(cpus)):
        message = f"found {unit.cpu.threads} threads for {len(cpus)} bound CPUs; make them equal, or drop threads"
        yield Fault(_at(unit, "cpu", "threads"), message, (path,))
    if unit.cpu.reserved and unit.cpu.affinity != "auto":
        message = f"has no effect with affinity {unit.cpu.affinity}; drop it, or set affinity: auto"
        yield Fault(_at(unit, "cpu", "reserved"), message, (path,), on_key=True)


def _devices(unit: UnitConfig, root: Node) -> Iterator[Fault]:
    path, size = _at(unit, "device_ids"), _at(unit, "tensor_parallel_size")
    if unit.device_ids and unit.on_cpus:
        message = "found devices, but accelerator is none; set accelerator: nvidia or ascend"
        yield Fault(path, message, (_at(unit, "accelerator"),))
    elif unit.device_ids and len(unit.device_ids) < unit.tensor_parallel_size:
        count, needed = len(unit.device_ids), unit.tensor_parallel_size
        yield Fault(path, f"found {count} of the {needed} devices that tensor_parallel_size needs", (size,))


def _backoff(unit: UnitConfig, root: Node) -> Iterator[Fault]:
    low, high = _at(unit, "restart", "backoff"), _at(unit, "restart", "backoff_max")
    if unit.restart.backoff > unit.restart.backoff_max:
        message = f"found backoff {unit.restart.backoff:g} s and backoff_max {unit.restart.backoff_max:g} s"
        yield Fault(low if _written(root, low) else high, f"{message}; backoff can't be the longer one", (low, high))


def bound_cpus(unit: UnitConfig) -> frozenset[int]:
    """CPUs of an explicit affinity; empty for auto and none, and for lists that are faulty in themselves."""
    if unit.cpu.affinity in ("auto", "none"):
        return frozenset()
    try:
        return parse_cpu_list(unit.cpu.affinity)
    except ValueError:
        return frozenset()


_RULES: tuple[Callable[[Config, Node], Iterator[Fault]], ...] = (
    _some_unit, _models, _ports, _front_keys, _water_marks, _time_limits, _cpu_overlap, _ipc, _container_names, _nixl,
)  # fmt: skip
_UNIT_RULES: tuple[Callable[[UnitConfig, Node], Iterator[Fault]], ...] = (
    _role, _kind, _external, _own_address, _model, _container, _binding, _devices, _backoff,
)  # fmt: skip
