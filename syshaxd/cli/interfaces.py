"""List the addresses the daemon and its units listen on, and the calls of the endpoint.

Asks the running daemon; where none answers, tells what the configuration says and that it does so.
"""

from __future__ import annotations

import argparse
from typing import Any

from .exits import OK, UNREACHABLE, CommandError
from .options import add_daemon, add_json, client, print_json, socket_path, source
from .table import table

ENDPOINTS = (
    ("POST", "/v1/chat/completions", "chat, streaming or not"),
    ("POST", "/v1/completions", "text completion"),
    ("POST", "/v1/chat/pd_disagg", "chat with a forced split"),
    ("GET", "/v1/models", "models served"),
    ("GET", "/health", "200 while requests are taken"),
    ("GET", "/metrics", "Prometheus text"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_daemon(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Collect and print."""
    found, running = _addresses(args)
    if args.json:
        calls = [{"method": method, "path": path} for method, path, _ in ENDPOINTS]
        print_json({"running": running, "interfaces": found, "endpoints": calls})
        return OK
    if not running:
        print("the daemon does not run; by the configuration it would listen on:")
    print(table(("NAME", "ADDRESS"), [(one["name"], one["url"]) for one in found]))
    base = next(one["url"] for one in found if one["name"] == "conductor")
    print("", table(("METHOD", "URL", ""), [(method, base + path, what) for method, path, what in ENDPOINTS]), sep="\n")
    return OK


def _addresses(args: argparse.Namespace) -> tuple[list[dict[str, str]], bool]:
    control = {"name": "control", "url": f"unix:{socket_path(args)}"}
    try:
        status = client(args).get("status")
    except CommandError as err:
        if err.code != UNREACHABLE:
            raise
        return [*_configured(args), control], False
    units = [{"name": str(unit["name"]), "url": str(unit.get("url") or "")} for unit in status.get("units", ())]
    return [{"name": "conductor", "url": str(status.get("url", ""))}, *units, control], True


def _configured(args: argparse.Namespace) -> list[dict[str, str]]:
    config = source(args).load()
    front = {"name": "conductor", "url": _url(config.conductor.host, config.conductor.port)}
    return [front, *({"name": unit.name, "url": _unit_url(unit)} for unit in config.units)]


def _unit_url(unit: Any) -> str:
    if unit.url:
        return str(unit.url)
    return _url(unit.host, unit.port) if unit.port else f"{unit.host}, port chosen at start"


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
