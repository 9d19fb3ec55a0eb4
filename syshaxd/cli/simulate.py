"""The verb `syshax simulate`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from syshaxd.simulation.deciders import Contestant, contestants
from syshaxd.simulation.law import Host, Law, ModelSize, hosts
from syshaxd.simulation.report import conclusion, play, plot, table
from syshaxd.simulation.workload import Demand, TraceError, arrivals, read_trace

SHORT = ("accelerator only", "round robin", "original threshold", "admission without CPU", "predictive")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument(
        "trace",
        type=Path,
        help="CSV with t_s,input,output, or the daemon's log as text or from journalctl -o json; -: standard input",
    )
    parser.add_argument(
        "--host", default="A10-8B", help=f"one of {', '.join(hosts())}, or a JSON file of step-time laws"
    )
    parser.add_argument("--rate", type=float, help="mean requests/s, to which the trace is stretched; default: its own")
    parser.add_argument("--requests", type=int, default=1500, help="how many of the trace")
    parser.add_argument("--longest", type=int, default=8192, help="leave out requests of more tokens")
    parser.add_argument(
        "--flex-share", type=float, default=0.5, help="share of the flex tier where the trace tells no tier"
    )
    parser.add_argument("--clients", type=int, help="closed loop: this many clients instead of the trace's times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="also the eight fixed thresholds")
    parser.add_argument("--json", action="store_true", help="scores as JSON")


def host_from_file(path: Path) -> Host:
    """A host described by JSON: {"model": {...}, "accelerator": {...}, "cpu": {...}} with the fields of `law`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        model = ModelSize(**data["model"])
        laws = {side: Law(name=side, **data[side]) for side in ("accelerator", "cpu")}
        return Host(model, laws["accelerator"], laws["cpu"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{path}: expected JSON with model, accelerator and cpu step-time laws: {error}") from error


def choose_host(name: str) -> Host:
    """A known host by name, or one from a file."""
    known = hosts()
    if name in known:
        return known[name]
    if not Path(name).is_file():
        raise TraceError(f"--host {name}: expected one of {', '.join(known)} or a JSON file")
    return host_from_file(Path(name))


def _chosen(everything: bool) -> Sequence[Contestant]:
    return [c for c in contestants() if everything or c.name in SHORT]


def _note(text: str) -> None:
    print(f"syshax simulate: {text}", file=sys.stderr)


def _misuse(args: argparse.Namespace) -> str:
    """What is wrong with the options; "" where nothing is."""
    checks = (
        (args.rate is None or 0 < args.rate < 1e6, "--rate must be above 0 and below 1e6"),
        (args.requests >= 2, "--requests must be 2 or more"),
        (args.longest >= 2, "--longest must be 2 or more"),
        (0 <= args.flex_share <= 1, "--flex-share must be from 0 to 1"),
        (args.clients is None or args.clients >= 1, "--clients must be 1 or more"),
    )
    return next((text for right, text in checks if not right), "")


def run(args: argparse.Namespace) -> int:
    """Plays the trace; 0, or 1 with one line on stderr."""
    misuse = _misuse(args)
    if misuse:
        _note(misuse)
        return 2
    try:
        host = choose_host(args.host)
        demand = Demand(args.rate, args.requests, args.longest, args.flex_share, seed=args.seed)
        rows = read_trace(args.trace, _note)
        load = arrivals(rows, demand)
    except TraceError as error:
        _note(str(error))
        return 1
    if len(load) < min(len(rows), args.requests):
        _note(f"{len(load)} of {len(rows)} requests are played: the others are longer than {args.longest} tokens")
    shown = sys.stderr.isatty()
    scores = play(
        host,
        load,
        _chosen(args.all),
        seed=args.seed,
        clients=args.clients,
        progress=lambda name: print(f"playing {name} ...", file=sys.stderr) if shown else None,
    )
    if args.json:
        print(json.dumps({"scores": [s.as_json() for s in scores], "conclusion": conclusion(scores)}, indent=2))
    else:
        print(table(scores), plot(scores), conclusion(scores), sep="\n\n")
    return 0
