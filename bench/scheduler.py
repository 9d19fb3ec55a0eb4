"""Scheduler benchmark: the goals of docs/scheduling.md, by simulation. Saves bench/results/scheduler.json.

    python -m bench.scheduler [--quick] [--again POLICY ... | --resume] [--out FILE]

G1 goodput at 1.3 of the accelerator's saturation rate against the best fixed threshold in hindsight and the original;
G2 capacity at 90 % attainment; G3 no harm at half load; G4 what the CPU adds on KV-bound hosts; G5 error of the
predictions; G6 time of one decision at 256 running requests.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, Sequence

from syshaxd.cli.simulate.deciders import Predictive, contestants, snapshot_of
from syshaxd.cli.simulate.law import hosts
from syshaxd.cli.simulate.report import play
from syshaxd.cli.simulate.workload import Demand, arrivals, read_trace
from syshaxd.cli.simulate.world import Request, World
from syshaxd.model.request import Endpoint, RequestInfo

TRACES = Path(__file__).parent / "traces"
RESULT = Path(__file__).parent / "results" / "scheduler.json"


@dataclass(frozen=True)
class Pair:
    """A host and a trace; `saturation`: requests/s the accelerator alone can serve within the limits."""

    host: str
    trace: str
    saturation: float
    requests: int
    skips: tuple[int, ...]
    longest: int = 8192

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.host} / {self.trace}"


MAIN = (
    Pair("A100x2-32B", "azure_conv", 2.7, 3000, (0, 6000)),
    Pair("A100x2-32B", "servegen_r1_sampled", 3.3, 3000, (0, 3400)),
    Pair("A100x1-32B", "azure_conv", 0.94, 1500, (0, 6000)),
    Pair("A100x1-32B", "servegen_r1_sampled", 0.55, 1500, (0, 3400)),
    Pair("A10-8B", "azure_conv", 1.39, 2000, (0, 6000)),
)
MORE = (
    Pair("H200-7B", "azure_conv", 19.9, 6000, (0,)),
    Pair("H200cap-7B", "azure_conv", 7.0, 4000, (0,)),
    Pair("A100x2-32B", "mooncake_conv", 0.5, 1500, (0,), 32_768),
    Pair("A100x2-32B", "azure_code", 3.0, 3000, (0,)),
)
SAVE_EVERY = 8  # rows
LOADS = (0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.6)


def one(job: tuple[Pair, float, int, str], clients: Optional[int] = None) -> dict[str, Any]:
    """Plays one policy on one pair at a load, from the segment that begins after `skip` requests."""
    pair, load, skip, policy = job
    contestant = next(c for c in contestants() if c.name == policy)
    demand = Demand(pair.saturation * load, pair.requests, pair.longest, skip=skip)
    trace = arrivals(read_trace(TRACES / f"{pair.trace}.csv"), demand)
    (result,) = play(hosts()[pair.host], trace, [contestant], clients=clients)
    return {"pair": pair.name, "load": load, "skip": skip, "policy": policy, **result.as_json()}


def _mean(rows: Sequence[Mapping[str, Any]], pair: str, load: float, policy: str, field: str) -> float:
    found = [row[field] for row in rows if (row["pair"], row["load"], row["policy"]) == (pair, load, policy)]
    return statistics.fmean(found)


def _best_fixed(rows: Sequence[Mapping[str, Any]], pair: str, loads: Sequence[float]) -> str:
    """The fixed threshold with the highest mean attainment over all loads: chosen in hindsight."""
    names: list[str] = sorted({row["policy"] for row in rows if row["policy"].startswith("threshold ")})
    return max(names, key=lambda name: statistics.fmean(_mean(rows, pair, load, name, "attainment") for load in loads))


def capacity(loads: Sequence[float], attained: Sequence[float], goal: float = 0.9) -> float:
    """Load at which attainment falls through the goal, linearly interpolated; 0.0 where it never reaches it."""
    if attained[0] < goal:
        return 0.0
    for (x0, y0), (x1, y1) in zip(zip(loads, attained), zip(loads[1:], attained[1:])):
        if y0 >= goal > y1:
            return x0 + (x1 - x0) * (y0 - goal) / (y0 - y1)
    return loads[-1]


def _ratios(rows: Sequence[Mapping[str, Any]], pair: Pair, load: float, best: str) -> dict[str, float]:
    good = partial(_mean, rows, pair.name, load)
    ours = good("predictive", "goodput")
    rivals = {"best_fixed": best, "original": "original threshold", "admission_only": "admission without CPU"}
    return {name: ours / max(1e-9, good(policy, "goodput")) for name, policy in rivals.items()}


def summarise(rows: Sequence[Mapping[str, Any]], pairs: Sequence[Pair], loads: Sequence[float]) -> dict[str, Any]:
    """The goals' figures per pair."""
    summary: dict[str, Any] = {}
    for pair in pairs:
        best = _best_fixed(rows, pair.name, loads)
        attained = {p: [_mean(rows, pair.name, x, p, "attainment") for x in loads] for p in ("predictive", best)}
        for policy in ("accelerator only", "round robin", "original threshold"):
            attained[policy] = [_mean(rows, pair.name, x, policy, "attainment") for x in loads]
        capacities = {policy: capacity(loads, values) for policy, values in attained.items()}
        rival = max(value for policy, value in capacities.items() if policy != "predictive")
        summary[pair.name] = {
            "best_fixed": best,
            "at_1.3": _ratios(rows, pair, 1.3, best),
            "at_1.0": _ratios(rows, pair, 1.0, best),
            "capacity_ratio": capacities["predictive"] / rival if rival else None,
            "half_load_attainment": [attained["predictive"][0], attained["accelerator only"][0]],
            "half_load_tpot_p50": [
                _mean(rows, pair.name, loads[0], p, "tpot_p50") for p in ("predictive", "accelerator only")
            ],
            "prediction_error_at_1.0": [
                _mean(rows, pair.name, 1.0, "predictive", f) for f in ("ttft_error", "tpot_error")
            ],
            "refused_at_1.3": _mean(rows, pair.name, 1.3, "predictive", "refused"),
        }
    return summary


