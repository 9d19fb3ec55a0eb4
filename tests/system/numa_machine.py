"""A real Linux kernel with four NUMA nodes: Debian's, under qemu's software emulation, with a small initramfs.

Of this machine's architecture or another: packages come through apt with lists of their own, so that nothing about
this machine's own architectures and sources changes.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

NODES = 4
CPUS_A_NODE = 2
MEMORY_A_NODE = 160  # MiB
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
{commands}
/bin/busybox poweroff -f
"""


@dataclass(frozen=True)
class Architecture:
    """What differs between machines. `libraries`: where the C library for cross-built programs lies; "": ask ldd."""

    name: str  # the kernel's
    debian: str
    compiler: str
    qemu: tuple[str, ...]
    console: str
    library: str  # the native core, below the checkout
    libraries: str = ""


X86_64 = Architecture(
    "x86_64", "amd64", "gcc", ("qemu-system-x86_64", "-cpu", "max"), "ttyS0",
    "kernels/python/syshax_kernels/libsyshax_kernels.so",
)  # fmt: skip
# A Cortex-A76 has what a Kunpeng 920 has: dotprod and fp16, neither i8mm nor SVE.
AARCH64 = Architecture(
    "aarch64", "arm64", "aarch64-linux-gnu-gcc", ("qemu-system-aarch64", "-machine", "virt", "-cpu", "cortex-a76"),
    "ttyAMA0", "build/kernels/aarch64-plain/libsyshax_kernels.so", "/usr/aarch64-linux-gnu/lib",
)  # fmt: skip


class Packages:
    """Debian packages of one architecture, below `folder`; the lists are fetched once."""

    def __init__(self, architecture: str, folder: Path) -> None:
        self._folder = folder
        (folder / "lists/partial").mkdir(parents=True, exist_ok=True)
        (folder / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
        settings = {
            "APT::Architecture": architecture, "APT::Architectures": architecture, "APT::Sandbox::User": "root",
            "Dir::State::lists": folder / "lists", "Dir::State::status": "/dev/null", "Dir::Cache": folder / "cache",
        }  # fmt: skip
        self._options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

    def unpacked(self, package: str) -> Path:
        """A folder with the content of a package; a metapackage leads to what it depends on."""
        target = self._folder / package
        if not target.exists():
            self._run("apt-get", "-q", "update")
            found = re.search(r"Depends: (linux-image-\S+)", self._run("apt-cache", "depends", package))
            self._run("apt-get", "-q", "download", found[1] if found else package)
            (archive,) = self._folder.glob("*.deb")
            fresh = target.with_suffix(".new")
            subprocess.run(["dpkg-deb", "-x", str(archive), str(fresh)], check=True, timeout=120)
            archive.unlink()
            fresh.rename(target)
        return target

    def _run(self, program: str, *words: str) -> str:
        command = [program, *self._options, *words]
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout


def libraries(program: Path, architecture: Architecture) -> Iterator[tuple[Path, str]]:
    """Shared objects that a program needs, its loader included, and where they must lie."""
    if architecture.libraries:
        for name in ("ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6"):
            yield Path(architecture.libraries) / name, f"lib/{name}"
        return
    lines = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True, timeout=60).stdout
    for path in re.findall(r"(/\S+)", lines):
        yield Path(path), path.lstrip("/")


def make_initramfs(
    folder: Path, architecture: Architecture, busybox: Path, programs: Sequence[Path], commands: str
) -> Path:
    """An initramfs with busybox, the programs in /bin and the libraries that they link to."""
    root = folder / "root"
    for place in ("bin", "lib"):
        (root / place).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    for program in programs:
        shared = program.suffix == ".so"
        shutil.copy(program, root / ("lib" if shared else "bin") / program.name)
        for library, place in () if shared else libraries(program, architecture):
            target = root / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
    (root / "init").write_text(INIT.format(commands=commands))
    (root / "init").chmod(0o755)
    names = "\n".join(sorted(str(path.relative_to(root)) for path in root.rglob("*"))) + "\n"
    packed = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"],
        cwd=root,
        input=names.encode(),
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout
    image = folder / "initramfs.gz"
    image.write_bytes(gzip.compress(packed, 1))
    return image


def boot(architecture: Architecture, kernel: Path, initramfs: Path, timeout: float = 240.0) -> str:
    """Boots, waits for power-off, returns what the console showed."""
    numa: list[str] = []
    for node in range(NODES):
        first = node * CPUS_A_NODE
        numa += ["-object", f"memory-backend-ram,id=m{node},size={MEMORY_A_NODE}M"]
        numa += ["-numa", f"node,nodeid={node},cpus={first}-{first + CPUS_A_NODE - 1},memdev=m{node}"]
    command = [
        *architecture.qemu, "-accel", "tcg,thread=multi",
        "-smp", str(NODES * CPUS_A_NODE), "-m", f"{NODES * MEMORY_A_NODE}M", *numa,
        "-kernel", str(kernel), "-initrd", str(initramfs),
        "-append", f"console={architecture.console} quiet panic=-1 mitigations=off",
        "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot", "-net", "none",
    ]  # fmt: skip
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout
