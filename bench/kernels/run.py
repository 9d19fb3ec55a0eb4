"""The kernels' benchmark: processes of each contender in turn, medians and lower quartiles, ratios within the run.

A run in which the hypervisor took more than 1 % of the CPUs away ("steal") is dropped and repeated once. The result is
written after every process, so what an interrupted benchmark measured is there; --resume goes on from it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.origin import ROOT, origin

from .report import print_tables, reports
from .shapes import BITS

Run = dict[str, Any]
"""One process: what (contender, shape, type, mode), what it printed, and how much CPU time others had meanwhile."""

LIMIT_S = 400.0  # for one process, the making of its files included

MODELS = [f"{s}:{k}" for s in ("0.5b", "1.5b", "8b") for k in BITS]
TABLES = ["8b:q4_0", "13b:q4_0"]


def cpu_times() -> tuple[int, int, int]:
    """Ticks stolen, ticks of all states, ticks busy, of all CPUs."""
    fields = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return fields[7], sum(fields[:8]), sum(fields[:3]) + sum(fields[5:7])


def own_ticks() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) * os.sysconf("SC_CLK_TCK")


def execute(command: list[str]) -> Run:
    """The JSON that the process printed, with `steal` and `others`: shares of the machine's time."""
    before, own = cpu_times(), own_ticks()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "kernels" / "python")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"{' '.join(command)} was ended after {LIMIT_S:.0f} s"}
    if done.returncode != 0:
        return {"error": f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-600:]}"}
    after = cpu_times()
    total = max(1, after[1] - before[1])
    result: Run = json.loads(done.stdout.splitlines()[-1])
    result["steal"] = (after[0] - before[0]) / total
    result["others"] = max(0.0, after[2] - before[2] - (own_ticks() - own)) / total
    return result


def commands(args: argparse.Namespace, number: int) -> list[tuple[Run, list[str]]]:
    """What a round runs, in order: the ceiling before each model, then the contenders on it in turn."""
    roof = [str(ROOT / "build" / "bench" / "roofline"), args.cpus, "256"]
    found: list[tuple[Run, list[str]]] = []

    def add(who: str, model: str, mode: str, command: list[str]) -> None:
        shape, kind = model.split(":")
        found.append(({"who": who, "shape": shape, "type": kind, "mode": mode, "round": number}, command))

    def python(module: str, model: str, interpreter: str = sys.executable) -> list[str]:
        return [interpreter, "-m", f"bench.kernels.{module}", *model.split(":"), args.cpus]

    for model in args.models:
        add("ceiling", model, "rates", roof)
        add("ours", model, "rates", python("ours", model))
        if args.llama:
            add("llama.cpp", model, "rates", python("llama", model, args.llama))
        if args.vllm and number < args.vllm_rounds and model.startswith("0.5b"):
            add("vllm", model, "rates", python("vllm_cpu", model, args.vllm))
    for model in args.tables:
        add("ceiling", model, "lengths", roof)
        add("ours", model, "lengths", python("ours", model) + ["lengths"])
    return found


def describe(args: argparse.Namespace) -> dict[str, Any]:
    command = "make bench-kernels" + " LLAMA_VENV=..." * bool(args.llama) + " VLLM_VENV=..." * bool(args.vllm)
    return {**origin(command), "cpus": args.cpus, "rounds": args.rounds}


def save(args: argparse.Namespace, about: dict[str, Any], runs: list[Run], complete: bool) -> None:
    whole = {**about, "complete": complete, "results": reports(runs), "runs": runs}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    new = args.output.with_suffix(".new")
    new.write_text(json.dumps(whole, indent=1) + "\n")
    new.rename(args.output)


def earlier(args: argparse.Namespace) -> list[Run]:
    if not args.resume or not args.output.exists():
        return []
    runs: list[Run] = json.loads(args.output.read_text())["runs"]
    return runs


def measure(what: Run, command: list[str]) -> Run | None:
    """A run with little steal; None when two in a row had more or failed."""
    for _ in range(2):
        begin = time.monotonic()
        result = {**what, **execute(command)}
        text = result.get("error") or f"{100 * result['steal']:.1f} % steal, {100 * result['others']:.0f} % others"
        print(
            f"{what['who']} {what['shape']} {what['type']}: {time.monotonic() - begin:.0f} s, {text}", file=sys.stderr
        )
        if "error" not in result and result["steal"] <= 0.01:
            return result
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpus", default="0,1")
    parser.add_argument("--llama", help="python of an environment with llama-cpp-python and gguf")
    parser.add_argument("--vllm", help="python of an environment with vLLM for CPUs")
    parser.add_argument("--vllm-rounds", type=int, default=2, help="rounds with vLLM: it takes a minute to start")
    parser.add_argument("--models", type=lambda v: v.split(",") if v else [], default=MODELS, help="SHAPE:TYPE,...")
    parser.add_argument("--tables", type=lambda v: v.split(",") if v else [], default=TABLES, help="SHAPE:TYPE,...")
    parser.add_argument("--resume", action="store_true", help="go on from the output of an interrupted benchmark")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    about, runs = describe(args), earlier(args)
    keys = ("who", "shape", "type", "mode", "round")
    done = {tuple(run[key] for key in keys) for run in runs}
    for number in range(args.rounds):
        for what, command in commands(args, number):
            if tuple(what[key] for key in keys) in done:
                continue
            run = measure(what, command)
            runs += [run] if run else []
            save(args, about, runs, False)
    save(args, about, runs, True)
    print_tables(reports(runs))


if __name__ == "__main__":
    main()
