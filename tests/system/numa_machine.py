"""A real Linux kernel with four NUMA nodes: Debian's, under qemu's software emulation, with a small initramfs."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Iterator, Sequence

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


def download_kernel(folder: Path) -> Path:
    """Debian's cloud kernel image, unpacked from its package below `folder`; apt's lists must be there."""
    found = sorted(folder.glob("boot/vmlinuz-*"))
    if found:
        return found[0]
    folder.mkdir(parents=True, exist_ok=True)
    depends = subprocess.run(
        ["apt-cache", "depends", "linux-image-cloud-amd64"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    name = re.search(r"Depends: (linux-image-\S+)", depends)
    assert name is not None, depends
    subprocess.run(["apt-get", "-q", "download", name[1]], cwd=folder, check=True, timeout=300)
    (package,) = folder.glob("linux-image-*.deb")
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True, timeout=120)
    package.unlink()
    return sorted(folder.glob("boot/vmlinuz-*"))[0]


def libraries(program: Path) -> Iterator[Path]:
    """Shared objects that a program needs, its loader included, as the dynamic linker resolves them."""
    lines = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True, timeout=60).stdout
    for path in re.findall(r"(/\S+)", lines):
        yield Path(path)


def make_initramfs(folder: Path, programs: Sequence[Path], commands: str) -> Path:
    """An initramfs with busybox, the programs in /bin and what they link to at the same paths as here."""
    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for program in programs:
        shutil.copy(program, root / "bin" / program.name)
        for library in libraries(program):
            target = root / str(library).lstrip("/")
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


def boot(kernel: Path, initramfs: Path, timeout: float = 240.0) -> str:
    """Boots, waits for power-off, returns what the console showed."""
    numa: list[str] = []
    for node in range(NODES):
        first = node * CPUS_A_NODE
        numa += ["-object", f"memory-backend-ram,id=m{node},size={MEMORY_A_NODE}M"]
        numa += ["-numa", f"node,nodeid={node},cpus={first}-{first + CPUS_A_NODE - 1},memdev=m{node}"]
    command = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max",
        "-smp", str(NODES * CPUS_A_NODE), "-m", f"{NODES * MEMORY_A_NODE}M", *numa,
        "-kernel", str(kernel), "-initrd", str(initramfs),
        "-append", "console=ttyS0 quiet panic=-1 mitigations=off",
        "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot", "-net", "none",
    ]  # fmt: skip
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout
