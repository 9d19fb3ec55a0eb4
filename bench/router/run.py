"""What a router costs per streamed token: direct, nginx, vllm-router, LiteLLM and syshaxd in front of one fake unit.

    python -m bench.router [--rounds 7] [--quick] [--environments build/routers] [--only NAME ...] [--out FILE]

The router on the first CPU of this process, the fake unit and the client (both C++) on the second; loopback, HTTP/1.1,
chunks of about 270 bytes with token_ids, one token each. Contenders take turns within a round. Processor time is that
of all threads by schedstat, in a window in which nothing arrives; "added" is
against the unit asked directly. Below 10 % two contenders are not told apart. "unfinished": tokens of streams that had
not ended 12 s after the load did. Saves bench/results/router.json after every measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.origin import RESULTS, ROOT, origin

from . import contenders
from .contenders import CONTENDERS, MODEL, Place

RESULT = RESULTS / "router.json"
BUILD = ROOT / "build" / "bench"
Row = dict[str, Any]


@dataclass(frozen=True)
class Phase:
    """A load: streams of so many tokens a second, opened over `ramp` seconds; then a window; then probes of TTFT."""

    name: str
    streams: int
    rate: float
    ramp: float
    window: float
    probe: float


PHASES = (
    Phase("64 x 30", 64, 30, 0.5, 2.5, 1.0),
    Phase("256 x 20", 256, 20, 1.5, 3.0, 1.0),
    Phase("512 x 30", 512, 30, 2.0, 3.0, 1.0),
    Phase("2000 x 10", 2000, 10, 5.0, 2.5, 0.6),
)
# The highest rate held: 98 % of it comes, and its p99 of transit stays below 10 ms. Given up at the first that is not.
LADDER = tuple(Phase(f"held {512 * rate // 1000}k", 512, rate, 1.5, 1.5, 0.0) for rate in (60, 80, 108))
HELD_SHARE, HELD_MS = 0.98, 10.0


def client(port: int, phase: Phase, pids: str, cpu: int, key: str) -> Row:
    """One measurement; {"error": ...} where the client fails."""
    numbers = (port, phase.streams, phase.rate, phase.ramp, phase.window, phase.probe)
    words = ["taskset", "-c", str(cpu), str(BUILD / "router_client"), *map(str, numbers), pids, MODEL, key]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    except subprocess.SubprocessError as err:
        return {"error": str(err)}
    row: Row = json.loads(done.stdout)
    return {**row, **({"first_refusal": done.stderr[:400]} if done.stderr else {})}


def held(row: Row) -> bool:
    """Whether the router kept up."""
    if "error" in row:
        return False
    came = row["chunks_per_s"] >= HELD_SHARE * row["chunks_ordered_per_s"]
    return bool(came and 0 <= row["transit_p99_ms"] <= HELD_MS)


def median(rows: Sequence[Row], key: str) -> float:
    """Over the rounds; NaN where nothing was measured."""
    found = [row[key] for row in rows if key in row]
    return statistics.median(found) if found else float("nan")


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Medians and extremes by contender and load, and what each adds to the unit asked directly."""
    found: dict[str, Any] = {}
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["who"], row["phase"]), []).append(row)
    for (who, phase), mine in groups.items():
        direct = groups.get(("direct", phase), [])
        keys = [key for key, value in mine[0].items() if isinstance(value, (int, float)) and key != "round"]
        cost = [row["cpu_us_per_chunk"] for row in mine if "cpu_us_per_chunk" in row]
        compared = [key for key in keys if key.endswith("_ms")] if direct and who != "direct" else []
        added = {f"added_{key}": median(mine, key) - median(direct, key) for key in compared}
        found.setdefault(who, {})[phase] = {
            "runs": len(mine),
            **{key: median(mine, key) for key in keys},
            **({"cpu_us_per_chunk_extremes": [min(cost), max(cost)]} if cost else {}),
            **added,
        }
    for who, phases in found.items():
        steps = [row for row in rows if row["who"] == who and held(row)]
        phases["highest_held_chunks_per_s"] = max((row["chunks_ordered_per_s"] for row in steps), default=0)
    return found


