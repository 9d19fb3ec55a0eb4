"""Take no more requests and wait until the running ones have ended. A restart of the daemon ends the drain."""

from __future__ import annotations

import argparse

from .exits import FAILURE, OK
from .options import add_daemon, add_json, client, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="longest wait (default: lifecycle.drain_timeout)"
    )
    add_daemon(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Ask, wait and tell; fails where requests are left."""
    longest = 3600.0 if args.timeout is None else args.timeout + 10.0
    result = client(args, longest).post("drain", body={} if args.timeout is None else {"timeout": args.timeout})
    left = int(result.get("in_flight", 0))
    if args.json:
        print_json(result)
    else:
        print("drained: no request is running" if not left else f"{left} requests are still running")
    return FAILURE if left else OK
