"""Apply the configuration to the running daemon, as SIGHUP does, and wait for the result.

All or nothing: a faulty configuration changes nothing, prints every fault, and fails.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from .exits import OK
from .options import add_daemon, add_json, client, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("--wait", action="store_true", help="wait for the result, as it always does")
    parser.add_argument("--timeout", type=float, default=900.0, metavar="SECONDS", help="longest wait (default: 900)")
    add_daemon(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Ask and tell."""
    result = client(args, args.timeout).post("reload")
    if args.json:
        print_json(result)
    else:
        print("\n".join(lines(result)))
    return OK


def lines(result: Mapping[str, Any]) -> list[str]:
    """A ReloadPlan for people."""
    told = [f"applied: {change}" for change in result.get("applied", ())]
    told += [f"unit {verb}: {name}" for verb in ("added", "removed", "replaced") for name in result.get(verb, ())]
    told += [f"because of: {change}" for change in result.get("unit_changes", ())]
    told += [f"pending, needs systemctl restart syshaxd: {change}" for change in result.get("pending_restart", ())]
    return told or ["nothing changed"]
