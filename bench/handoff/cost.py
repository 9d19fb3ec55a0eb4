"""What a handoff costs: bandwidth of saving and loading against memcpy, and TTFT of a split against prefill alone.

    python -m bench.handoff [--vllm PYTHON] [--parts copies,sysinfer,vllm] [--processes 3] [--rounds 5] [--out FILE]

`copies`: bench.handoff.copies in several processes of each engine, in turn. `sysinfer`, `vllm`: a daemon over two units
of that kind on one host, a random model, prompts of 512, 2048 and 4096 tokens that nobody has seen before; routes take
turns. The second token is told too: the first one comes from the prefill unit, so only that one waits for the handoff.
Saves medians in bench/results/handoff.json; parts that are not run keep what the file has. Goals: at least half of
memcpy's bandwidth, and TTFT at most 5 % and 10 ms above prefill alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.origin import RESULTS, ROOT, origin
from syshaxd.cli.bench.completions_client import BenchRequest, CompletionsClient
from testbed import daemon_real_units as house
from testbed import small_gguf
from testbed import twin_models as twins
from testbed.processes import wait_for

RESULT = RESULTS / "handoff.json"
LENGTHS = (512, 2048, 4096)
ROUTES = ("accelerator", "accelerator>cpu")
SHAPE = {"LAYERS": 8, "HEADS": 8, "KV_HEADS": 4, "CONTEXT": 8192}
HEAD_SIZE = 64
BANDWIDTH, SHARE, EXTRA_S = 0.5, 0.05, 0.010  # the goals
UNITS = {
    "sysinfer": "{{kind: sysinfer, role: {role}, max_model_len: 8192, cpu: {{affinity: none, threads: 1}}}}",
    "vllm": "{{kind: vllm, role: {role}, python: {python}, model_path: {folder}, max_model_len: 8192,"
    " start_timeout: 10m, cpu: {{affinity: none, threads: 1}}, env: {{VLLM_CPU_KVCACHE_SPACE: '2'}},"
    " extra_args: [--dtype=bfloat16, --enforce-eager, --max-num-batched-tokens=2048]}}",
}


def copies(kind: str, python: str, processes: int) -> Mapping[str, Any]:
    """Medians over processes, GB/s."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels/python'}"}
    command = [python, "-m", "bench.handoff.copies", kind]
    rows = []
    for _ in range(processes):
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    found = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    ratios = {
        f"{name}_of_memcpy": statistics.median(row[name] / row["memcpy"] for row in rows) for name in ("save", "load")
    }
    return {**found, **ratios, "processes": processes, "goal_reached": min(ratios.values()) >= BANDWIDTH}


def config(kind: str, python: str, folder: Path) -> str:
    """syshax.yaml of a pair, without the parts that the house fills in."""
    lines = [line for line in house.CONFIG.splitlines() if not line.startswith(("  gpu:", "  cpu:"))]
    at = lines.index("units:") + 1
    for name, role in (("cpu", "cpu"), ("gpu", "accelerator")):
        unit = UNITS[kind].replace("{role}", role).replace("{python}", python).replace("{folder}", str(folder))
        lines.insert(at, f"  {name}: {unit}")
    return "\n".join(lines).replace("pool_size: 64MiB", "pool_size: 512MiB") + "\n"


async def timed(url: str, route: str, ids: Sequence[int]) -> tuple[float, float]:
    """Seconds to the first and to the second token."""
    async with CompletionsClient(url, house.MODEL, headers={"x-syshax-route": route}) as endpoint:
        outcome = await endpoint.generate(BenchRequest(list(ids), len(ids), 8))
    assert not outcome.error and outcome.gaps, outcome
    return outcome.ttft, outcome.ttft + outcome.gaps[0]


def rounds(url: str, length: int, count: int, draw: random.Random) -> Mapping[str, Any]:
    """One prompt length: medians, routes in turn, after a round that does not count."""
    seen: dict[str, list[tuple[float, float]]] = {route: [] for route in ROUTES}
    for _ in range(count + 1):
        for route in ROUTES:
            ids = [draw.randrange(4, 250) for _ in range(length)]
            seen[route].append(asyncio.run(timed(url, route, ids)))
    alone, split = ([statistics.median(column) for column in zip(*seen[route][1:])] for route in ROUTES)
    return {
        "prefill_ttft_s": alone[0], "split_ttft_s": split[0], "ttft_ratio": split[0] / alone[0],
        "prefill_second_token_s": alone[1], "split_second_token_s": split[1],
        "goal_reached": split[0] <= alone[0] * (1 + SHARE) + EXTRA_S,
    }  # fmt: skip


def pair(kind: str, python: str, count: int) -> Mapping[str, Any]:
    """TTFT by prompt length under a daemon."""
    for name, value in SHAPE.items():
        setattr(small_gguf, name, value)
    setattr(twins, "HEAD_SIZE", HEAD_SIZE)
    with tempfile.TemporaryDirectory(prefix="syshax-bench-") as name:
        model = twins.write(Path(name), "llama")
        with house.running(model.gguf, config(kind, python, model.folder), 600) as daemon:
            wait_for("a split", lambda: split_works(daemon), 120)
            draw = random.Random(1)
            return {str(length): rounds(daemon.url, length, count, draw) for length in LENGTHS}


def split_works(daemon: house.Daemon) -> bool:
    """Whether the pair may split."""
    body = {"prompt": [5, 6, 7], "max_tokens": 2}
    return daemon.ask("/v1/completions", body, {"x-syshax-route": ROUTES[1]}).status == 200


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts and saves after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", default="", help="Python that has vLLM")
    parser.add_argument("--parts", default="copies,sysinfer,vllm")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    for part in args.parts.split(","):
        if part == "copies":
            kinds = {"sysinfer": sys.executable, **({"vllm": args.vllm} if args.vllm else {})}
            found: Mapping[str, Any] = {kind: copies(kind, python, args.processes) for kind, python in kinds.items()}
        elif part == "sysinfer" or args.vllm:
            found = pair(part, args.vllm, args.rounds)
        else:
            continue
        command = f"python -m bench.handoff --parts {part} --processes {args.processes} --rounds {args.rounds}"
        result[part] = {**found, **origin(command + (" --vllm PYTHON" if args.vllm else ""))}
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(part, json.dumps(result[part]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
