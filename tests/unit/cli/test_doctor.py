"""The doctor on hosts made of files."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Dict

import pytest

from syshaxd.cli.doctor.command import lines
from syshaxd.cli.doctor.findings import Finding, Level
from syshaxd.cli.doctor.host import host_findings
from syshaxd.config.types import Config, ContainerConfig, PdConfig, UnitConfig
from syshaxd.model.unit import BackendKind, Role, UnitKind
from syshaxd.supervisor.container_spec import ASCEND_BOARDS

GPU = UnitConfig(
    "gpu", Role.ACCELERATOR, UnitKind.VLLM, BackendKind.PODMAN, accelerator="nvidia", device_ids=("0",),
    model_path="/models/m", container=ContainerConfig(image="x:1"),
)  # fmt: skip
NPU = replace(GPU, name="npu", accelerator="ascend")


def _host(root: Path, *names: str) -> Path:
    for name in ("dev/shm", *names):
        path = root / name.lstrip("/")
        if path.suffix or not name.startswith("dev/shm"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        else:
            path.mkdir(parents=True)
    return root


def _by_subject(root: Path, unit: UnitConfig) -> Dict[str, Finding]:
    config = Config(units=(unit,), pd=PdConfig(pool_size=1 << 20))
    return {finding.subject: finding for finding in host_findings(config, root)}


def test_a_bare_host_lacks_everything(tmp_path: Path) -> None:
    found = _by_subject(_host(tmp_path), GPU)
    for subject in ("gpu: model", "gpu: nvidia", "gpu: CDI"):
        assert found[subject].level is Level.ERROR and found[subject].advice


def test_a_host_with_a_gpu(tmp_path: Path) -> None:
    names = ("dev/nvidiactl", "dev/nvidia0", "etc/cdi/nvidia.yaml", "models/m/config.json", "sys/fs/cgroup/cpuset")
    found = _by_subject(_host(tmp_path, *names), GPU)
    assert {finding.level for finding in found.values()} == {Level.OK}


@pytest.mark.parametrize("missing", ["/dev/davinci_manager", "/dev/davinci0", "/usr/bin/hccn_tool"])
def test_each_part_of_an_ascend_board(tmp_path: Path, missing: str) -> None:
    board = ASCEND_BOARDS["a2"]
    names = [name for name in ("/dev/davinci0", *board.devices, *board.mounts) if name != missing]
    found = _by_subject(_host(tmp_path, *names), NPU)["npu: ascend (a2)"]
    assert found.level is Level.ERROR and found.found == f"no {missing}"


def test_a_taken_port_is_a_warning(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = _by_subject(_host(tmp_path), replace(GPU, port=taken.getsockname()[1]))
    assert found["gpu: port"].level is Level.WARNING


def test_a_pool_that_does_not_fit(tmp_path: Path) -> None:
    config = Config(units=(GPU,), pd=PdConfig(pool_size=1 << 60))
    pool = next(finding for finding in host_findings(config, _host(tmp_path)) if finding.subject == "pool")
    assert pool.level is Level.ERROR and "pd.pool_size" in pool.advice


def test_lines_for_people() -> None:
    findings = [Finding(Level.OK, "a", "fine"), Finding(Level.ERROR, "b", "broken", "mend it")]
    assert lines(findings) == [
        "ok      a: fine", "error   b: broken", "        -> mend it", "1 errors, 0 warnings",
    ]  # fmt: skip
