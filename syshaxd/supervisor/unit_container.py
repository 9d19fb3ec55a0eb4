"""A unit as a container: configuration and surroundings in, one ContainerSpec out. Pure.

Equal to the `docker run` lines of the user's guides (docs/containers.md compares them), with less privilege: ports on
loopback only, the model mounted read-only, CAP_SYS_NICE in place of --privileged.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

from syshaxd.backends.container_spec import ContainerSpec, Mount, Publish
from syshaxd.config.types import UnitConfig
from syshaxd.topology import format_cpu_list
from syshaxd.units import KINDS
from syshaxd.units.accelerators import ACCELERATORS
from syshaxd.units.base import PACKAGES_INSIDE

from .binding.binding_plan import Binding

SHM_SIZE = 1 << 30  # bytes; vLLM dies with the engines' own 64 MiB


def container_name(unit: UnitConfig) -> str:
    """Name of the unit's container."""
    return unit.container.name or f"syshax-{unit.name}"


def donor_of(unit: UnitConfig) -> str:
    """Name of the unit whose IPC namespace this one joins; "" where it joins none."""
    joined = unit.backend.in_container and unit.container.ipc.startswith("unit:")
    return unit.container.ipc[len("unit:") :] if joined else ""


def container_spec(
    unit: UnitConfig, argv: tuple[str, ...], server: Mapping[str, str], env: Mapping[str, str], around: "Inside"
) -> ContainerSpec:
    """The container of a unit that is started with this command. `server`: what its server needs in general; the
    binding says more than that, and `env` has the last word."""
    section, on_host = unit.container, unit.container.network == "host"
    device = ACCELERATORS[unit.accelerator]
    spans = around.binding.all_cpus
    return ContainerSpec(
        name=container_name(unit),
        image=section.image,
        argv=argv,
        env={**server, **_environment(unit, around), **env},
        publish=() if on_host else (Publish(unit.host, around.port, around.port),),
        network=section.network,
        mounts=_mounts(unit, around),
        devices=section.devices or device.devices(unit),
        gpus=device.gpus(unit),
        ipc=f"container:{around.donor}" if donor_of(unit) else section.ipc,
        shm_size=0 if donor_of(unit) or section.ipc == "host" else section.shm_size or SHM_SIZE,
        memory=section.memory,
        privileged=section.privileged,
        cap_add=device.capabilities,
        cpuset_cpus=format_cpu_list(spans),
        cpuset_mems=",".join(str(node) for node in around.binding.memory_nodes) if spans else "",
        groups=(around.pool_group,) if around.pool_group and around.pool_dir else (),
        stop_timeout=max(1, math.ceil(unit.stop_timeout)),
        pull=section.pull,
        socket=section.socket,
    )


@dataclass(frozen=True)
class Inside:
    """What a container needs of its surroundings. `pool_dir` "": the unit has no outbox."""

    port: int
    binding: Binding
    pool_dir: str = ""
    pool_group: str = ""
    plugin_dir: str = ""
    secret_file: str = ""
    donor: str = ""


def listen_host(unit: UnitConfig) -> str:
    """Where the server inside listens: all of the container's own network, since only loopback is published."""
    return unit.host if unit.container.network == "host" else "0.0.0.0"


def _environment(unit: UnitConfig, around: Inside) -> Mapping[str, str]:
    binding = KINDS[unit.kind].binding_environment(around.binding) if unit.on_cpus else {}
    return {**ACCELERATORS[unit.accelerator].environment(unit), **binding}


def _mounts(unit: UnitConfig, around: Inside) -> tuple[Mount, ...]:
    own = [_mount(text) for text in unit.container.mounts]
    mounts = [
        _read_only(unit.model_path),
        *(_read_only(path) for path in ACCELERATORS[unit.accelerator].mounts(unit)),
        Mount(around.plugin_dir, PACKAGES_INSIDE) if around.plugin_dir else None,
        Mount(around.secret_file, around.secret_file) if around.secret_file else None,
        Mount(around.pool_dir, around.pool_dir, read_only=False, relabel=True) if around.pool_dir else None,
    ]
    taken = {mount.target for mount in own}
    return (*(mount for mount in mounts if mount is not None and mount.target not in taken), *own)


def _read_only(path: str) -> Mount | None:
    """The same place inside. A name instead of a path (a model to download) is not mounted."""
    return Mount(posixpath.normpath(path), posixpath.normpath(path)) if path.startswith("/") else None


def _mount(text: str) -> Mount:
    source, _, rest = text.partition(":")
    target, _, words = rest.partition(":")
    options = words.split(",")
    return Mount(source, target or source, "ro" in options, "z" in options or "Z" in options)
