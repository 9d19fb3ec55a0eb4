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
from syshaxd.model.unit import BackendKind, UnitKind
from syshaxd.topology import format_cpu_list

from .binding.apply import environment, vllm_environment
from .binding.plan import Binding

CONTAINERS = (BackendKind.PODMAN, BackendKind.DOCKER)
PLUGIN_TARGET = "/opt/syshax/python"
PLUGIN_START = f"{PLUGIN_TARGET}/syshax_vllm"  # puts its folder before the PYTHONPATH of the image
SHM_SIZE = 1 << 30  # bytes; vLLM dies with the engines' own 64 MiB


@dataclass(frozen=True)
class AscendBoard:
    """What a family of Ascend boards needs handed in: device nodes besides the chips, and mounts of the driver."""

    devices: tuple[str, ...]
    mounts: tuple[str, ...]


_MANAGERS = ("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")
_DRIVER = (
    "/usr/local/dcmi",
    "/usr/local/bin/npu-smi",
    "/usr/local/Ascend/driver/lib64",
    "/usr/local/Ascend/driver/version.info",
    "/etc/ascend_install.info",
)
# The user's guide and vllm-ascend's; hccn_tool serves the links between the chips of training boards.
ASCEND_BOARDS: Mapping[str, AscendBoard] = {
    "a2": AscendBoard(_MANAGERS, (*_DRIVER, "/usr/bin/hccn_tool")),
    "a3": AscendBoard(_MANAGERS, (*_DRIVER, "/usr/bin/hccn_tool")),
    "300i": AscendBoard(_MANAGERS, _DRIVER),
}


def container_name(unit: UnitConfig) -> str:
    """Name of the unit's container."""
    return unit.container.name or f"syshax-{unit.name}"


def donor_of(unit: UnitConfig) -> str:
    """Name of the unit whose IPC namespace this one joins; "" where it joins none."""
    joined = unit.backend in CONTAINERS and unit.container.ipc.startswith("unit:")
    return unit.container.ipc[len("unit:") :] if joined else ""


def ascend_board(unit: UnitConfig) -> str:
    """Key of ASCEND_BOARDS: container.soc, or what the image's tag says (-a3, -310p), or a2."""
    if unit.container.soc != "auto":
        return unit.container.soc
    tag = unit.container.image.rpartition(":")[2].lower()
    return "a3" if "-a3" in tag else "300i" if "-310p" in tag or "-300i" in tag else "a2"


def container_spec(
    unit: UnitConfig, argv: tuple[str, ...], server: Mapping[str, str], env: Mapping[str, str], around: "Inside"
) -> ContainerSpec:
    """The container of a unit that is started with this command. `server`: what its server needs in general; the
    binding says more than that, and `env` has the last word."""
    section, on_host = unit.container, unit.container.network == "host"
    spans = around.binding.all_cpus
    return ContainerSpec(
        name=container_name(unit),
        image=section.image,
        argv=argv,
        env={**server, **_environment(unit, around), **env},
        publish=() if on_host else (Publish(unit.host, around.port, around.port),),
        network=section.network,
        mounts=_mounts(unit, around),
        devices=_devices(unit),
        gpus=_gpus(unit),
        ipc=f"container:{around.donor}" if donor_of(unit) else section.ipc,
        shm_size=0 if donor_of(unit) or section.ipc == "host" else section.shm_size or SHM_SIZE,
        memory=section.memory,
        privileged=section.privileged,
        cap_add=("SYS_NICE",) if unit.accelerator == "none" else (),
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
    env: dict[str, str] = {}
    if around.plugin_dir and unit.kind is not UnitKind.VLLM:
        env["PYTHONPATH"] = PLUGIN_TARGET
    if unit.accelerator == "ascend":
        env["ASCEND_RT_VISIBLE_DEVICES"] = ",".join(_device_ids(unit))
    if unit.accelerator == "none":
        on_vllm = unit.kind is UnitKind.VLLM
        env.update(vllm_environment(around.binding) if on_vllm else environment(around.binding))
        if on_vllm and unit.quantize:
            env.update({"INFERENCE_OP_MODE": "fused", "SYSHAX_QUANTIZE": unit.quantize})
    return env


def _device_ids(unit: UnitConfig) -> tuple[str, ...]:
    return unit.device_ids or tuple(str(number) for number in range(unit.tensor_parallel_size))


def _gpus(unit: UnitConfig) -> tuple[str, ...]:
    if unit.accelerator != "nvidia" or unit.container.devices:
        return ()
    return unit.device_ids or ("all",)


def _devices(unit: UnitConfig) -> tuple[str, ...]:
    if unit.container.devices or unit.accelerator != "ascend":
        return unit.container.devices
    chips = (f"/dev/davinci{number}" for number in _device_ids(unit))
    return (*chips, *ASCEND_BOARDS[ascend_board(unit)].devices)


def _mounts(unit: UnitConfig, around: Inside) -> tuple[Mount, ...]:
    board = ASCEND_BOARDS[ascend_board(unit)] if unit.accelerator == "ascend" else None
    own = [_mount(text) for text in unit.container.mounts]
    mounts = [
        _read_only(unit.model_path),
        *(_read_only(path) for path in (board.mounts if board else ())),
        Mount(around.plugin_dir, PLUGIN_TARGET) if around.plugin_dir else None,
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
