"""What this host has to serve with: CPUs and NUMA nodes (sysfs, py-cpuinfo) and accelerators (device nodes)."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from syshaxd.topology import Topology, read_topology

ENGINES = ("podman", "docker")


@dataclass(frozen=True)
class Hardware:
    """`nvidia` and `ascend`: numbers of the devices. `engine`: podman or docker, "" where neither is installed."""

    cpu: str
    topology: Topology
    nvidia: tuple[int, ...] = ()
    ascend: tuple[int, ...] = ()
    engine: str = ""

    @property
    def accelerator(self) -> str:
        """nvidia, ascend or none."""
        return "nvidia" if self.nvidia else "ascend" if self.ascend else "none"

    @property
    def devices(self) -> tuple[int, ...]:
        """Devices of that accelerator."""
        return self.nvidia or self.ascend


def find_hardware(dev: Path = Path("/dev"), topology: Topology | None = None) -> Hardware:
    """Look at this host."""
    return Hardware(
        cpu=cpu_name(),
        topology=topology or read_topology(),
        nvidia=_numbered(dev, "nvidia"),
        ascend=_numbered(dev, "davinci"),
        engine=next((name for name in ENGINES if shutil.which(name)), ""),
    )


def _numbered(dev: Path, prefix: str) -> tuple[int, ...]:
    matches = (re.fullmatch(prefix + r"(\d+)", path.name) for path in dev.glob(f"{prefix}*"))
    return tuple(sorted(int(match[1]) for match in matches if match))


def cpu_name() -> str:
    """The CPU's name as the vendor writes it, or its architecture."""
    try:
        import cpuinfo  # absent on openEuler 22.03
    except ImportError:
        return _proc_name()
    info = cpuinfo.get_cpu_info()
    return str(info.get("brand_raw") or info.get("brand") or info.get("arch") or "CPU")  # "brand": before release 8


def _proc_name(path: Path = Path("/proc/cpuinfo")) -> str:
    match = re.search(r"(?m)^(?:model name|Hardware)\s*:\s*(.+)$", path.read_text(errors="replace"))
    return match[1].strip() if match else "CPU"
