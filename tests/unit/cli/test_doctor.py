"""The doctor on hosts made of files."""

from __future__ import annotations

import shutil
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from syshaxd.cli.doctor.command import lines
from syshaxd.cli.doctor.findings import Finding, Level
from syshaxd.cli.doctor.host import TOOLKIT, host_findings
from syshaxd.config.types import Config, ContainerConfig, PdConfig, UnitConfig
from syshaxd.model.unit import BackendKind, Role
from syshaxd.units.accelerators import ASCEND

GPU = UnitConfig(
    "gpu", Role.ACCELERATOR, "vllm", BackendKind.PODMAN, accelerator="nvidia", device_ids=("0",),
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


def _write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def _by_subject(root: Path, unit: UnitConfig) -> dict[str, Finding]:
    config = Config(units=(unit,), pd=PdConfig(pool_size=1 << 20))
    return {finding.subject: finding for finding in host_findings(config, root)}


def test_a_bare_host_lacks_everything(tmp_path: Path) -> None:
    found = _by_subject(_host(tmp_path), GPU)
    for subject in ("gpu: model", "gpu: nvidia", "gpu: CDI"):
        assert found[subject].level is Level.ERROR and found[subject].advice


def test_a_host_with_a_gpu(tmp_path: Path) -> None:
    driver = ("dev/nvidiactl", "dev/nvidia0", "usr/lib64/libcuda.so.1")
    names = (*driver, "etc/cdi/nvidia.yaml", "models/m/config.json", "sys/fs/cgroup/cpuset", TOOLKIT[0])
    found = _by_subject(_host(tmp_path, *names), GPU)
    assert {finding.level for finding in found.values()} == {Level.OK}
    found = _by_subject(tmp_path, replace(GPU, backend=BackendKind.DOCKER))
    assert found["gpu: container toolkit"].level is Level.OK
    (tmp_path / TOOLKIT[0]).unlink()
    found = _by_subject(tmp_path, replace(GPU, backend=BackendKind.DOCKER))
    assert found["gpu: container toolkit"].level is Level.ERROR
    (tmp_path / "usr/lib64/libcuda.so.1").unlink()
    assert _by_subject(tmp_path, GPU)["gpu: nvidia"].found == "no libcuda.so.1"


@pytest.mark.parametrize("missing", ["/dev/davinci_manager", "/dev/davinci0", "/usr/bin/hccn_tool"])
def test_each_part_of_an_ascend_board(tmp_path: Path, missing: str) -> None:
    board = ASCEND.boards["a2"]
    names = [name for name in ("/dev/davinci0", *board.devices, *board.mounts) if name != missing]
    found = _by_subject(_host(tmp_path, *names), NPU)["npu: ascend (a2)"]
    assert found.level is Level.ERROR and found.found == f"no {missing}"


def test_a_whole_ascend_board(tmp_path: Path) -> None:
    board = ASCEND.boards["a2"]
    host = _host(tmp_path, "/dev/davinci0", *board.devices, *board.mounts)
    assert _by_subject(host, NPU)["npu: ascend (a2)"].level is Level.OK


@pytest.mark.parametrize(
    ("controllers", "version_1", "level", "words"),
    [
        ("cpuset cpu memory", False, Level.OK, "version 2"),
        ("cpu memory", False, Level.WARNING, "version 2 without cpuset"),
        (None, True, Level.OK, "version 1 "),
        (None, False, Level.WARNING, "version 1 without cpuset"),
    ],
)
def test_control_groups(tmp_path: Path, controllers: str | None, version_1: bool, level: Level, words: str) -> None:
    host = _host(tmp_path)
    if version_1:
        (host / "sys/fs/cgroup/cpuset").mkdir(parents=True)
    if controllers is not None:
        _write(host, "sys/fs/cgroup/cgroup.controllers", controllers)
    found = _by_subject(host, GPU)["cgroups"]
    assert found.level is level and found.found.startswith(words)
    assert bool(found.advice) == (level is not Level.OK)


@pytest.mark.parametrize(
    ("enforce", "words"), [(None, "not in use"), ("1", "enforcing; the pool folder"), ("0", "permissive")]
)
def test_selinux(tmp_path: Path, enforce: str | None, words: str) -> None:
    host = _host(tmp_path)
    if enforce is not None:
        _write(host, "sys/fs/selinux/enforce", enforce)
    assert _by_subject(host, GPU)["selinux"].found.startswith(words)


@pytest.mark.parametrize(
    ("text", "level"), [("always [madvise] never", Level.OK), ("always madvise [never]", Level.WARNING)]
)
def test_huge_pages(tmp_path: Path, text: str, level: Level) -> None:
    host = _host(tmp_path)
    _write(host, "sys/kernel/mm/transparent_hugepage/enabled", text)
    assert _by_subject(host, GPU)["hugepages"].level is level


def test_model_folders(tmp_path: Path) -> None:
    host = _host(tmp_path, "models/m/weights.bin", "models/far")
    subject = "gpu: model"
    assert "has no config.json" in _by_subject(host, GPU)[subject].found
    _write(host, "models/m/config.json", "{}")
    assert _by_subject(host, GPU)[subject].level is Level.OK
    (host / "models/m/link").symlink_to("../far")
    links = _by_subject(host, GPU)[subject]
    assert links.level is Level.WARNING and "container.mounts" in links.advice
    assert _by_subject(host, replace(GPU, model_path="/no/model"))[subject].level is Level.ERROR
    assert subject not in _by_subject(host, replace(GPU, model_path="org/model")), "a name to be downloaded"


def test_a_free_port(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert _by_subject(_host(tmp_path), replace(GPU, port=port))["gpu: port"].level is Level.OK


def test_a_pool_that_fits_is_full_or_has_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _by_subject(_host(tmp_path / "a"), GPU)["pool"].level is Level.OK
    (tmp_path / "b").mkdir()
    assert _by_subject(tmp_path / "b", GPU)["pool"].found == "/dev/shm/syshax is not there"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1 << 30, used=1 << 30, free=100))
    full = _by_subject(tmp_path / "a", GPU)["pool"]
    assert full.level is Level.ERROR and "remove what fills it" in full.advice


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
