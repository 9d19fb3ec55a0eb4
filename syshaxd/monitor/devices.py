"""Use of the accelerators as the vendor's tool tells it: nvidia-smi or npu-smi, where one is installed."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Callable

from syshaxd.errors import DeadlineError
from syshaxd.model.snapshot import DeviceLoad
from syshaxd.tasks import put_down, within

TIMEOUT = 5.0  # seconds; with a lost device the tools can hang
MIB = 1024 * 1024
NVIDIA = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")
ASCEND = ("npu-smi", "info")
# | chip | bus id | AICore % | memory used / total MB | HBM used / total MB (where the chip has HBM) |
_CHIP = re.compile(
    r"\|\s*[\da-fA-F]{4}:[\da-fA-F]{2}:[\da-fA-F]{2}\.\d\s*\|\s*(\S+)\s+(\d+)\s*/\s*(\d+)(?:\s+(\d+)\s*/\s*(\d+))?\s*\|"
)
Devices = tuple[DeviceLoad, ...]


def parse_nvidia(text: str) -> Devices:
    """Output of NVIDIA: one line a device; "[N/A]" where a device does not tell."""
    rows = [[part.strip() for part in line.split(",")] for line in text.splitlines()]
    return tuple(_device(row[0], row[1], row[2]) for row in rows if len(row) == 3)


def parse_ascend(text: str) -> Devices:
    """Output of ASCEND: the table's lines with a bus id, in its order."""
    found = (match.groups() for match in map(_CHIP.search, text.splitlines()) if match)
    return tuple(_device(use, hbm_used or used, hbm or total) for use, used, total, hbm_used, hbm in found)


def _device(percent: str, used: str, total: str) -> DeviceLoad:
    numbers = [float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None for text in (percent, used, total)]
    memory = [None if number is None else int(number * MIB) for number in numbers[1:]]
    return DeviceLoad(numbers[0], memory[0], memory[1])


PARSERS: Mapping[Sequence[str], Callable[[str], Devices]] = {NVIDIA: parse_nvidia, ASCEND: parse_ascend}


def vendor_tool(which: Callable[[str], str | None] = shutil.which) -> Sequence[str] | None:
    """The command line of the first tool that is installed; None where none is."""
    return next((command for command in PARSERS if which(command[0])), None)


async def read_devices(command: Sequence[str], timeout: float = TIMEOUT) -> Devices | None:
    """Runs the tool; None where it fails, hangs or says nothing known: the load is then unknown, not 0."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return None
    try:
        output, _ = await within(timeout, command[0], process.communicate())
    except DeadlineError:
        return None
    finally:
        if process.returncode is None:
            await put_down(process)
    return PARSERS[command](output.decode(errors="replace")) or None if process.returncode == 0 else None
