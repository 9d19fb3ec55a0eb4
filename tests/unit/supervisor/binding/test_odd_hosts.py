"""sysfs trees that real hosts have and nobody expects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from syshaxd.errors import ConfigError
from syshaxd.supervisor.binding.binding_plan import Ask, plan
from syshaxd.supervisor.binding.host_tree import HostTree, describe, read_host
from syshaxd.topology import format_cpu_list
from syshaxd.units.memory import Memory

GIB = 1 << 30


def tree(root: Path, nodes: dict[int, tuple[str, int]], present: str, online: str = "", **more: str) -> Path:
    """`nodes`: id to CPU list and memory in GiB (-1: the file is not there)."""
    files = {"cpu/present": present, "cpu/online": online or present, **more}
    for number, (cpus, memory) in nodes.items():
        files[f"node/node{number}/cpulist"] = cpus
        if memory >= 0:
            files[f"node/node{number}/meminfo"] = f"Node {number} MemTotal: {memory * (1 << 20)} kB"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def cpus(host: HostTree, ask: Ask) -> str:
    return format_cpu_list(plan(host, [ask]).units[0].cpus)


def test_holes_in_the_node_numbers(tmp_path: Path) -> None:
    host = read_host(tree(tmp_path, {0: ("0-3", 8), 8: ("4-7", 8), 252: ("", 16)}, "0-7"))
    found = plan(host, [Ask("cpu", memory=Memory(weights=8 * GIB))])
    assert found.problems == () and found.units[0].memory_per_node == {0: 4 * GIB, 8: 4 * GIB}
    (problem,) = plan(host, [Ask("cpu", memory_nodes="1")]).problems
    assert "memory nodes 1 do not exist; usable are 0,8,252" in problem


def test_a_node_without_memory_gives_none(tmp_path: Path) -> None:
    host = read_host(tree(tmp_path, {0: ("0-3", 8), 1: ("4-7", 0)}, "0-7"))
    found = plan(host, [Ask("cpu", memory=Memory(weights=6 * GIB))])
    assert found.units[0].memory_nodes == (0,) and found.units[0].memory_per_node == {0: 6 * GIB}
    assert "nodes 1 of its CPUs give no memory; it comes from 0" in found.notes[0]
    (problem,) = plan(host, [Ask("cpu", memory_nodes="0-1")]).problems
    assert "memory nodes 1 have none" in problem
    (problem,) = plan(host, [Ask("cpu", memory=Memory(weights=9 * GIB))]).problems
    assert problem.startswith("node 0 has 8.0 GiB")


def test_a_node_without_cpus_gives_memory_when_asked(tmp_path: Path) -> None:
    host = read_host(tree(tmp_path, {0: ("0-3", 8), 1: ("", 64)}, "0-3"))
    binding = plan(host, [Ask("cpu", memory_nodes="1")]).units[0]
    assert binding.memory_nodes == (1,) and binding.bind_memory and format_cpu_list(binding.cpus) == "0-3"
    near = plan(host, [Ask("cpu")]).units[0]
    assert near.memory_nodes == (0,) and near.bind_memory
    assert "node 1: no CPU, 64.0 GiB" in describe(host)


def test_cpus_that_no_node_lists(tmp_path: Path) -> None:
    host = read_host(tree(tmp_path, {0: ("0-1", 8), 1: ("4-5", 8)}, "0-5"))
    assert cpus(host, Ask("cpu", affinity="2-3")) == "2-3" and plan(host, [Ask("cpu", affinity="2-3")]).problems == ()


def test_more_possible_than_present_cpus(tmp_path: Path) -> None:
    host = read_host(tree(tmp_path, {0: ("0-3", 8)}, "0-3", **{"cpu/possible": "0-255"}))
    (problem,) = plan(host, [Ask("cpu", affinity="0-7")]).problems
    assert "CPUs 4-7 do not exist on this host; usable are 0-3" in problem


def test_a_whole_node_offline(tmp_path: Path) -> None:
    host = read_host(tree(tmp_path, {0: ("0-3", 8), 1: ("", 8)}, "0-7", "0-3"), range(8))
    assert cpus(host, Ask("cpu")) == "0-3"
    (problem,) = plan(host, [Ask("cpu", affinity="0-7")]).problems
    assert "CPUs 4-7 are offline" in problem


def test_a_cpuset_of_one_memory_node(tmp_path: Path) -> None:
    host = read_host(tree(tmp_path, {0: ("0-3", 8), 1: ("4-7", 8)}, "0-7"))
    inside = replace(host, allowed_nodes=frozenset((0,)))
    found = plan(inside, [Ask("cpu")])
    assert found.units[0].memory_nodes == (0,) and found.problems == () and len(found.notes) == 1
    (problem,) = plan(inside, [Ask("cpu", memory_nodes="0-1")]).problems
    assert "memory nodes 1 have none, or none for the daemon" in problem


def test_a_cpuset_of_cpus_that_are_not_there(tmp_path: Path) -> None:
    host = read_host(tree(tmp_path, {0: ("0-3", 8)}, "0-3"), [2, 3, 77])
    assert cpus(host, Ask("cpu")) == "2-3"


def test_no_node_folder_and_no_meminfo(tmp_path: Path) -> None:
    host = read_host(tree(tmp_path / "a", {}, "0-3"))
    assert cpus(host, Ask("cpu")) == "0-3" and plan(host, [Ask("cpu", memory=Memory(weights=GIB))]).problems == ()
    host = read_host(tree(tmp_path / "b", {0: ("0-3", -1)}, "0-3"))
    assert plan(host, [Ask("cpu", memory=Memory(weights=999 * GIB))]).problems == (), "unknown memory is not judged"


@pytest.mark.parametrize("text", ["0-3:2", "0,0", "a-b", "5-2", "1000000000", "0-1000000000", "(null)", "\0", "é"])
def test_a_tree_that_makes_no_sense_is_one_fault(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="not the CPU and node lists of a Linux host.*cpu/present"):
        read_host(tree(tmp_path, {0: ("0-3", 8)}, text, "0-3"))


def test_an_empty_folder_is_one_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name no CPU"):
        read_host(tmp_path)


def test_accelerators_are_found_on_pci(tmp_path: Path) -> None:
    root = tree(tmp_path / "devices/system", {0: ("0-3", 8), 1: ("4-7", 8)}, "0-7")
    pci = {"0000:02:00.0": ("0x030000", "0x1a03", "0"), "0000:41:00.0": ("0x120000", "0x19e5", "-1"),
           "0000:81:00.0": ("0x030200", "0x10de", "1")}  # fmt: skip
    for address, values in pci.items():
        folder = tmp_path / "bus/pci/devices" / address
        folder.mkdir(parents=True)
        for name, text in zip(("class", "vendor", "numa_node"), values):
            (folder / name).write_text(text + "\n")
    found = [(device.address[5:7], device.accelerator, device.node) for device in read_host(root).devices]
    assert found == [("41", "ascend", 0), ("81", "nvidia", 1)], "a board's own display is none"
