"""What bench.router makes of its measurements."""

from __future__ import annotations

from typing import Any

from bench.router.run import goals, held, summary


def row(who: str, phase: str = "512 x 30", number: int = 0, **values: Any) -> dict[str, Any]:
    measured = {
        "cpu_us_per_chunk": 20.0, "transit_p99_ms": 1.0, "ramp_ttft_p99_ms": 2.0, "loaded_ttft_p50_ms": 1.0,
        "loaded_ttft_p99_ms": 2.0, "rss_mb": 50.0, "lost": 0, "mixed": 0, "chunks_per_s": 100.0,
        "chunks_ordered_per_s": 100.0,
    }  # fmt: skip
    return {"round": number, "who": who, "phase": phase, **measured, **values}


def test_medians_over_rounds_and_what_a_router_adds() -> None:
    costs = (30.0, 90.0, 40.0)
    rows = [row("direct", number=n, transit_p99_ms=0.25) for n in range(3)]
    rows += [row("syshaxd", number=n, cpu_us_per_chunk=cost) for n, cost in enumerate(costs)]
    found = summary(rows)["syshaxd"]["512 x 30"]
    assert (found["runs"], found["cpu_us_per_chunk"], found["cpu_us_per_chunk_extremes"]) == (3, 40.0, [30.0, 90.0])
    assert found["added_transit_p99_ms"] == 0.75


def test_goals_are_against_the_peers_that_were_there() -> None:
    rows = [row("direct"), row("nginx", cpu_us_per_chunk=10.0), row("syshaxd", cpu_us_per_chunk=12.0, lost=1)]
    met = {goal["what"]: goal["met"] for goal in goals(summary(rows))}
    assert met["processor time a chunk at 512 x 30 against nginx"] is True
    assert met["lost or mixed"] is False
    assert not any("vllm-router" in what for what in met)


def test_a_rate_is_held_when_it_comes_in_time() -> None:
    assert held(row("a")) and not held(row("a", chunks_per_s=97.0)) and not held(row("a", transit_p99_ms=10.5))
    assert not held({"error": "timed out"})
    assert summary([row("a", phase="held 30k")])["a"]["highest_held_chunks_per_s"] == 100.0
