"""A container to be made, and its three forms: Docker's create request, Podman's, and the command line for a person.

Pure. Docker Engine API 1.40 (`HostConfig`); Podman's own API 4.0 (`SpecGenerator`), because the Docker form of Podman 4
loses CDI devices: `Devices` is looked up as a path, `DeviceRequests` is ignored without a word.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

UNIT_LABEL = "io.syshax.unit"
DIGEST_LABEL = "io.syshax.digest"
OWNER_LABEL = "io.syshax.owner"  # the daemon's state folder: two daemons on one host leave each other's units alone
URL_LABEL = "io.syshax.url"
CONTRACT_LABEL = "io.syshax.contract"
NAME_LABEL = "io.syshax.name"  # the container's own: one made of a committed image has the labels, but another name
LOG_SIZE = 16 * 1024 * 1024  # bytes of a container's log that the engine keeps; the daemon logs every line itself
LOG_FILES = 2
SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")  # how names of environment variables end that hold one


class EngineKind(enum.Enum):
    """Whose socket it is."""

    PODMAN = "podman"
    DOCKER = "docker"


@dataclass(frozen=True)
class Mount:
    """A folder or file of the host. `relabel`: SELinux label that several containers may share (`z`)."""

    source: str
    target: str
    read_only: bool = True
    relabel: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """As behind the second colon of `-v`."""
        return (("ro",) if self.read_only else ("rw",)) + (("z",) if self.relabel else ())

    def __str__(self) -> str:
        words = ",".join(option for option in self.options if option != "rw")
        return f"{self.source}:{self.target}" + (f":{words}" if words else "")


@dataclass(frozen=True)
class Publish:
    """A TCP port of the container under an address of the host."""

    host: str
    host_port: int
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.host_port}:{self.port}"


@dataclass(frozen=True)
class ContainerSpec:
    """One container, complete. Sizes are bytes, `stop_timeout` seconds; 0 and empty mean the engine's default.

    `ipc`: private, shareable, host or container:NAME. `gpus`: NVIDIA devices, or ("all",). `devices`: device nodes and
    CDI names.
    """

    name: str
    image: str
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    publish: tuple[Publish, ...] = ()
    network: str = "bridge"
    mounts: tuple[Mount, ...] = ()
    devices: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    ipc: str = "private"
    shm_size: int = 0
    memory: int = 0
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    groups: tuple[str, ...] = ()
    stop_timeout: int = 30
    pull: str = "missing"
    socket: str = ""

    @property
    def wants_gpu(self) -> bool:
        """Whether an NVIDIA device has to be visible inside."""
        return bool(self.gpus) or any(device.startswith("nvidia.com/") for device in self.devices)


def create_request(spec: ContainerSpec, engine: EngineKind) -> dict[str, Any]:
    """The body of the create call."""
    return _podman_request(spec) if engine is EngineKind.PODMAN else _docker_request(spec)


def cdi_names(spec: ContainerSpec) -> tuple[str, ...]:
    """NVIDIA devices by their CDI names."""
    return tuple(f"nvidia.com/gpu={gpu}" for gpu in spec.gpus)


def is_node(device: str) -> bool:
    """Whether it is a device node; the other ones are CDI names."""
    return device.startswith("/")


def _docker_request(spec: ContainerSpec) -> dict[str, Any]:
    ports = {f"{item.port}/tcp": [{"HostIp": item.host, "HostPort": str(item.host_port)}] for item in spec.publish}
    host: dict[str, Any] = {
        # `Binds` makes a folder of a source that is missing; `Mounts` says so, but knows no SELinux label.
        "Binds": [str(mount) for mount in spec.mounts if mount.relabel],
        "Mounts": [_docker_mount(mount) for mount in spec.mounts if not mount.relabel],
        "NetworkMode": spec.network,
        "PortBindings": ports,
        "IpcMode": spec.ipc,
        "ShmSize": 0 if _joined(spec) else spec.shm_size,
        "Memory": spec.memory,
        "Devices": [_docker_device(device) for device in spec.devices if is_node(device)],
        "DeviceRequests": _device_requests(spec),
        "Privileged": spec.privileged,
        "CapAdd": list(spec.cap_add),
        "CpusetCpus": spec.cpuset_cpus,
        "CpusetMems": spec.cpuset_mems,
        "GroupAdd": list(spec.groups),
        "LogConfig": {"Type": "json-file", "Config": {"max-size": str(LOG_SIZE), "max-file": str(LOG_FILES)}},
    }
    return {
        "Image": spec.image,
        "Env": [f"{name}={value}" for name, value in spec.env.items()],
        "Labels": dict(spec.labels),
        "StopTimeout": spec.stop_timeout,
        "ExposedPorts": {port: {} for port in ports},
        "HostConfig": {name: value for name, value in host.items() if value not in ("", 0, [], {}, False)},
        **({"Entrypoint": list(spec.argv[:1]), "Cmd": list(spec.argv[1:])} if spec.argv else {}),
    }


def _docker_mount(mount: Mount) -> dict[str, Any]:
    return {"Type": "bind", "Source": mount.source, "Target": mount.target, "ReadOnly": mount.read_only}


def _docker_device(device: str) -> dict[str, str]:
    source, _, rest = device.partition(":")
    target, _, rights = rest.partition(":")
    return {"PathOnHost": source, "PathInContainer": target or source, "CgroupPermissions": rights or "rwm"}


def _device_requests(spec: ContainerSpec) -> list[dict[str, Any]]:
    """`--gpus`, and CDI names for Docker 25 and later (older ones refuse the driver, loudly)."""
    requests: list[dict[str, Any]] = []
    named = [device for device in spec.devices if not is_node(device)]
    if spec.gpus:
        which: dict[str, Any] = {"Count": -1} if spec.gpus == ("all",) else {"DeviceIDs": list(spec.gpus)}
        requests.append({"Driver": "", **which, "Capabilities": [["gpu"]]})
    if named:
        requests.append({"Driver": "cdi", "DeviceIDs": named})
    return requests


def _podman_request(spec: ContainerSpec) -> dict[str, Any]:
    cpu = {name: value for name, value in (("cpus", spec.cpuset_cpus), ("mems", spec.cpuset_mems)) if value}
    memory = {"limit": spec.memory} if spec.memory else {}
    request: dict[str, Any] = {
        "name": spec.name,
        "image": spec.image,
        "entrypoint": list(spec.argv[:1]),
        "command": list(spec.argv[1:]),
        "env": dict(spec.env),
        "labels": dict(spec.labels),
        "stop_timeout": spec.stop_timeout,
        "mounts": [_podman_mount(mount) for mount in spec.mounts],
        "netns": {"nsmode": spec.network},
        "portmappings": [_podman_port(item) for item in spec.publish],
        "ipcns": _podman_ipc(spec.ipc),
        "shm_size": 0 if _joined(spec) else spec.shm_size,
        "devices": [{"path": device} for device in (*spec.devices, *cdi_names(spec))],
        "privileged": spec.privileged,
        "cap_add": [f"CAP_{name}" for name in spec.cap_add],
        "resource_limits": {name: value for name, value in (("cpu", cpu), ("memory", memory)) if value},
        "groups": list(spec.groups),
        "log_configuration": {"driver": "k8s-file", "size": LOG_SIZE},
    }
    return {name: value for name, value in request.items() if value not in ("", 0, [], {}, False)}


def _podman_mount(mount: Mount) -> dict[str, Any]:
    return {
        "type": "bind",
        "source": mount.source,
        "destination": mount.target,
        "options": ["rbind", *mount.options],
    }


def _podman_port(item: Publish) -> dict[str, Any]:
    return {"host_ip": item.host, "host_port": item.host_port, "container_port": item.port, "protocol": "tcp"}


def _podman_ipc(ipc: str) -> dict[str, str]:
    if ipc.startswith("container:"):
        return {"nsmode": "container", "value": ipc.partition(":")[2]}
    return {"nsmode": ipc}


def _joined(spec: ContainerSpec) -> bool:
    """A container in another's IPC namespace has that one's /dev/shm: a size has no effect on Docker and none here."""
    return spec.ipc.startswith("container:") or spec.ipc == "host"


def command_line(spec: ContainerSpec, engine: EngineKind) -> tuple[str, ...]:
    """What a person would type for the same container."""
    words = [engine.value, "run", "--detach", f"--name={spec.name}"]
    words += _flags("--ipc", (spec.ipc,))
    if spec.shm_size and not _joined(spec):
        words.append(f"--shm-size={spec.shm_size}b")
    words += [f"--memory={spec.memory}b"] if spec.memory else []
    words += _flags("--network", (spec.network,) if spec.network != "bridge" else ())
    words += _flags("--publish", spec.publish)
    words += _flags("--volume", spec.mounts)
    words += _device_flags(spec, engine)
    words += ["--privileged"] if spec.privileged else []
    words += _flags("--cap-add", spec.cap_add)
    words += _flags("--group-add", spec.groups)
    words += _flags("--cpuset-cpus", (spec.cpuset_cpus,) if spec.cpuset_cpus else ())
    words += _flags("--cpuset-mems", (spec.cpuset_mems,) if spec.cpuset_mems else ())
    words += _flags("--env", (_env_word(name, value) for name, value in spec.env.items()))
    words += _flags("--label", (f"{name}={value}" for name, value in spec.labels.items()))
    words += [f"--stop-timeout={spec.stop_timeout}", *_log_flags(engine)]
    words += [f"--entrypoint={spec.argv[0]}"] if spec.argv else []
    return (*words, spec.image, *spec.argv[1:])


def _env_word(name: str, value: str) -> str:
    """Without its value where it may be a secret: the engine takes it from the shell's environment then."""
    return name if name.upper().endswith(SECRETS) else f"{name}={value}"


def _device_flags(spec: ContainerSpec, engine: EngineKind) -> list[str]:
    if engine is EngineKind.PODMAN:
        return _flags("--device", (*spec.devices, *cdi_names(spec)))
    words = _flags("--device", spec.devices)
    if spec.gpus:
        gpus = ",".join(spec.gpus)
        words.append(f"--gpus={gpus}" if spec.gpus == ("all",) else f'--gpus="device={gpus}"')
    return words


def _log_flags(engine: EngineKind) -> tuple[str, ...]:
    if engine is EngineKind.PODMAN:
        return ("--log-driver=k8s-file", f"--log-opt=max-size={LOG_SIZE}")
    return ("--log-driver=json-file", f"--log-opt=max-size={LOG_SIZE}", f"--log-opt=max-file={LOG_FILES}")


def _flags(flag: str, values: Iterable[object]) -> list[str]:
    return [f"{flag}={value}" for value in values]
