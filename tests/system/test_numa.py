"""Weights, KV heads and threads lie where the plan put them, on a real kernel with four NUMA nodes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.numa_machine import boot, download_kernel, make_initramfs

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("qemu-system-x86_64", "cpio", "gcc", "dpkg-deb", "apt-get")


def missing() -> str:
    """Tools that are not there, and the line that installs them; "" when all are."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not Path("/bin/busybox").exists():
        absent.append("busybox")
    return f"{', '.join(absent)}: apt-get install qemu-system-x86 busybox-static cpio gcc" if absent else ""


@pytest.mark.timeout(400)
def test_rows_heads_and_threads_lie_on_their_nodes(tmp_path: Path) -> None:
    if missing():
        pytest.skip(f"missing {missing()}")
    core = ROOT / "kernels/python/syshax_kernels"
    probe = tmp_path / "numa_probe"
    compile_probe = ["gcc", "-std=c99", "-O1", "-Wall", "-Werror", "-I", str(ROOT / "kernels/include")]
    link = [str(ROOT / "tests/kernels/numa/probe.c"), "-L", str(core), "-l:libsyshax_kernels.so"]
    subprocess.run([*compile_probe, "-o", str(probe), *link, f"-Wl,-rpath,{core}", "-lm"], check=True, timeout=120)
    kernel = download_kernel(ROOT / "build/numa-kernel")
    console = boot(kernel, make_initramfs(tmp_path, [probe], "/bin/numa_probe"))
    assert "NUMA OK" in console and "BAD" not in console, console
    assert "ok said: cpus: expected the same number on every NUMA node" in console, console
