"""Checks that only read files of the host, below a root folder."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from syshaxd.config.types import Config, UnitConfig
from syshaxd.model.unit import BackendKind
from syshaxd.units.accelerators import ACCELERATORS, ASCEND, NVIDIA

from .findings import Finding, error, good, warning

CUDA = "libcuda.so.1"
LIBRARIES = ("usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64/nvidia", "usr/lib")
TOOLKIT = ("usr/bin/nvidia-container-runtime-hook", "usr/bin/nvidia-container-toolkit")
CDI_FOLDERS = ("etc/cdi", "run/cdi", "var/run/cdi")


def host_findings(config: Config, root: Path = Path("/")) -> Iterator[Finding]:
    """What the files of the host say."""
    yield from _cgroups(config, root)
    yield from _selinux(root)
    yield from _huge_pages(root)
    yield from _pool(config, root)
    for unit in config.units:
        if not unit.backend.starts:
            continue
        yield from _model(unit, root)
        yield from _port(unit)
        look = _DEVICE_CHECKS.get(ACCELERATORS[unit.accelerator])
        if look is not None:
            yield from look(unit, root)


def _cgroups(config: Config, root: Path) -> Iterator[Finding]:
    if not any(unit.backend.in_container for unit in config.units):
        return
    unified = (root / "sys/fs/cgroup/cgroup.controllers").exists()
    names = (root / "sys/fs/cgroup/cgroup.controllers").read_text().split() if unified else []
    if unified and "cpuset" not in names:
        yield warning("cgroups", "version 2 without cpuset", "containers can't be bound to CPUs; enable the controller")
    elif not unified and not (root / "sys/fs/cgroup/cpuset").exists():
        yield warning("cgroups", "version 1 without cpuset", "containers can't be bound; mount the cpuset controller")
    elif not unified:
        yield good("cgroups", "version 1 (a container killed for memory may not be told as such)")
    else:
        yield good("cgroups", "version 2")


def _selinux(root: Path) -> Iterator[Finding]:
    try:
        enforcing = (root / "sys/fs/selinux/enforce").read_text().strip() == "1"
    except OSError:
        yield good("selinux", "not in use")
        return
    yield good("selinux", "enforcing; the pool folder is mounted with label z" if enforcing else "permissive")


def _huge_pages(root: Path) -> Iterator[Finding]:
    try:
        text = (root / "sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return
    if "[never]" in text:
        advice = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled makes CPU units faster"
        yield warning("hugepages", "transparent huge pages are off", advice)
    else:
        yield good("hugepages", text.strip())


def _pool(config: Config, root: Path) -> Iterator[Finding]:
    folder = root / config.pd.pool_dir.lstrip("/")
    there = folder if folder.exists() else folder.parent
    if not there.exists():
        yield error("pool", f"{config.pd.pool_dir} is not there", "systemd-tmpfiles --create; or set pd.pool_dir")
        return
    usage = shutil.disk_usage(there)
    room = usage.free + sum(file.stat().st_size for file in folder.glob("*.pool"))  # ours are made anew
    need = config.pd.pool_size * sum(unit.backend.starts for unit in config.units)
    said = f"{config.pd.pool_dir}: {usage.total / 2**30:.1f} GiB, {room / 2**30:.1f} free, {need / 2**30:.1f} needed"
    if need > usage.total:
        yield error("pool", said, "make pd.pool_size smaller, or: mount -o remount,size=SIZE /dev/shm")
    elif need > room:
        yield error("pool", said, "remove what fills it, or make pd.pool_size smaller; without room there is no split")
    else:
        yield good("pool", said)


def _model(unit: UnitConfig, root: Path) -> Iterator[Finding]:
    if not unit.model_path.startswith("/"):
        return
    path = root / unit.model_path.lstrip("/")
    subject = f"{unit.name}: model"
    if not path.exists():
        yield error(subject, f"{unit.model_path} is not there", "put the model there, or set model_path")
    elif not os.access(path, os.R_OK):
        yield error(subject, f"{unit.model_path} can't be read", "make it readable for all: chmod -R a+rX")
    elif path.is_dir() and not (path / "config.json").exists():
        advice = "give the folder of a Hugging Face model, or a GGUF file"
        yield error(subject, f"{unit.model_path} has no config.json", advice)
    elif path.is_dir() and any(item.is_symlink() for item in path.iterdir()) and unit.backend.in_container:
        advice = "mount what they lead to as well (container.mounts), or copy the files"
        yield warning(subject, f"{unit.model_path} holds symbolic links", advice)
    else:
        yield good(subject, unit.model_path)


def _port(unit: UnitConfig) -> Iterator[Finding]:
    if not unit.port:
        return
    family = socket.AF_INET6 if ":" in unit.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((unit.host, unit.port))
        except OSError as err:
            advice = "good if that is the unit itself, running; else choose another port, or leave port out"
            yield warning(f"{unit.name}: port", f"{unit.host}:{unit.port}: {err.strerror}", advice)
            return
    yield good(f"{unit.name}: port", f"{unit.host}:{unit.port} is free")


def _nvidia(unit: UnitConfig, root: Path) -> Iterator[Finding]:
    subject = f"{unit.name}: nvidia"
    missing = [name for name in ("nvidiactl", *(f"nvidia{n}" for n in unit.device_ids if n.isdigit()))
               if not (root / "dev" / name).exists()]  # fmt: skip
    if missing:
        yield error(subject, f"no /dev/{missing[0]}", "install the NVIDIA driver; nvidia-smi must list the device")
    elif not any((root / folder / CUDA).exists() for folder in LIBRARIES):
        yield error(subject, f"no {CUDA}", "install the NVIDIA driver's libraries; they are handed into containers")
    else:
        yield good(subject, "devices and driver libraries are there")
    if unit.backend is BackendKind.DOCKER and not any((root / path).exists() for path in TOOLKIT):
        advice = "install the NVIDIA container toolkit, and restart docker: --gpus needs it"
        yield error(f"{unit.name}: container toolkit", f"no /{TOOLKIT[0]}", advice)
    elif unit.backend is BackendKind.DOCKER:
        yield good(f"{unit.name}: container toolkit", "is there")
    if unit.backend is BackendKind.PODMAN:
        files = [path for folder in CDI_FOLDERS for path in (root / folder).glob("*") if "nvidia" in path.name]
        if files:
            yield good(f"{unit.name}: CDI", f"{files[0]}")
        else:
            advice = "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml (NVIDIA container toolkit)"
            yield error(f"{unit.name}: CDI", "no CDI file for NVIDIA devices", advice)


def _ascend(unit: UnitConfig, root: Path) -> Iterator[Finding]:
    board = ASCEND.board(unit)
    for path in (*ASCEND.devices(unit), *ASCEND.mounts(unit)):
        if not (root / path.lstrip("/")).exists():
            advice = "install the Ascend driver and firmware; npu-smi info must list the chip"
            yield error(f"{unit.name}: ascend ({board})", f"no {path}", advice)
            return
    yield good(f"{unit.name}: ascend ({board})", "devices and driver files are there")


_DEVICE_CHECKS = {NVIDIA: _nvidia, ASCEND: _ascend}
