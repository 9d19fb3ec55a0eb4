"""Golden plans for known hosts, and what every plan must hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syshaxd.supervisor.binding.apply import lines
from syshaxd.supervisor.binding.binding_plan import Ask, BindingPlan, plan
from syshaxd.supervisor.binding.host_tree import HostDevice, HostNode, HostTree, read_host
from syshaxd.topology import format_cpu_list, parse_cpu_list
from syshaxd.units import VLLM
from syshaxd.units.memory import Memory

GIB = 2**30


def sysfs(
    root: Path, nodes: Sequence[str], siblings: Sequence[Sequence[int]] = (), offline: str = "", memory: int = 128 * GIB
) -> Path:
    """Writes a tree as the kernel shows it: an offline CPU is present, and in no node's list."""
    down = parse_cpu_list(offline)
    everything = frozenset().union(*(parse_cpu_list(cpus) for cpus in nodes))
    (root / "cpu").mkdir(parents=True)
    (root / "cpu/present").write_text(format_cpu_list(everything) + "\n")
    (root / "cpu/online").write_text(format_cpu_list(everything - down) + "\n")
    for number, cpus in enumerate(nodes):
        node = root / f"node/node{number}"
        node.mkdir(parents=True)
        (node / "cpulist").write_text(format_cpu_list(parse_cpu_list(cpus) - down) + "\n")
        (node / "meminfo").write_text(f"Node {number} MemTotal:       {memory // 1024} kB\n")
    for core in siblings or [[cpu] for cpu in sorted(everything - down)]:
        for cpu in core:
            folder = root / f"cpu/cpu{cpu}/topology"
            folder.mkdir(parents=True)
            (folder / "thread_siblings_list").write_text(format_cpu_list(core) + "\n")
    return root


def kunpeng(root: Path) -> HostTree:
    return read_host(sysfs(root, ["0-39", "40-79", "80-119", "120-159"]), range(160))


def golden(found: BindingPlan) -> dict[str, str]:
    return {binding.name: format_cpu_list(binding.cpus) for binding in found.units}


def test_kunpeng_4x40_without_smt(tmp_path: Path) -> None:
    asks = [Ask("gpu", accelerator="nvidia", n_devices=2), Ask("cpu")]
    found = plan(kunpeng(tmp_path), asks)
    assert found.problems == ()
    assert golden(found) == {"gpu": "0-3", "cpu": "4-38,40-74,80-114,120-154"}
    assert found.unit("cpu") is not None and found.unit("cpu").threads == 140  # type: ignore[union-attr]
    assert format_cpu_list(found.housekeeping) == "39,75-79,115-119,155-159"


def test_kunpeng_as_in_the_users_guide(tmp_path: Path) -> None:
    found = plan(kunpeng(tmp_path), [Ask("cpu", affinity="0-159", threads=160)])
    assert found.problems == () and golden(found) == {"cpu": "0-159"}


def test_kunpeng_stock_vllm_one_rank_a_node(tmp_path: Path) -> None:
    ask = Ask("cpu", affinity="0-38,40-78,80-118,120-158", ranks=4, one_rank_a_node=True)
    binding = plan(kunpeng(tmp_path), [ask]).units[0]
    environment = VLLM.binding_environment(binding)
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "0-38|40-78|80-118|120-158"
    assert environment["OMP_NUM_THREADS"] == "39" and environment["CPU_VISIBLE_MEMORY_NODES"] == "0,1,2,3"


def test_2x64_with_smt_and_4_nodes(tmp_path: Path) -> None:
    siblings = [[core, core + 128] for core in range(128)]
    nodes = [f"{n * 32}-{n * 32 + 31},{n * 32 + 128}-{n * 32 + 159}" for n in range(4)]
    found = plan(read_host(sysfs(tmp_path, nodes, siblings), range(256)), [Ask("gpu"), Ask("cpu")])
    assert found.problems == ()
    assert golden(found) == {
        "gpu": "0-14,32-46,64-78,96-110",
        "cpu": "15-30,47-62,79-94,111-126",
    }


def test_two_sockets_x86_with_smt(tmp_path: Path) -> None:
    siblings = [[core, core + 32] for core in range(32)]
    host = read_host(sysfs(tmp_path, ["0-15,32-47", "16-31,48-63"], siblings), range(64))
    found = plan(host, [Ask("gpu", accelerator="nvidia"), Ask("cpu")])
    assert found.problems == ()
    assert golden(found) == {"gpu": "0-1", "cpu": "2-14,16-28"}


def test_offline_cpus_shrink_every_node_alike(tmp_path: Path) -> None:
    host = read_host(sysfs(tmp_path, ["0-7", "8-15"], offline="6-7"), range(16))
    found = plan(host, [Ask("cpu")])
    assert golden(found) == {"cpu": "0-5,8-13"} and found.problems == ()
    (problem,) = plan(host, [Ask("cpu", affinity="4-7,8-11")]).problems[:1]
    assert "CPUs 6-7 are offline" in problem


def test_cpuset_of_six_cpus_across_two_nodes(tmp_path: Path) -> None:
    host = read_host(sysfs(tmp_path, ["0-7", "8-15"]), [4, 5, 6, 7, 8, 9])
    assert golden(plan(host, [Ask("cpu")])) == {"cpu": "4-5,8-9"}
    (problem,) = plan(host, [Ask("cpu", affinity="2-5")]).problems
    assert "CPUs 2-3 lie outside the cpuset" in problem and "usable are 4-9" in problem


