"""List, show, restart, stop or start units; their last log lines.

`syshax units show NAME --command` prints the command line that does by hand what the daemon does to start the unit.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Mapping
from typing import Any

from .exits import OK, USAGE, CommandError
from .options import add_daemon, add_json, client, print_json
from .status import unit_table

ACTIONS = ("list", "show", "restart", "stop", "start", "logs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("action", choices=ACTIONS, nargs="?", default="list")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the unit")
    parser.add_argument("--command", action="store_true", help="with show: the equivalent command line")
    parser.add_argument("-n", "--lines", type=int, default=100, help="with logs: how many (default: 100)")
    add_daemon(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Dispatch on the action."""
    if args.action == "list":
        return _list(args)
    if not args.name:
        raise CommandError(f"units {args.action} needs the NAME of a unit; syshax units list shows them", USAGE)
    if args.action == "show":
        return _command(args) if args.command else _show(args, client(args).get("units", args.name))
    if args.action == "logs":
        return _logs(args)
    result = client(args, timeout=900.0).post("units", args.name, args.action)
    return _show(args, result)


def _list(args: argparse.Namespace) -> int:
    answer = client(args).get("units")
    if args.json:
        print_json(answer)
    else:
        print(unit_table(answer["units"]))
    return OK


def _show(args: argparse.Namespace, unit: Mapping[str, Any]) -> int:
    if args.json:
        print_json(unit)
        return OK
    for name, value in unit.items():
        if name == "last_failure":
            _show_failure(value)
        elif isinstance(value, list) and value:
            print(f"{name}:", *(f"  {line}" for line in value), sep="\n")
        elif value not in (None, "", []):
            print(f"{name}: {value}")
    return OK


def _show_failure(failure: Mapping[str, Any] | None) -> None:
    if failure:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(failure["at"]))
        print(f"last failure, {stamp}: {failure['reason']}", *(f"  {line}" for line in failure["last_log"]), sep="\n")


def _command(args: argparse.Namespace) -> int:
    answer = client(args).get("units", args.name, "command")
    if args.json:
        print_json(answer)
    else:
        print(" ".join(shlex.quote(word) for word in answer["command"]))
    return OK


def _logs(args: argparse.Namespace) -> int:
    if args.lines < 1:
        raise CommandError(f"--lines {args.lines}: expected 1 or more", USAGE)
    answer = client(args).get("units", args.name, "logs", query=f"lines={args.lines}")
    if args.json:
        print_json(answer)
    else:
        print("".join(f"{line}\n" for line in answer["lines"]), end="")
    return OK
