"""The binding plan as check-config, doctor and status show it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from syshaxd.cli import main
from syshaxd.cli.doctor.command import binding_findings
from syshaxd.cli.doctor.findings import Level
from syshaxd.cli.status import lines
from syshaxd.config import load
from syshaxd.model.unit import BackendKind, Granted, Role, UnitState, UnitView
from syshaxd.supervisor.binding.apply import plan_json
from syshaxd.supervisor.binding.configured import plan_units
from syshaxd.supervisor.binding.host_tree import read_host
from syshaxd.supervisor.binding.shortfalls import Allowed, allowed, binding_json, shortfalls

GIB = 1 << 30
NODES = ("0-39", "40-79", "80-119", "120-159")
GUIDE = """
models: {default: m, path: MODEL}
pd: {pool_size: 4g}
units:
  cpu: {role: cpu, kind: vllm, tensor_parallel_size: 4, env: {CUSTOM_CPU_AFFINITY: "0-159", OMP_NUM_THREADS: "40",
        VLLM_CPU_KVCACHE_SPACE: "GIB"}}
"""


@pytest.fixture
def kunpeng(tmp_path: Path) -> Path:
    """The sysfs tree of the user's guide: 4 nodes of 40 cores and 64 GiB."""
    root = tmp_path / "kunpeng"
    (root / "cpu").mkdir(parents=True)
    for name in ("present", "online", "possible"):
        (root / "cpu" / name).write_text("0-159\n")
    for number, cpus in enumerate(NODES):
        node = root / "node" / f"node{number}"
        node.mkdir(parents=True)
        (node / "cpulist").write_text(cpus + "\n")
        (node / "meminfo").write_text(f"Node {number} MemTotal:       {64 << 20} kB\n")
    return root


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with 16 GiB of weights that take no room on the disk."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 128256}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    os.truncate(folder / "model.safetensors", 16 * GIB)
    return folder


def configured(tmp_path: Path, model: Path, space: int, text: str = GUIDE) -> str:
    path = tmp_path / "syshax.yaml"
    path.write_text(text.replace("MODEL", str(model)).replace("GIB", str(space)))
    return str(path)


def test_check_config_plans_for_a_host_given(
    tmp_path: Path, kunpeng: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configured(tmp_path, model, 40)
    assert main(["check-config", "--config", path, "--host", str(kunpeng)]) == 0
    told = capsys.readouterr().out
    assert "host: node 0: CPUs 0-39, 64.0 GiB; node 1:" in told
    assert "cpu: 160 threads on CPUs 0-159 (node 0: 40, node 1: 40, node 2: 40, node 3: 40); memory nodes 0-3" in told
    assert "46.1 GiB a node (weights 16.0 GiB + KV 160.0 GiB + pool 4.0 GiB + activations 4.2 GiB)" in told
    assert main(["check-config", "--config", path, "--host", str(kunpeng), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["binding"]
    assert answer["units"]["cpu"]["ranks"] == list(NODES) and answer["units"]["cpu"]["memory_per_node"]["3"] > 46 * GIB
    assert [node["memory"] for node in answer["host"]] == [64 * GIB] * 4


def test_check_config_refuses_more_memory_than_a_node_has(
    tmp_path: Path, kunpeng: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-config", "--config", configured(tmp_path, model, 60), "--host", str(kunpeng)]) == 78
    told = capsys.readouterr().err
    assert "units: node 0 has 64.0 GiB (60.8 GiB for units), asked for are 66.1 GiB: cpu 66.1 GiB" in told
    assert "4 faults" in told and "KV 240.0 GiB" in told


UNEVEN = GUIDE.replace("0-159", "0-39,40-69,80-119,120-159").replace('"40"', '"37"')


def test_check_config_refuses_an_uneven_list_of_the_guides_variables(
    tmp_path: Path, kunpeng: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configured(tmp_path, model, 4, UNEVEN)
    assert main(["check-config", "--config", path, "--host", str(kunpeng), "--json"]) == 78
    problems = " ".join(one["message"] for one in json.loads(capsys.readouterr().out)["problems"])
    assert "every NUMA node must give the same number of CPUs" in problems and "node 1: 30 (40-69)" in problems
    assert "148 threads on 150 bound CPUs" in problems


def test_check_config_of_a_tree_that_is_none(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = configured(tmp_path, model, 4)
    assert main(["check-config", "--config", path, "--host", str(tmp_path / "nothing")]) == 78
    assert "not the CPU and node lists of a Linux host" in capsys.readouterr().err


def test_the_doctor_tells_the_plan(tmp_path: Path, kunpeng: Path, model: Path) -> None:
    host = read_host(kunpeng)
    good = list(binding_findings(load(Path(configured(tmp_path, model, 4))), host))
    assert [one.level for one in good] == [Level.OK, Level.OK] and "160 threads on CPUs 0-159" in good[0].found
    bad = list(binding_findings(load(Path(configured(tmp_path, model, 60))), host))
    assert len(bad) == 4 and {one.level for one in bad} == {Level.ERROR} and "node 3 has 64.0 GiB" in bad[3].found


def test_status_shows_plan_and_shortfalls(tmp_path: Path, kunpeng: Path, model: Path) -> None:
    host = read_host(kunpeng)
    planned = plan_units(load(Path(configured(tmp_path, model, 4))), host)
    proc = tmp_path / "proc/77"
    proc.mkdir(parents=True)
    (proc / "status").write_text("Name:\tx\nCpus_allowed_list:\t0-159\nMems_allowed_list:\t0-3\n")
    view = UnitView(
        "cpu", Role.CPU, "sysinfer", BackendKind.PROCESS, UnitState.READY, "", pid=77,
        granted=Granted(160, 158, 4, 3, "neon"),
    )  # fmt: skip
    unit = binding_json(view, planned.units[0], host, tmp_path / "proc")
    assert unit["allowed"] == {"cpus": "0-159", "memory_nodes": "0-3"} and len(unit["shortfalls"]) == 2
    status: dict[str, Any] = {"units": [{"name": "cpu", "state": "ready", "binding": unit}]}
    text = "\n".join(lines({**status, "binding": plan_json(planned, host)}))
    assert "cpu: 160 threads on CPUs 0-159 (node 0: 0-39, node 1: 40-79" in text and "158 of 160 pinned" in text
    assert "not as planned: 2 of 160 threads are not pinned" in text and "3 ranges of weights or KV" in text


def test_what_is_less_than_planned(tmp_path: Path, kunpeng: Path, model: Path) -> None:
    binding = plan_units(load(Path(configured(tmp_path, model, 4))), read_host(kunpeng)).units[0]
    assert list(shortfalls(binding, Granted(160, 160, 4, 0))) == [] == list(shortfalls(binding, None))
    assert list(shortfalls(binding, Granted(2, 2, 1, 0))) == ["it computes with 2 threads, planned are 160"]
    wide = Allowed(frozenset(range(200)), frozenset(range(5)))
    assert len(list(shortfalls(binding, None, wide))) == 1 and len(list(shortfalls(binding, None, wide, True))) == 2
    here = allowed(os.getpid())
    assert here is not None and here.cpus == os.sched_getaffinity(0) and allowed(None) is None
