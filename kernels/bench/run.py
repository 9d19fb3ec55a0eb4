"""The kernels' benchmark: processes of each contender in turn, medians and lower quartiles, ratios within the run.

A round in which the hypervisor took more than 1 % of the CPUs away ("steal") is dropped. Writes JSON, prints a table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from shapes import BITS, SHAPES

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
Samples = Dict[str, List[float]]


def steal_and_total() -> Tuple[int, int]:
    fields = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return fields[7], sum(fields[:8])


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "CPU part"))]
    return names[0] if names else platform.machine()


def measure(command: List[str]) -> Optional[Dict[str, Any]]:
    """The JSON that the process prints; None when steal spoilt it."""
    before = steal_and_total()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "kernels" / "python")}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    after = steal_and_total()
    if after[0] - before[0] > 0.01 * (after[1] - before[1]):
        print(f"dropped a run of {Path(command[1]).name}: steal", file=sys.stderr)
        return None
    result: Dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def summary(values: List[float]) -> Dict[str, float]:
    quartile = statistics.quantiles(values, n=4)[0] if len(values) > 1 else values[0]
    return {"median": statistics.median(values), "lower_quartile": quartile, "runs": len(values)}


def contenders(args: argparse.Namespace) -> Dict[str, List[str]]:
    found = {"ours": [sys.executable, str(HERE / "ours.py")]}
    if args.llama:
        found["llama.cpp"] = [args.llama, str(HERE / "llama.py")]
    return found


def run_model(args: argparse.Namespace, shape: str, kind: str) -> Dict[str, Any]:
    """All rounds of one model, alternating the contenders and the ceiling."""
    ceiling: Samples = {}
    rates: Dict[str, Samples] = {}
    notes: Dict[str, str] = {}
    for _ in range(args.rounds):
        roof = measure([str(ROOT / "build" / "bench" / "roofline"), args.cpus])
        for key in ("read_gb_s", "int8_tops"):
            ceiling.setdefault(key, []).extend([roof[key]] if roof else [])
        for name, command in contenders(args).items():
            one = measure(command + [shape, kind, args.cpus])
            for case, rate in (one or {"rates": {}})["rates"].items():
                rates.setdefault(name, {}).setdefault(case, []).append(rate)
            notes[name] = one["note"] if one else notes.get(name, "")
    return report(shape, kind, ceiling, rates, notes)


def report(shape: str, kind: str, ceiling: Samples, rates: Dict[str, Samples], notes: Dict[str, str]) -> Dict[str, Any]:
    top = {key: summary(values) for key, values in ceiling.items() if values}
    cases: Dict[str, Any] = {}
    for case in rates.get("ours", {}):
        entry: Dict[str, Any] = {name: summary(samples[case]) for name, samples in rates.items() if case in samples}
        rate = entry["ours"]["median"]
        entry["share"] = share_of_ceiling(shape, kind, case, rate, top)
        if "llama.cpp" in entry:
            entry["ratio_to_llama.cpp"] = rate / entry["llama.cpp"]["median"]
        cases[case] = entry
    return {"shape": shape, "type": kind, "ceiling": top, "notes": notes, "cases": cases}


def share_of_ceiling(shape: str, kind: str, case: str, rate: float, top: Dict[str, Any]) -> Dict[str, float]:
    """Of read bandwidth (weights once a step, KV once a sequence) and of the 8-bit rate, for decode cases."""
    s = SHAPES[shape]
    share = {"int8": 2 * s.weights * rate * 1e-12 / top["int8_tops"]["median"]} if top["int8_tops"]["median"] else {}
    if case.startswith("decode"):
        batch, context = (int(word[1:]) for word in case.split()[1:])
        step = s.weights * BITS[kind] / 8 + batch * s.kv_bytes(context)
        share["bandwidth"] = rate / batch * step * 1e-9 / top["read_gb_s"]["median"]
    return share


def print_table(result: Dict[str, Any]) -> None:
    roof = result["ceiling"]
    bandwidth, rate = (roof[key]["median"] for key in ("read_gb_s", "int8_tops"))
    print(f"\n{result['shape']} {result['type']}: reads {bandwidth:.1f} GB/s, int8 {rate:.2f} TOPS")
    for case, entry in result["cases"].items():
        share = ", ".join(f"{100 * value:.0f} % of {name}" for name, value in entry["share"].items())
        other = f", {entry['ratio_to_llama.cpp']:.2f} x llama.cpp" if "ratio_to_llama.cpp" in entry else ""
        ours = entry["ours"]
        print(f"  {case:18} {ours['median']:8.1f} tok/s ({ours['lower_quartile']:.1f}), {share}{other}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpus", default="0,1")
    parser.add_argument("--llama", help="python of an environment with llama-cpp-python and gguf")
    parser.add_argument("--models", default=",".join(f"{s}:{k}" for s in SHAPES for k in BITS))
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    load = os.getloadavg()
    results = []
    for model in args.models.split(","):
        results.append(run_model(args, *model.split(":")))
        print_table(results[-1])
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, stdout=subprocess.PIPE, text=True).stdout.strip()
    whole = {
        "date": datetime.date.today().isoformat(), "commit": commit, "machine": cpu_name(), "cpus": args.cpus,
        "kernel": platform.release(), "load_before": load, "rounds": args.rounds, "results": results,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
