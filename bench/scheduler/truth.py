"""How true the simulator is: a real daemon over two timed fake units against `syshax simulate` on the same segment.

    python -m bench.scheduler.truth [--requests 32] [--rate 1.6] [--out FILE]

The fake units are processes that obey a step-time law with a real KV cap in real time, so a busy machine makes them
slower than their law; all times are SLOW times those of a real host. Saves bench/results/truth.json: errors per
request, and SLO goodput by the real daemon.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.origin import RESULTS, ROOT, origin
from syshaxd.cli.bench.calibrated_units import keep
from syshaxd.cli.bench.completions_client import BenchRequest, CompletionsClient, Outcome
from syshaxd.engine.calibration import calibration_path
from syshaxd.model.request import Tier
from syshaxd.scheduler.outlook import Limits, PredictivePolicy
from syshaxd.simulation.deciders import AcceleratorOnly, Predictive
from syshaxd.simulation.law import Host, Law, ModelSize
from syshaxd.simulation.report import tpot, ttft
from syshaxd.simulation.workload import Arrival, Demand, arrivals, read_trace
from syshaxd.simulation.world import Decider, Request, World
from testbed.daemon_fake_units import HUP, MODEL, TERM, Daemon, unit

TRACE = ROOT / "bench" / "traces" / "azure_conv.csv"
RESULT = RESULTS / "truth.json"
BLOCK, CHUNK = 16, 512
POLICIES = ("predictive", "threshold", "accelerator only")


@dataclass(frozen=True)
class LinearLaw(Law):
    """The fake units' law: weights a step, compute a sequence, `per_prefill` a prompt token, per_kv a KV token."""

    per_prefill: float = 0.0

    def seconds(self, decoding: int, prefill: int, kv: int) -> float:
        """Duration of one step."""
        return self.weights + self.compute * decoding + self.per_prefill * prefill + self.per_kv * kv

    def options(self) -> list[str]:
        """For the fake unit's command line."""
        law = f"{self.weights},{self.compute},{self.per_prefill},{self.per_kv * 1000}"
        return ["--law", law, "--kv-blocks", str(self.capacity // BLOCK), "--max-num-seqs", str(self.max_num_seqs)]


SLOW = 4.0  # how much slower than a real host, so that a busy machine's delays weigh little
GPU = LinearLaw("accelerator", SLOW * 0.020, SLOW * 0.0002, SLOW * 2e-7, 5_600, 256, CHUNK, 0.0, SLOW * 5e-5)
CPU = LinearLaw("cpu", SLOW * 0.045, SLOW * 0.001, SLOW * 1e-6, 64_000, 64, CHUNK, 0.0, SLOW * 1e-3)
TTFT, TPOT = SLOW * 2.0, SLOW * 0.1  # limits, seconds
LIMITS = PredictivePolicy(limits={tier: Limits(TTFT, TPOT) for tier in Tier})
HOST = Host(ModelSize(1.0, 1.0), GPU, CPU, link=1e12)


def simulated(load: Sequence[Arrival], decider: Decider) -> list[Request]:
    """The segment in the simulator."""
    world = World(HOST, decider)
    world.run(load)
    return world.requests


async def real(folder: Path, load: Sequence[Arrival], policy: str) -> list[Outcome]:
    """The segment through a daemon of its own."""
    daemon = Daemon(folder)
    daemon.config["units"] = {"gpu": unit("accelerator", *GPU.options()), "cpu": unit("cpu", *CPU.options())}
    decider = "predictive" if policy == "predictive" else "threshold"
    daemon.config["scheduler"] = {"decider": decider, "slo": {"default": {"ttft": TTFT, "tpot": TPOT}}}
    daemon.config["monitor"] = {"interval": "50ms"}
    await daemon.start()
    try:
        await daemon.ready()
        await calibrated(daemon)
        headers = {"x-syshax-route": "accelerator"} if policy == "accelerator only" else {}
        async with CompletionsClient(f"http://127.0.0.1:{daemon.port}", MODEL, headers=headers) as endpoint:
            return await replay(endpoint, load)
    finally:
        daemon.signal(TERM)
        await daemon.ended()
        await daemon.close()


async def calibrated(daemon: Daemon) -> None:
    """What `syshax bench calibrate` would measure on an idle machine: the law itself."""
    for name, law in (("gpu", GPU), ("cpu", CPU)):
        points = [(b, c, b * k) for b in (1, 4, 16) for k in (500, 2000) for c in (0, CHUNK // 4, CHUNK)]
        rows = [
            {"decoding": b, "prefill_tokens": c, "kv_tokens": k, "seconds": law.seconds(b, c, k)} for b, c, k in points
        ]
        file = calibration_path(str(daemon.folder / "state"), (await daemon.unit(name))["digest"])
        keep(file, {"format": 1, "samples": rows})
    daemon.signal(HUP)
    await daemon.until(lambda: daemon.output.count(b"calibration in use") == 2)
    while not (await daemon.status())["pd"]["enabled"]:  # before the self-check has ended there are no splits
        await asyncio.sleep(0.05)


async def replay(endpoint: CompletionsClient, load: Sequence[Arrival]) -> list[Outcome]:
    """Every request at its time."""
    draw, begin = random.Random(1), time.perf_counter()

    async def one(arrival: Arrival, ids: list[int]) -> Outcome:
        await asyncio.sleep(max(0.0, arrival.at - (time.perf_counter() - begin)))
        return await endpoint.generate(BenchRequest(ids, arrival.prompt, arrival.output))

    prompts = [[draw.randrange(97, 123) for _ in range(arrival.prompt)] for arrival in load]
    return list(await asyncio.gather(*(one(arrival, ids) for arrival, ids in zip(load, prompts))))


def error(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Median of |simulated - real| / real."""
    found = [abs(said - seen) / seen for said, seen in pairs if seen > 0]
    return statistics.median(found) if found else None


def compared(said: Sequence[Request], seen: Sequence[Outcome]) -> Mapping[str, Any]:
    """Requests that both served."""
    both = [(s, r) for s, r in zip(said, seen) if not s.refused and not r.error and r.output_tokens]
    first, rest = [(ttft(s), r.ttft) for s, r in both], [(tpot(s), r.tpot) for s, r in both]
    return {
        "compared": len(both),
        "median_ttft_error": error(first),
        "median_tpot_error": error(rest),
        "median_ttft_simulated_real": [statistics.median(side) for side in zip(*first)],
        "median_tpot_simulated_real": [statistics.median(side) for side in zip(*rest)],
    }


def served(seen: Sequence[Outcome], span: float) -> Mapping[str, Any]:
    """Within both limits, by the client's clock."""
    kept = sum(not r.error and r.ttft <= TTFT and r.tpot <= TPOT for r in seen)
    return {
        "goodput_per_s": kept / span,
        "attainment": kept / len(seen),
        "refused": sum(r.error.startswith("HTTP 429") for r in seen) / len(seen),
        "failed": sorted({r.error[:120] for r in seen if r.error and not r.error.startswith("HTTP 429")}),
        "splits": sum(r.route == "accelerator>cpu" for r in seen),
    }


async def measure(load: Sequence[Arrival], file: Path, result: dict[str, Any]) -> None:
    """All policies one after the other; saved after each, with the load of the machine (one minute) at its end."""
    for policy in POLICIES:
        with tempfile.TemporaryDirectory(prefix="truth") as folder:
            seen = await real(Path(folder), load, policy)
        row = dict(served(seen, load[-1].at))
        if policy != "threshold":
            decider: Decider = Predictive(HOST, LIMITS) if policy == "predictive" else AcceleratorOnly()
            row.update(compared(simulated(load, decider), seen))
        result[policy] = {**row, "machine_load": os.getloadavg()[0]}
        print(policy, json.dumps(result[policy]), flush=True)
        keep(file, result)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.6)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    load = arrivals(read_trace(TRACE), Demand(args.rate, args.requests, longest=2000, flex_share=0.0))
    about = {
        **origin(f"python -m bench.scheduler.truth --requests {args.requests} --rate {args.rate:g}"),
        "time_scale": SLOW,
        "requests": args.requests,
        "rate": args.rate,
    }
    asyncio.run(measure(load, args.out, about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
