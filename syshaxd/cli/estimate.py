"""The verb `syshax estimate`: what a host's CPUs can add, from a roofline (docs/scheduling.md)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from syshaxd.simulation.law import Host, Law, hosts
from syshaxd.simulation.workload import TraceError

from .simulate import choose_host


@dataclass(frozen=True)
class Rate:
    """Best decode rate of a unit within a TPOT limit: tokens/s, at which batch, seconds a step."""

    tokens: float = 0.0
    batch: int = 0
    step: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """Both sides within one limit. `alone`, `together`: requests/s."""

    tpot: float
    accelerator: Rate
    cpu: Rate
    alone: float
    together: float

    @property
    def gain(self) -> float:
        """Relative: C / D."""
        return self.cpu.tokens / self.accelerator.tokens if self.accelerator.tokens else 0.0

    def sentence(self) -> str:
        """For people."""
        return (
            f"TPOT <= {self.tpot * 1e3:.0f} ms: accelerator {self.accelerator.tokens:.0f} tokens/s "
            f"(batch {self.accelerator.batch}), CPUs {self.cpu.tokens:.0f} tokens/s (batch {self.cpu.batch}); "
            f"{self.alone:.2f} -> {self.together:.2f} requests/s"
        )


def decode_rate(law: Law, per_request: float, tpot: float) -> Rate:
    """max over b of b / t(b) with t <= tpot and b requests of `per_request` KV tokens in 95 % of the memory."""
    best = Rate()
    for batch in range(1, law.max_num_seqs + 1):
        step = law.seconds(batch, 0, int(batch * per_request))
        if step > tpot or batch * per_request > 0.95 * law.capacity:
            break
        if batch / step > best.tokens:
            best = Rate(batch / step, batch, step)
    return best


def estimate(host: Host, prompt: float, output: float, tpot: float) -> Estimate:
    """The accelerator prefills everything; the CPUs decode what they can hold within the limit."""
    per_request = prompt + output / 2
    accelerator, cpu = decode_rate(host.accelerator, per_request, tpot), decode_rate(host.cpu, per_request, tpot)
    prefill = prompt * host.accelerator.compute
    if not accelerator.tokens:
        return Estimate(tpot, accelerator, cpu, 0.0, min(cpu.tokens / output, 1 / prefill))
    alone = 1.0 / (prefill + output / accelerator.tokens)
    split = min(cpu.tokens / output, 1.0 / prefill)
    # The accelerator's time that is left after the prefills of split requests.
    together = split + max(0.0, 1.0 - split * prefill) * alone
    return Estimate(tpot, accelerator, cpu, alone, together)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument(
        "--host", default="A10-8B", help=f"one of {', '.join(hosts())}, or a JSON file of step-time laws"
    )
    parser.add_argument("--prompt", type=float, default=1155, help="mean prompt tokens (default 1155)")
    parser.add_argument("--output", type=float, default=211, help="mean output tokens (default 211)")
    parser.add_argument("--tpot-ms", type=float, action="append", help="limit per output token; may be repeated")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Prints one line a limit; 0, or 1 with one line on stderr."""
    if args.prompt <= 0 or args.output <= 0 or any(limit <= 0 for limit in args.tpot_ms or ()):
        print("syshax estimate: --prompt, --output and --tpot-ms must be above 0", file=sys.stderr)
        return 2
    try:
        host = choose_host(args.host)
    except TraceError as error:
        print(f"syshax estimate: {error}", file=sys.stderr)
        return 1
    found = [estimate(host, args.prompt, args.output, limit / 1e3) for limit in args.tpot_ms or (100.0, 250.0)]
    if args.json:
        print(json.dumps([_json(one) for one in found], indent=2))
    else:
        print("\n".join(f"{one.sentence()}: {one.gain:+.1%}" for one in found))
    return 0


def _json(one: Estimate) -> Mapping[str, object]:
    return {
        "tpot_ms": one.tpot * 1e3,
        "accelerator_tokens_per_s": one.accelerator.tokens,
        "cpu_tokens_per_s": one.cpu.tokens,
        "gain": one.gain,
        "requests_per_s": [one.alone, one.together],
    }
