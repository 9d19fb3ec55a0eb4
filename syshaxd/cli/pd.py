"""The PD self-check, asked for: whether a split computes what the decode unit alone computes."""

from __future__ import annotations

import argparse

from .exits import FAILURE, OK
from .options import add_daemon, add_json, client, print_json

LONGEST = 610.0  # seconds; the daemon gives up before


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    verbs = parser.add_subparsers(dest="action", required=True, metavar="check")
    check = verbs.add_parser("check", help="run the self-check on every pair of units and tell what it found")
    add_daemon(check)
    add_json(check)


def run(args: argparse.Namespace) -> int:
    """Ask, wait and tell; fails where splits are off."""
    result = client(args, LONGEST).post("pd", "check")
    if args.json:
        print_json(result)
    else:
        print("splits are on: the self-check agrees" if result["enabled"] else f"splits are off: {result['reason']}")
    return OK if result["enabled"] else FAILURE