def goals(found: Mapping[str, Any]) -> list[Row]:
    """Those of the daemon's data plane; a goal against a router that was not there is left out."""
    ours = found.get("syshaxd", {})
    checks: list[tuple[str, float, float]] = []

    def ratio(what: str, phase: str, peer: str, key: str, most: float) -> None:
        theirs = found.get(peer, {}).get(phase)
        if theirs and phase in ours:
            checks.append((f"{what} at {phase} against {peer}", ours[phase][key] / theirs[key], most))

    ratio("processor time a chunk", "512 x 30", "vllm-router", "cpu_us_per_chunk", 1.15)
    ratio("processor time a chunk", "512 x 30", "nginx", "cpu_us_per_chunk", 1.3)
    ratio("processor time a chunk", "64 x 30", "vllm-router", "cpu_us_per_chunk", 1.5)
    ratio("p99 of TTFT while 512 are opened in 2 s", "512 x 30", "vllm-router", "ramp_ttft_p99_ms", 2.0)
    if "512 x 30" in ours:
        for key, most in (("transit_p99_ms", 0.5), ("loaded_ttft_p50_ms", 0.5), ("loaded_ttft_p99_ms", 1.5)):
            checks.append((f"added {key}", ours["512 x 30"].get(f"added_{key}", float("nan")), most))
    if "2000 x 10" in ours:
        checks.append(("rss_mb at 2,000 streams", ours["2000 x 10"]["rss_mb"], 80.0))
    phases = [phase for phase in ours.values() if isinstance(phase, dict)]
    checks.append(("lost or mixed", sum(phase.get("lost", 0) + phase.get("mixed", 0) for phase in phases), 0.0))
    rows: list[Row] = [
        {"what": what, "value": value, "most": most, "met": value <= most} for what, value, most in checks
    ]
    top = ours.get("highest_held_chunks_per_s", 0)
    return [*rows, {"what": "chunks a second held at p99 <= 10 ms", "value": top, "least": 55000, "met": top >= 55000}]


class Bench:
    """Unit and routers that run side by side; one is asked at a time."""

    def __init__(self, args: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> None:
        self.args, self.folder, self.stack = args, folder, stack
        self.router_cpu, self.load_cpu = sorted(os.sched_getaffinity(0))[:2]
        self.key = f"sk-{secrets.token_hex(32)}"
        self.rows: list[Row] = []
        self.ports: dict[str, int] = {}
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.versions: dict[str, str] = {}

    def start(self) -> None:
        """The unit, and each contender that is installed."""
        unit = contenders.free_port()
        self._run("direct", [str(BUILD / "router_fake_unit"), str(unit)], unit, self.load_cpu)
        for contender in CONTENDERS:
            if self.args.only and contender.name not in self.args.only:
                continue
            if not contenders.installed(contender, self.args.environments):
                print(f"{contender.name} is not installed", flush=True)
                continue
            folder = self.folder / contender.name
            folder.mkdir()
            place = Place(folder, contenders.free_port(), unit, self.args.environments / contender.name)
            self.versions[contender.name] = contenders.version(contender, self.args.environments)
            self._run(contender.name, contender.command(place), place.port, self.router_cpu)

    def _run(self, name: str, command: list[str], port: int, cpu: int) -> None:
        log = self.folder / f"{name}.log"
        child = self.stack.enter_context(contenders.process(command, cpu, log, self.key))
        contenders.wait_until_it_answers(child, port, log, self.key)
        self.ports[name], self.children[name] = port, child

    def measure(self, who: str, phase: Phase, number: int) -> Row:
        """One contender under one load; saved."""
        row = client(self.ports[who], phase, contenders.pids(self.children[who]), self.load_cpu, self.key)
        self.rows.append({"round": number, "who": who, "phase": phase.name, **row})
        tell = (
            "cpu_us_per_chunk",
            "cpu_share",
            "transit_p99_ms",
            "ramp_ttft_p99_ms",
            "rss_mb",
            "lost",
            "mixed",
            "error",
        )
        print(number, phase.name, who, {key: row[key] for key in tell if key in row}, flush=True)
        self.save(False)
        return row

    def round(self, number: int) -> None:
        """Every load, contenders in turn."""
        most = {contender.name: contender.most for contender in CONTENDERS}
        phases = PHASES[:3:2] if self.args.quick else PHASES
        for phase in phases:
            for who in self.ports:
                if phase.streams <= most.get(who, phase.streams):
                    self.measure(who, phase, number)
        for who in () if self.args.quick else self.ports:
            if most.get(who, LADDER[0].streams) >= LADDER[0].streams:
                for phase in LADDER:
                    if not held(self.measure(who, phase, number)):
                        break

    def save(self, complete: bool) -> None:
        """All rows so far with their summary."""
        found = summary(self.rows)
        command = "python -m bench.router" + f" --rounds {self.args.rounds}" + " --quick" * self.args.quick
        about = {"complete": complete, "versions": self.versions, "goals": goals(found), "summary": found}
        result = {**origin(command), **about, "rows": self.rows}
        new = self.args.out.with_suffix(".new")
        new.write_text(json.dumps(result, indent=1) + "\n")
        new.rename(self.args.out)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two loads only, without the highest rate held")
    parser.add_argument("--environments", type=lambda text: Path(text).absolute(), default=ROOT / "build" / "routers")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of the routers")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("needs two CPUs: one for the router, one for unit and client")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="syshax-bench-") as folder, contextlib.ExitStack() as stack:
        bench = Bench(args, Path(folder), stack)
        bench.start()
        for number in range(args.rounds):
            bench.round(number)
        bench.save(True)
        print(json.dumps(goals(summary(bench.rows)), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