def decision_microseconds(running: int = 256, rounds: int = 400) -> float:
    """Median time of one arrival's decision with `running` requests on the accelerator and 24 on the CPU."""
    host = hosts()["H200-7B"]
    decider = Predictive(host)
    world = World(host, decider)
    load = arrivals(read_trace(TRACES / "azure_conv.csv"), Demand(1.0, running + 24))
    for number, arrival in enumerate(load):
        info = RequestInfo(str(number), Endpoint.CHAT, "m", True, arrival.prompt, None)
        request = Request(number, arrival, info, generated=1, first_token=0.0)
        (world.accelerator if number < running else world.cpu).join(request)
    snapshot = snapshot_of(world)
    return decider.time_of_decision(snapshot, load[0].prompt, rounds)


def run(
    pairs: Sequence[Pair],
    loads: Sequence[float],
    quick: bool,
    known: Sequence[dict[str, Any]] = (),
    save: Callable[[Mapping[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Plays everything that is not known yet on two processes; `save` gets what there is every few rows."""
    have = {(row["pair"], row["load"], row["skip"], row["policy"]) for row in known}
    jobs = [
        (pair, load, skip, c.name)
        for pair in pairs
        for load in loads
        for skip in pair.skips
        for c in contestants()
        if (pair.name, load, skip, c.name) not in have
    ]
    rows: list[dict[str, Any]] = list(known)
    with Pool(2) as pool:
        for row in pool.imap_unordered(one, jobs, chunksize=2):
            rows.append(row)
            if len(rows) % SAVE_EVERY == 0:
                save({"rows": rows})
            if sys.stderr.isatty() and len(rows) % 20 == 0:
                print(f"{len(rows)} of {len(jobs) + len(known)}", file=sys.stderr)
    return {
        "machine": {"cpu": platform.machine(), "python": platform.python_version()},
        "date": time.strftime("%Y-%m-%d"),
        "quick": quick,
        "summary": summarise(rows, pairs, loads),
        "decision_us_at_256": decision_microseconds(),
        "rows": rows,
    }


def kept(file: Path, again: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a saved result, without those of policies to be played again."""
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return [row for row in rows if row["policy"] not in again]


def as_text(result: Mapping[str, Any]) -> str:
    """JSON with a line a row, rows to four decimals."""
    head = json.dumps({"rounded_to": 4, **{name: value for name, value in result.items() if name != "rows"}}, indent=1)
    rows = ({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in result["rows"])
    return head[:-2] + ',\n "rows": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n ]\n}\n"


def verdict(result: Mapping[str, Any]) -> str:
    """The goals in words."""
    pairs = [result["summary"][pair.name] for pair in MAIN if pair.name in result["summary"]]
    best = [pair["at_1.3"]["best_fixed"] for pair in pairs]
    original = [pair["at_1.3"]["original"] for pair in pairs]
    caps = [pair["capacity_ratio"] for pair in pairs if pair["capacity_ratio"]]
    lines = [
        f"G1 at 1.3 saturation: median {statistics.median(best):.2f}x best fixed threshold (goal 1.25), "
        f"lowest {min(best):.2f} (goal 1.0); median {statistics.median(original):.2f}x the original (goal 1.4)",
        (
            f"G2 capacity at 90 %: median {statistics.median(caps):.2f}x the best rival (goal 1.2)"
            if caps
            else "G2 not run"
        ),
        f"G6 decision: {result['decision_us_at_256']:.0f} us at 256 running (goal 100)",
    ]
    for name, pair in result["summary"].items():
        ours, alone = pair["half_load_attainment"]
        ttft, tpot = pair["prediction_error_at_1.0"]
        lines.append(
            f"{name}: half load {ours:.3f} (accelerator alone {alone:.3f}); against admission without CPU "
            f"{pair['at_1.0']['admission_only']:.2f}x at 1.0, {pair['at_1.3']['admission_only']:.2f}x at 1.3; "
            f"median error TTFT {ttft:.0%}, TPOT {tpot:.0%}"
        )
    return "\n".join(lines)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a quarter of the requests, three loads, the five main pairs"
    )
    parser.add_argument("--again", nargs="+", help="play only these policies; the other rows stay as --out has them")
    parser.add_argument("--resume", action="store_true", help="play only what --out lacks")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    known = kept(args.out, args.again or ()) if args.again or args.resume else []
    pairs: Sequence[Pair] = MAIN + MORE
    loads: Sequence[float] = LOADS
    if args.quick:
        pairs = tuple(Pair(p.host, p.trace, p.saturation, p.requests // 4, (0,), p.longest) for p in MAIN)
        loads = (0.5, 1.0, 1.3)
    args.out.parent.mkdir(parents=True, exist_ok=True)

    def save(result: Mapping[str, Any]) -> None:
        args.out.write_text(as_text(result), encoding="utf-8")

    result = run(pairs, loads, args.quick, known, save)
    save(result)
    print(verdict(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
