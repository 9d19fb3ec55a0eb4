"""The verb `syshax bench`: `serve` (default), `dataset`, `calibrate`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Callable

from ..options import add_daemon
from .calibrate import calibrate
from .calibrated_units import keep, ready_units
from .completions_client import BenchError, CompletionsClient
from .dataset import Shape, generate, load, random_asks, save
from .serve import Pace, play, summary, table

DEFAULT_URL = "http://127.0.0.1:8010"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND")
    serve = kinds.add_parser("serve", help="load on the endpoint; prints the table of vllm bench serve")
    _common(serve)
    serve.add_argument("--dataset", type=Path, help='JSON lines with "prompt"; default: random tokens')
    serve.add_argument("--input-len", type=int, default=512, help="tokens of a random prompt (default 512)")
    serve.add_argument("--output-len", type=int, default=128, help="tokens to make (default 128)")
    serve.add_argument("--num-prompts", type=int, default=100)
    serve.add_argument("--max-concurrency", type=int)
    serve.add_argument("--request-rate", type=float, help="requests/s, Poisson; default: all at once")
    serve.add_argument("--json", action="store_true", help="figures as JSON")
    dataset = kinds.add_parser("dataset", help="write random prompts of exact token lengths in prefix groups")
    _common(dataset)
    dataset.add_argument("--groups", type=int, default=30)
    dataset.add_argument("--prompts-per-group", type=int, default=100)
    dataset.add_argument("--prefix", type=int, default=12 * 1024, help="tokens shared by a group")
    dataset.add_argument("--suffix", type=int, default=12 * 1024, help="tokens of its own")
    dataset.add_argument("--out", type=Path, required=True)
    fit = kinds.add_parser("calibrate", help="measure the units' step times for the predictive scheduler")
    _common(fit, "one server instead of the daemon's ready units")
    fit.add_argument("--unit", action="append", metavar="NAME", help="only this unit; may be given again")
    fit.add_argument("--out", type=Path, help="with --base-url: save the samples there")
    add_daemon(fit)


def _common(parser: argparse.ArgumentParser, url: str = f"default {DEFAULT_URL}") -> None:
    parser.add_argument("--base-url", metavar="URL", help=url)
    parser.add_argument("--model", default="", help="default: the first model served")
    parser.add_argument("--api-key", default="")
    parser.add_argument("--seed", type=int, default=42)


def _progress(what: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{what}: {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


async def _serve(endpoint: CompletionsClient, args: argparse.Namespace) -> None:
    if args.dataset:
        asks = load(args.dataset, args.num_prompts, args.output_len)
    else:
        asks = await random_asks(endpoint, args.num_prompts, args.input_len, args.output_len, args.seed)
    run = await play(
        endpoint, asks, Pace(args.request_rate, args.max_concurrency, args.seed), _progress("requests answered")
    )
    figures = summary(run)
    print(json.dumps(figures, indent=2) if args.json else table(figures))
    errors = sorted({outcome.error for outcome in run.outcomes if outcome.error})
    for error in errors[:5]:
        print(f"failed: {error}", file=sys.stderr)


async def _dataset(endpoint: CompletionsClient, args: argparse.Namespace) -> None:
    shape = Shape(args.groups, args.prompts_per_group, args.prefix, args.suffix, args.seed)
    save(await generate(endpoint, shape, _progress("prompts")), args.out)
    print(f"{shape.groups * shape.prompts_per_group} prompts written to {args.out}")


async def _calibrate(endpoint: CompletionsClient, args: argparse.Namespace) -> None:
    found = await calibrate(endpoint, args.seed, _progress("measurements"))
    if args.out:
        keep(args.out, found.as_json())
    print(found.sentence())


async def _calibrate_units(args: argparse.Namespace) -> None:
    """One after the other: they may share CPUs and memory."""
    units = ready_units(args)
    for unit in units:
        async with CompletionsClient(unit.url, args.model, unit.api_key) as endpoint:
            found = await calibrate(endpoint, args.seed, _progress(f"measurements of {unit.name}"))
        keep(unit.file, found.as_json())
        print(f"{unit.name}: {found.sentence()}")
        print(f"{unit.name}: saved in {unit.file}")
    print("in force after the next `syshax reload`, and whenever such a unit becomes ready")


KINDS: Mapping[str, Callable[[CompletionsClient, argparse.Namespace], Awaitable[None]]] = {
    "serve": _serve,
    "dataset": _dataset,
    "calibrate": _calibrate,
}


def run(args: argparse.Namespace) -> int:
    """Runs the kind asked for; 0, or 1 with one line on stderr."""
    if args.kind is None:
        print("syshax bench: expected one of serve, dataset, calibrate (syshax bench KIND --help)", file=sys.stderr)
        return 2
    try:
        return asyncio.run(_run(args))
    except BenchError as error:
        print(f"syshax bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


async def _run(args: argparse.Namespace) -> int:
    if args.kind == "calibrate" and not args.base_url:
        await _calibrate_units(args)
        return 0
    async with CompletionsClient(args.base_url or DEFAULT_URL, args.model, args.api_key) as endpoint:
        await endpoint.first_model()
        await KINDS[args.kind](endpoint, args)
    return 0
