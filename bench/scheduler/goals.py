"""Scheduler benchmark: the goals of docs/scheduling.md, by simulation. Saves bench/results/scheduler.json.

    python -m bench.scheduler [--quick] [--resume [--again POLICY ...]] [--minutes N] [--out FILE]

G1 goodput at 1.3 of the accelerator's saturation rate against the best fixed threshold in hindsight and the original;
G2 capacity at 90 % attainment; G3 no harm at half load; G4 what the CPU adds on a KV-bound host; G5 error of the
predictions, and the way back from a wrong calibration; G6 time of one decision at 256 running requests.

1,500 requests a segment (two segments of each main trace, 0.85 of them scored) put the standard error of an attainment
at 0.01; a whole run plays 1,092 of them, about an hour on two cores. --minutes ends it early, --resume goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any, Callable

from bench.origin import RESULTS, ROOT, origin
from syshaxd.model.request import Endpoint, RequestInfo
from syshaxd.scheduler.steptime import StepSample
from syshaxd.simulation.deciders import Predictive, contestants, snapshot_of
from syshaxd.simulation.law import Host, hosts
from syshaxd.simulation.report import play
from syshaxd.simulation.workload import Demand, arrivals, read_trace
from syshaxd.simulation.world import Request, SimulatedUnit, World

TRACES = ROOT / "bench" / "traces"
RESULT = RESULTS / "scheduler.json"


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
    Pair("A100x2-32B", "azure_conv", 2.7, 1500, (0, 6000)),
    Pair("A100x2-32B", "servegen_r1_sampled", 3.3, 1500, (0, 3400)),
    Pair("A100x1-32B", "azure_conv", 0.94, 1500, (0, 6000)),
    Pair("A100x1-32B", "servegen_r1_sampled", 0.55, 1500, (0, 3400)),
    Pair("A10-8B", "azure_conv", 1.39, 1500, (0, 6000)),
)
MORE = (
    Pair("H200-7B", "azure_conv", 19.9, 3000, (0,)),
    Pair("H200cap-7B", "azure_conv", 7.0, 2000, (0,)),
    Pair("A100x2-32B", "mooncake_conv", 0.25, 1000, (0,), 32_768),
    Pair("A100x2-32B", "azure_code", 1.2, 1500, (0,)),
)
REASONING_KV_BOUND = "A100x1-32B / servegen_r1_sampled"
SAVE_EVERY = 8  # rows
PRODUCT = ("admission without CPU", "predictive")  # played last
LOADS = (0.5, 0.7, 0.85, 1.0, 1.15, 1.3)


def one(job: tuple[Pair, float, int, str], clients: int | None = None) -> dict[str, Any]:
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


class Tracking(Predictive):
    """Notes how far the accelerator's step model is off from its law, step by step."""

    def __init__(self, host: Host, calibration: float) -> None:
        super().__init__(host, calibration=calibration)
        self.off: list[tuple[float, float]] = []  # seconds, relative error

    def step(self, world: World, unit: SimulatedUnit, sample: StepSample) -> None:
        """Learns as ever."""
        super().step(world, unit, sample)
        if unit is world.accelerator:
            load = (sample.decoding, sample.prefill_tokens, sample.kv_tokens)
            self.off.append((world.now, self.model_seconds(unit, *load) / unit.law.seconds(*load) - 1))


