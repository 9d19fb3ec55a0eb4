"""What the vendors' tools say, and what becomes of tools that fail, hang or are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from syshaxd.model.snapshot import DeviceLoad
from syshaxd.monitor.devices import ASCEND, MIB, NVIDIA, parse_ascend, parse_nvidia, read_devices, vendor_tool

NPU_TABLE = """\
+------------------------------------------------------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 93.6        37                0    / 0             |
| 0                         | 0000:C1:00.0  | 42          0    / 0          3162 / 65536         |
+===========================+===============+====================================================+
| 1     310P3               | OK            | NA          40                0    / 0             |
| 0     1                   | 0000:01:00.0  | 7           1785 / 21527                           |
+===========================+===============+====================================================+
"""


def test_nvidia() -> None:
    text = "37, 1024, 81920\n[N/A], 0, [N/A]\n"
    assert parse_nvidia(text) == (DeviceLoad(37.0, 1024 * MIB, 81920 * MIB), DeviceLoad(None, 0, None))
    assert parse_nvidia("No devices were found\n") == ()


def test_ascend() -> None:
    expected = (DeviceLoad(42.0, 3162 * MIB, 65536 * MIB), DeviceLoad(7.0, 1785 * MIB, 21527 * MIB))
    assert parse_ascend(NPU_TABLE) == expected
    assert parse_ascend("npu-smi: no driver\n") == ()


def test_the_tool_that_is_there() -> None:
    assert vendor_tool(lambda name: None) is None
    assert vendor_tool(lambda name: "/bin/x" if name == "npu-smi" else None) == ASCEND


@pytest.mark.parametrize("work", ["exec sleep 60", "exit 1", "echo nothing known", "echo '5, 1, 2'"])
async def test_tools_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    tool = tmp_path / NVIDIA[0]
    tool.write_text(f"#!/bin/sh\n{work}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = await read_devices(NVIDIA, timeout=0.2 if "sleep" in work else 10.0)
    assert found == ((DeviceLoad(5.0, MIB, 2 * MIB),) if "5, 1" in work else None)


async def test_no_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert await read_devices(NVIDIA) is None