def test_small_host_two_units_one_core_each(tmp_path: Path) -> None:
    host = read_host(sysfs(tmp_path, ["0-1"]), range(2))
    found = plan(host, [Ask("gpu"), Ask("cpu")])
    assert golden(found) == {"gpu": "0", "cpu": "1"} and found.problems == ()


def test_one_cpu_is_shared_with_a_note(tmp_path: Path) -> None:
    found = plan(read_host(sysfs(tmp_path, ["0"]), [0]), [Ask("gpu"), Ask("cpu")])
    assert golden(found) == {"gpu": "0", "cpu": "0"} and len(found.notes) == 1


def test_uneven_nodes_are_refused_with_counts(tmp_path: Path) -> None:
    (problem,) = plan(kunpeng(tmp_path), [Ask("cpu", affinity="0-39,40-69")]).problems
    assert "node 0: 40 (0-39), node 1: 30 (40-69)" in problem and "use 30 on each" in problem


def test_threads_must_equal_cpus(tmp_path: Path) -> None:
    (problem,) = plan(kunpeng(tmp_path), [Ask("cpu", affinity="0-39", threads=20)]).problems
    assert "20 threads on 40 bound CPUs" in problem and "set threads to 40" in problem


def test_overlaps_are_refused(tmp_path: Path) -> None:
    found = plan(kunpeng(tmp_path), [Ask("a", affinity="0-9"), Ask("b", affinity="5-14")])
    assert any("units a and b both ask for CPUs 5-9" in problem for problem in found.problems)


def test_more_memory_than_a_node_has_is_refused_with_numbers(tmp_path: Path) -> None:
    big = Memory(weights=300 * GIB, kv=200 * GIB, pool=50 * GIB)
    problems = plan(kunpeng(tmp_path), [Ask("cpu", memory=big)]).problems
    assert len(problems) == 4 and "node 0 has 128.0 GiB" in problems[0] and "cpu 137.5 GiB" in problems[0]


def test_a_thread_count_is_placed_evenly(tmp_path: Path) -> None:
    assert golden(plan(kunpeng(tmp_path), [Ask("cpu", threads=48)])) == {"cpu": "0-11,40-51,80-91,120-131"}


def test_a_thread_count_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (problem,) = plan(kunpeng(tmp_path), [Ask("cpu", threads=173)]).problems
    assert "173 threads don't fit evenly" in problem


def test_a_device_keeps_its_host_threads_near(tmp_path: Path) -> None:
    tree = kunpeng(tmp_path)
    devices = [HostDevice(f"0000:{n}1:00.0", "nvidia", n) for n in range(4)]
    host = replace(tree, devices=(HostDevice("0000:01:00.0", "ascend", 1), *devices))
    assert golden(plan(host, [Ask("gpu", accelerator="nvidia", device_ids=("2",))])) == {"gpu": "80-81"}
    both = Ask("gpu", accelerator="nvidia", device_ids=("1", "3"), n_devices=2)
    assert golden(plan(host, [both])) == {"gpu": "40-41,120-121"}
    assert golden(plan(host, [Ask("npu", accelerator="ascend")])) == {"npu": "40-41"}


def test_the_lines_name_units_nodes_and_counts(tmp_path: Path) -> None:
    host = kunpeng(tmp_path)
    text = "\n".join(lines(plan(host, [Ask("cpu", affinity="0-159")]), host))
    assert "cpu: 160 threads on CPUs 0-159 (node 0: 40, node 1: 40, node 2: 40, node 3: 40)" in text


def test_this_host_can_be_planned() -> None:
    host = read_host()
    found = plan(host, [Ask("gpu"), Ask("cpu")])
    assert found.problems == ()
    assert all(binding.cpus and binding.cpus <= host.usable for binding in found.units)


@pytest.mark.parametrize("text", ["0-", "x", "5-2"])
def test_a_broken_list_is_one_problem(tmp_path: Path, text: str) -> None:
    assert len(plan(kunpeng(tmp_path), [Ask("cpu", affinity=text)]).problems) == 1


hosts = st.builds(
    lambda sizes, smt, holes: _tree(sizes, smt, holes),
    st.lists(st.integers(1, 24), min_size=1, max_size=4),
    st.booleans(),
    st.sets(st.integers(0, 95), max_size=12),
)


def _tree(sizes: Sequence[int], smt: bool, holes: Iterable[int]) -> HostTree:
    nodes, cores, first = [], [], 0
    for number, size in enumerate(sizes):
        cpus = range(first, first + size * (2 if smt else 1))
        nodes.append(HostNode(number, frozenset(cpus), 64 * GIB))
        cores += [frozenset(cpus[i::size] if smt else [cpus[i]]) for i in range(size)]
        first = cpus.stop
    allowed = frozenset(range(first)) - frozenset(holes)
    return HostTree(tuple(nodes), tuple(cores), frozenset(), allowed or frozenset((0,)))


@given(hosts, st.integers(1, 4), st.one_of(st.none(), st.integers(1, 30)))
@settings(max_examples=150)
def test_automatic_plans_are_even_disjoint_and_inside_the_cpuset(
    host: HostTree, units: int, threads: int | None
) -> None:
    asks = [Ask(f"u{i}", threads=threads) for i in range(units)]
    found = plan(host, asks)
    if found.problems or found.notes:
        return
    seen: set[int] = set()
    for binding in found.units:
        per_node = host.per_node(binding.cpus)
        assert len({len(cpus) for cpus in per_node.values()}) == 1
        assert binding.cpus <= host.usable and not binding.cpus & seen
        assert threads is None or binding.threads == threads
        seen |= binding.cpus