def recovery_seconds(calibration: float = 2.0, within: float = 0.2) -> float:
    """Seconds after which a model that began `calibration` times too slow is within 20 % of the law, in the median of
    every 10 s from then on."""
    pair = MAIN[-1]
    decider = Tracking(hosts()[pair.host], calibration)
    trace = arrivals(read_trace(TRACES / f"{pair.trace}.csv"), Demand(pair.saturation, 200, pair.longest))
    World(hosts()[pair.host], decider).run(trace)
    windows: dict[int, list[float]] = {}
    for at, off in decider.off:
        windows.setdefault(int(at // 10), []).append(abs(off))
    return max((10.0 * (n + 1) for n, offs in windows.items() if statistics.median(offs) > within), default=0.0)


def run(
    pairs: Sequence[Pair],
    loads: Sequence[float],
    quick: bool,
    known: Sequence[dict[str, Any]] = (),
    save: Callable[[Mapping[str, Any]], None] = lambda result: None,
    minutes: float = 1e6,
) -> dict[str, Any] | None:
    """Plays everything that is not known yet on two processes; `save` gets what there is every few rows. None: the
    time was over before."""
    have = {(row["pair"], row["load"], row["skip"], row["policy"]) for row in known}
    jobs = [
        (pair, load, skip, c.name)
        for load in sorted(loads, reverse=True)
        for pair in pairs
        for skip in pair.skips
        for c in contestants()
        if (pair.name, load, skip, c.name) not in have
    ]
    jobs.sort(key=lambda job: job[3] in PRODUCT)
    rows: list[dict[str, Any]] = list(known)
    until = time.monotonic() + 60 * minutes
    with Pool(2) as pool:
        for row in pool.imap_unordered(one, jobs):
            rows.append(row)
            if len(rows) % SAVE_EVERY == 0:
                save({"rows": rows})
            if time.monotonic() > until:
                save({"rows": rows})
                print(f"{len(rows)} of {len(jobs) + len(known)} rows; go on with --resume", file=sys.stderr)
                return None
    summary = summarise(rows, pairs, loads)
    decision, recovery = decision_microseconds(), recovery_seconds()
    return {
        **origin("python -m bench.scheduler" + " --quick" * quick),
        "quick": quick,
        "goals": goals(summary, decision, recovery),
        "summary": summary,
        "decision_us_at_256": decision,
        "recovery_s_from_twice_too_slow": recovery,
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


def goals(summary: Mapping[str, Any], decision_us: float, recovery_s: float) -> list[Mapping[str, Any]]:
    """Every goal of docs/scheduling.md with its figure."""
    main = [summary[pair.name] for pair in MAIN if pair.name in summary]
    seven = [*main, *(summary[pair.name] for pair in MORE[:2] if pair.name in summary)]
    median = statistics.median
    best, original = ([pair["at_1.3"][name] for pair in main] for name in ("best_fixed", "original"))
    caps = [pair["capacity_ratio"] for pair in seven if pair["capacity_ratio"]]
    harm = min(pair["half_load_attainment"][0] - pair["half_load_attainment"][1] for pair in summary.values())
    slower = max(pair["half_load_tpot_p50"][0] / pair["half_load_tpot_p50"][1] - 1 for pair in summary.values())
    kv = summary[REASONING_KV_BOUND]
    first, rest = zip(*(pair["prediction_error_at_1.0"] for pair in summary.values()))
    rows = [
        ("G1", "goodput at 1.3, median against the best fixed threshold", median(best), ">=", 1.25),
        ("G1", "goodput at 1.3, lowest against the best fixed threshold", min(best), ">=", 1.0),
        ("G1", "goodput at 1.3, median against the original rule", median(original), ">=", 1.4),
        ("G2", "capacity at 90 %, median against the best rival", median(caps), ">=", 1.2),
        ("G3", "attainment at half load less that of the accelerator alone, lowest", harm, ">=", -0.01),
        ("G3", "median TPOT at half load beyond that of the accelerator alone, highest", slower, "<=", 0.05),
        ("G4", "KV-bound reasoning against admission without CPU, at 1.0", kv["at_1.0"]["admission_only"], ">=", 1.15),
        ("G4", "KV-bound reasoning against admission without CPU, at 1.3", kv["at_1.3"]["admission_only"], ">=", 1.15),
        ("G5", "median error of TTFT, median of the pairs", median(first), "<=", 0.15),
        ("G5", "median error of TPOT, median of the pairs", median(rest), "<=", 0.10),
        ("G5", "seconds to recover from a calibration twice too slow", recovery_s, "<=", 60.0),
        ("G6", "microseconds of a decision at 256 running", decision_us, "<=", 100.0),
    ]
    return [
        {"goal": goal, "what": what, "value": value, "wanted": f"{sign} {wanted:g}", "met": _met(value, sign, wanted)}
        for goal, what, value, sign, wanted in rows
    ]


def _met(value: float, sign: str, wanted: float) -> bool:
    return value >= wanted if sign == ">=" else value <= wanted


def verdict(result: Mapping[str, Any]) -> str:
    """The goals in words."""
    lines = [
        f"{goal['goal']} {'met ' if goal['met'] else 'MISSED'} {goal['what']}: {goal['value']:.3g} ({goal['wanted']})"
        for goal in result["goals"]
    ]
    for name, pair in result["summary"].items():
        ours, alone = pair["half_load_attainment"]
        ttft, tpot = pair["prediction_error_at_1.0"]
        lines.append(
            f"{name}: best fixed {pair['at_1.3']['best_fixed']:.2f}x, original {pair['at_1.3']['original']:.2f}x at "
            f"1.3, capacity {pair['capacity_ratio'] or 0:.2f}x; half load {ours:.3f} (accelerator alone {alone:.3f}); "
            f"against admission without CPU "
            f"{pair['at_1.0']['admission_only']:.2f}x at 1.0, {pair['at_1.3']['admission_only']:.2f}x at 1.3; "
            f"median error TTFT {ttft:.0%}, TPOT {tpot:.0%}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a sixth of the requests, three loads, the five main pairs"
    )
    parser.add_argument("--again", nargs="+", help="play only these policies; the other rows stay as --out has them")
    parser.add_argument("--resume", action="store_true", help="play only what --out lacks")
    parser.add_argument("--minutes", type=float, default=1e6, help="end early; --resume goes on")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    known = kept(args.out, args.again or ()) if args.again or args.resume else []
    pairs: Sequence[Pair] = MAIN + MORE
    loads: Sequence[float] = LOADS
    if args.quick:
        pairs = tuple(replace(pair, requests=pair.requests // 3, skips=(0,)) for pair in MAIN)
        loads = (0.5, 1.0, 1.3)
    args.out.parent.mkdir(parents=True, exist_ok=True)

    def save(result: Mapping[str, Any]) -> None:
        args.out.write_text(as_text(result), encoding="utf-8")

    result = run(pairs, loads, args.quick, known, save, args.minutes)
    if result is None:
        return 3
    save(result)
    print(verdict(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
