"""What a unit computes on besides CPUs, and what its container needs for that. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from syshaxd.config.types import UnitConfig


class Accelerator:
    """No device: the unit computes on CPUs, and may bind memory to nodes."""

    name = "none"
    pci_vendor = ""
    capabilities: tuple[str, ...] = ("SYS_NICE",)

    def gpus(self, unit: "UnitConfig") -> tuple[str, ...]:
        """Devices that the container engine's own GPU support hands in; ("all",) for every one."""
        return ()

    def devices(self, unit: "UnitConfig") -> tuple[str, ...]:
        """Device nodes."""
        return ()

    def mounts(self, unit: "UnitConfig") -> tuple[str, ...]:
        """Files and folders of the driver, at the same place inside."""
        return ()

    def environment(self, unit: "UnitConfig") -> Mapping[str, str]:
        """Variables inside the container."""
        return {}


class Nvidia(Accelerator):
    """Through the engine's GPU support, which brings the driver's libraries."""

    name = "nvidia"
    pci_vendor = "0x10de"
    capabilities = ()

    def gpus(self, unit: "UnitConfig") -> tuple[str, ...]:
        """See Accelerator. Devices that the user names (CDI) are instead of these."""
        return () if unit.container.devices else unit.device_ids or ("all",)


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


class Ascend(Accelerator):
    """Chips, managers and driver by hand, as the user's guide and vllm-ascend do it."""

    name = "ascend"
    pci_vendor = "0x19e5"
    capabilities = ()
    # hccn_tool serves the links between the chips of training boards.
    boards: Mapping[str, AscendBoard] = {
        "a2": AscendBoard(_MANAGERS, (*_DRIVER, "/usr/bin/hccn_tool")),
        "a3": AscendBoard(_MANAGERS, (*_DRIVER, "/usr/bin/hccn_tool")),
        "300i": AscendBoard(_MANAGERS, _DRIVER),
    }

    def board(self, unit: "UnitConfig") -> str:
        """Key of `boards`: container.soc, or what the image's tag says (-a3, -310p), or a2."""
        if unit.container.soc != "auto":
            return unit.container.soc
        tag = unit.container.image.rpartition(":")[2].lower()
        return "a3" if "-a3" in tag else "300i" if "-310p" in tag or "-300i" in tag else "a2"

    def devices(self, unit: "UnitConfig") -> tuple[str, ...]:
        """See Accelerator."""
        chips = (f"/dev/davinci{number}" for number in _ids(unit))
        return (*chips, *self.boards[self.board(unit)].devices)

    def mounts(self, unit: "UnitConfig") -> tuple[str, ...]:
        """See Accelerator."""
        return self.boards[self.board(unit)].mounts

    def environment(self, unit: "UnitConfig") -> Mapping[str, str]:
        """See Accelerator."""
        return {"ASCEND_RT_VISIBLE_DEVICES": ",".join(_ids(unit))}


def _ids(unit: "UnitConfig") -> tuple[str, ...]:
    return unit.device_ids or tuple(str(number) for number in range(unit.tensor_parallel_size))


NO_DEVICE, NVIDIA, ASCEND = Accelerator(), Nvidia(), Ascend()
ACCELERATORS: Mapping[str, Accelerator] = {one.name: one for one in (NVIDIA, ASCEND, NO_DEVICE)}
