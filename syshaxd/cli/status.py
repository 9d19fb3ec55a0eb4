"""Show what the daemon and its units do. Exit code 69 where no daemon answers, 1 where none of its units is ready."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any

from .exits import FAILURE, OK
from .options import add_daemon, add_json, client, print_json
from .reload import lines as reload_lines
from .table import ago, table

_CLEAR = "\x1b[H\x1b[2J"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("--watch", action="store_true", help="show it again and again until Ctrl-C")
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="pause of --watch (default: 2)")
    add_daemon(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Ask and show."""
    daemon = client(args)
    if not args.watch:
        return _show(daemon.get("status"), args.json)
    try:
        while True:
            status = daemon.get("status")
            sys.stdout.write(_CLEAR if sys.stdout.isatty() else "")
            _show(status, args.json)
            sys.stdout.flush()
            time.sleep(max(args.interval, 0.1))
    except KeyboardInterrupt:
        return OK


def _show(status: Mapping[str, Any], as_json: bool) -> int:
    if as_json:
        print_json(status)
    else:
        print("\n".join(lines(status)))
    return OK if any(unit.get("state") == "ready" for unit in status.get("units", ())) else FAILURE


def lines(status: Mapping[str, Any]) -> list[str]:
    """The page of `syshax status`."""
    units = unit_table(status.get("units", ()))
    return [*_head(status), "", units, *_reasons(status), *_abilities(status), *_binding(status), *_pending(status)]


def _head(status: Mapping[str, Any]) -> list[str]:
    head = [f"sysHAX {status.get('version', '')}: {status.get('state', 'unknown')}, up {ago(status.get('uptime'))}"]
    if status.get("url"):
        head.append(f"endpoint {status['url']}, model {status.get('model') or '-'}")
    load = f"requests {status.get('in_flight', 0)} running, {status.get('queued', 0)} queued"
    return [*head, f"{load}; {_pd(status.get('pd', {}))}"]


def _pd(pd: Mapping[str, Any]) -> str:
    if pd.get("enabled", False):
        return "pd on"
    return f"pd off: {pd['reason']}" if pd.get("reason") else "pd off"


def unit_table(units: Any) -> str:
    """One line a unit."""
    head = ("UNIT", "ROLE", "KIND", "BACKEND", "STATE", "SINCE", "REQUESTS", "KV", "RESTARTS", "URL")
    return table(head, [_row(unit) for unit in units])


def _row(unit: Mapping[str, Any]) -> tuple[Any, ...]:
    usage = unit.get("kv_usage")
    kv = f"{usage:.0%}" if isinstance(usage, (int, float)) else None
    return (
        *(unit.get(name) for name in ("name", "role", "kind", "backend", "state")),
        ago(unit.get("age")), unit.get("in_flight"), kv, unit.get("restarts"), unit.get("url"),
    )  # fmt: skip


def _reasons(status: Mapping[str, Any]) -> list[str]:
    units = status.get("units", ())
    told = [f"{unit.get('name')}: {unit['reason']}" for unit in units if unit.get("reason")]
    told += [f"{unit.get('name')}: pending {unit['pending']}" for unit in units if unit.get("pending")]
    told += [f"{unit.get('name')}: {_doing(unit)}" for unit in units if _doing(unit)]
    return ["", *told] if told else []


def _doing(unit: Mapping[str, Any]) -> str:
    """What a unit on its way up said last: the progress of a pull, the weights it loads."""
    said = unit.get("last_log") or ()
    return f"{unit['state']}, says: {said[-1]}" if said and unit.get("state") in ("starting", "warming") else ""


def _abilities(status: Mapping[str, Any]) -> list[str]:
    """What each READY unit serves."""
    shown = []
    for unit in status.get("units", ()):
        can = unit.get("abilities")
        if can and unit.get("state") == "ready":
            context = f"context {can['max_context']}" if can.get("max_context") else "context unknown"
            endpoints = " ".join(path for path in can["endpoints"] if path.startswith("/v1/"))
            features = ", ".join(name.replace("_", " ") for name in can["features"]) or "text only"
            shown.append(f"{unit.get('name')}: {context}; {endpoints}; {features}")
    return ["", *shown] if shown else []


def _binding(status: Mapping[str, Any]) -> list[str]:
    """CPUs and memory of each unit as planned, then where it got less."""
    shown: list[str] = []
    for unit in status.get("units", ()):
        bound = unit.get("binding")
        if bound:
            shown.append(f"{unit.get('name')}: {_bound(bound)}")
            shown.extend(f"  not as planned: {words}" for words in bound.get("shortfalls", ()))
    plan = status.get("binding") or {}
    if plan.get("daemon"):
        shown.append(f"daemon and helpers: CPUs {plan['daemon']}")
    shown.extend(f"note: {note}" for note in plan.get("notes", ()))
    return ["", *shown] if shown else []


def _bound(bound: Mapping[str, Any]) -> str:
    total = (bound.get("memory") or {}).get("total", 0)
    memory = f"memory nodes {bound.get('memory_nodes')}" + (f", {total / 2**30:.1f} GiB planned" if total else "")
    if not bound.get("cpus"):
        return f"not bound; {memory}"
    per_node = ", ".join(f"node {node}: {cpus}" for node, cpus in bound.get("per_node", {}).items())
    helpers = f"; other threads also on {bound['reserved']}" if bound.get("reserved") else ""
    granted = bound.get("granted") or {}
    pinned = f"; {granted['pinned']} of {granted['threads']} pinned" if granted else ""
    return f"{bound.get('threads')} threads on CPUs {bound['cpus']} ({per_node}){helpers}{pinned}; {memory}"


def _pending(status: Mapping[str, Any]) -> list[str]:
    result = status.get("reload") or {}
    if result.get("error"):
        return ["", f"last reload failed: {str(result['error']).splitlines()[0]}"]
    pending = {"pending_restart": result.get("pending_restart", ())}
    return ["", *reload_lines(pending)] if pending["pending_restart"] else []
