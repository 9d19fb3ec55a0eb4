"""The capacity formula against worked numbers, and the simulator's invariants."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syshaxd.cli import main
from syshaxd.cli.bench.completions_client import Outcome
from syshaxd.cli.bench.serve import Run, summary, table
from syshaxd.cli.estimate import estimate
from syshaxd.model.request import Tier
from syshaxd.simulation.deciders import Contestant, Predictive, contestants
from syshaxd.simulation.law import hosts
from syshaxd.simulation.report import conclusion, play, plot
from syshaxd.simulation.report import table as score_table
from syshaxd.simulation.workload import Arrival, Demand, TraceError, arrivals, read_trace
from syshaxd.simulation.world import World

TRACES = Path(__file__).parents[3] / "bench/traces"


@pytest.mark.parametrize(
    "host, prompt, output, gain",
    [("A100x2-32B", 1155, 211, 0.037), ("A100x1-32B", 1155, 211, 0.28), ("A10-8B", 1155, 211, 0.81)],
)
def test_the_capacity_formula_gives_the_worked_numbers(host: str, prompt: float, output: float, gain: float) -> None:
    assert estimate(hosts()[host], prompt, output, 0.1).gain == pytest.approx(gain, rel=0.05)


def test_cpus_too_slow_for_the_limit_add_nothing() -> None:
    found = estimate(hosts()["A100x1-32B"], 1155, 211, 0.02)
    assert found.cpu.tokens == 0 and found.together == pytest.approx(found.alone)


@given(
    st.lists(
        st.builds(
            Arrival,
            st.floats(0, 60),
            st.integers(1, 3000),
            st.integers(1, 400),
            st.sampled_from([Tier.DEFAULT, Tier.FLEX]),
        ),
        min_size=2,
        max_size=120,
    ),
    st.sampled_from(contestants()),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_request_ends_once_and_nothing_is_left(load: list[Arrival], contestant: Contestant, seed: int) -> None:
    host = hosts()["A10-8B"]
    world = World(host, contestant.make(host), seed)
    world.run(sorted(load, key=lambda arrival: arrival.at))
    for request in world.requests:
        assert request.end is not None
        assert request.refused or (request.first_token is not None and request.generated >= request.arrival.output)


def test_the_same_seed_gives_the_same_result() -> None:
    host = hosts()["A10-8B"]
    load = arrivals(read_trace(TRACES / "azure_conv.csv"), Demand(1.4, 120))
    chosen = [c for c in contestants() if c.name == "predictive"]
    assert play(host, load, chosen, seed=5) == play(host, load, chosen, seed=5)


def test_closed_loop_clients_send_the_next_request_after_the_answer() -> None:
    host = hosts()["A10-8B"]
    load = arrivals(read_trace(TRACES / "azure_conv.csv"), Demand(50.0, 60))
    world = World(host, Predictive(host))
    world.run(load, clients=4)
    assert all(request.end is not None for request in world.requests)
    overlaps = [sum(o.arrival.at <= r.arrival.at < (o.end or 0) for o in world.requests) for r in world.requests]
    assert max(overlaps) <= 4


def test_the_report_ends_with_what_the_cpus_bring() -> None:
    host = hosts()["A10-8B"]
    load = arrivals(read_trace(TRACES / "azure_conv.csv"), Demand(1.8, 300))
    scores = play(host, load, [c for c in contestants() if not c.name.startswith("threshold")])
    assert "the CPUs bring +" in conclusion(scores)
    assert len(score_table(scores).splitlines()) == len(scores) + 1 == len(plot(scores).splitlines()) + 1


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("a.csv", "t_s,input,output\n0,1,1\n1,x,1\n", ":3: expected the columns"),
        ("a.csv", "t_s,input,output\n0,1,1\n", "expected at least 2 requests, found 1"),
        ("a.jsonl", '{"time": 1, "prompt_tokens": 3}\n{broken\n', r"expected at least 2 requests \(log lines"),
        ("a.log", "", "found 0"),
    ],
)
def test_a_broken_trace_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(TraceError, match=said):
        read_trace(path)


def test_an_access_log_is_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    rows = [{"time": 5.0 + i, "prompt_tokens": 10 + i, "completion_tokens": 3} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_trace(path) == [(5.0, 10, 3, None), (6.0, 11, 3, None), (7.0, 12, 3, None)]


LINE = "13:00:{s:02} conductor: request request_id=r{s} arrived=2026-11-21T13:00:0{a}.250+00:00 status={status} "
LINE += (
    'route=accelerator reason="accelerator_fits: gpu is free" tier={tier} prompt_tokens=12 output_tokens={out} ms=9\n'
)


def test_a_log_is_read_in_the_order_of_arrival_and_broken_lines_are_counted(tmp_path: Path) -> None:
    path, said = tmp_path / "syshax.log", list[str]()
    served = [
        LINE.format(s=9, a=4, status=200, tier="flex", out=5),
        LINE.format(s=9, a=2, status=200, tier="default", out=7),
    ]
    refused = LINE.format(s=3, a=3, status=429, tier="default", out=0)
    journal = {"SYSHAX_ARRIVED": "2026-11-21T13:00:03+00:00", "SYSHAX_PROMPT_TOKENS": "8", "SYSHAX_OUTPUT_TOKENS": "2"}
    broken = [
        "13:00:01 engine: ready\n",
        "{half a line\n",
        '{"time": Infinity, "prompt_tokens": 1, "output_tokens": 1}\n',
    ]
    broken += [served[0][:100] + "\n", served[0].replace("2026", "0000"), "\x00\xff garbage prompt_tokens=-3\n", "\n"]
    path.write_text("".join([*served, refused, json.dumps(journal) + "\n", *broken]))
    rows = read_trace(path, said.append)
    assert [(row.prompt, row.output, row.tier) for row in rows] == [
        (12, 7, Tier.DEFAULT),
        (8, 2, None),
        (12, 5, Tier.FLEX),
    ]
    assert [row.at - rows[0].at for row in rows] == [0.0, 0.75, 2.0]
    assert said == ["7 lines of the log are no request that was served, 3 are"]
    assert [arrival.at for arrival in arrivals(rows, Demand(None, 9))] == [0.0, 0.75, 2.0]


@given(st.text(), st.sampled_from(["a.log", "a.csv"]))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_trace_or_an_error(tmp_path: Path, text: str, name: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        assert len(read_trace(path)) >= 2
    except TraceError:
        pass


@pytest.mark.parametrize(
    "option", ["--rate=0", "--rate=-1", "--rate=nan", "--requests=1", "--clients=0", "--flex-share=2"]
)
def test_absurd_options_of_simulate_are_named(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main(["simulate", str(TRACES / "azure_conv.csv"), option]) == 2
    assert option.split("=")[0] in capsys.readouterr().err


def test_the_bench_table_has_the_lines_that_scripts_read() -> None:
    good = Outcome(10, 4, 0.1, [0.02, 0.02, 0.02], 0.16)
    text = table(summary(Run((good, Outcome(error="HTTP 500")), 2.0)))
    assert "Successful requests:                    1" in text
    assert "Failed requests:                        1" in text
    assert "Output token throughput (tok/s):        2.00" in text
    assert "Mean TTFT (ms):                         100.00" in text
    assert "Median TPOT (ms):                       20.00" in text
    assert "P99 ITL (ms):                           20.00" in text
