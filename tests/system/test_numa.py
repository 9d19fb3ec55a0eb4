"""Weights, KV heads and threads lie where the plan put them, on a real kernel with four NUMA nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.numa_machine import AARCH64, X86_64, Architecture, Packages, boot, make_initramfs

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = "qemu-system-x86 qemu-system-arm cpio gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross make"
INSTALL = f"apt-get install {PACKAGES}"
pytestmark = pytest.mark.timeout(600)  # may build the core for the other architecture


def missing(machine: Architecture) -> str:
    """Tools that are not there, and the line that installs them; "" when all are."""
    tools = (machine.qemu[0], machine.compiler, "cpio", "dpkg-deb", "apt-get", "make")
    absent = [tool for tool in tools if shutil.which(tool) is None]
    return f"{', '.join(absent)}: {INSTALL}" if absent else ""


def native_core(machine: Architecture) -> Path:
    """The shared object for that machine."""
    cross = [] if machine.name == os.uname().machine else [f"CROSS={machine.compiler[:-3]}"]
    make = ["make", "-s", "-j2", "-C", str(ROOT / "kernels"), *cross]
    done = subprocess.run(make, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / machine.library


def probe_program(folder: Path, machine: Architecture, core: Path) -> Path:
    """tests/kernels/numa/probe.c for that machine; it finds the core in /lib."""
    probe = folder / "numa_probe"
    words = [machine.compiler, "-std=c99", "-O1", "-Wall", "-Werror", "-I", str(ROOT / "kernels/include")]
    link = [str(ROOT / "tests/kernels/numa/probe.c"), "-L", str(core.parent), f"-l:{core.name}", "-lm"]
    places = [f"-Wl,-rpath,{core.parent}", "-Wl,-rpath,/lib"]
    subprocess.run([*words, "-o", str(probe), *link, *places], check=True, timeout=120)
    return probe


@pytest.mark.parametrize("machine", [X86_64, AARCH64], ids=lambda machine: str(machine.name))
def test_rows_heads_and_threads_lie_on_their_nodes(tmp_path: Path, machine: Architecture) -> None:
    if missing(machine):
        pytest.skip(f"missing {missing(machine)}")
    core = native_core(machine)
    packages = Packages(machine.debian, ROOT / "build/numa" / machine.debian)
    kernel = next(packages.unpacked(f"linux-image-cloud-{machine.debian}").glob("boot/vmlinuz-*"))
    busybox = packages.unpacked("busybox-static") / "bin/busybox"
    probe = probe_program(tmp_path, machine, core)
    image = make_initramfs(tmp_path, machine, busybox, [probe, core], "/bin/numa_probe")
    console = boot(machine, kernel, image)
    print(console)
    assert "NUMA OK" in console and "BAD" not in console, console
    assert "ok said: cpus: expected the same number on every NUMA node" in console, console
