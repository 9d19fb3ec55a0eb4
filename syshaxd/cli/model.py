"""Show the models served, and which units serve them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from .exits import OK
from .options import add_daemon, add_json, client, print_json
from .table import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_daemon(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Ask and show."""
    models = by_model(client(args).get("status"))
    if args.json:
        print_json({"models": models})
    else:
        rows = [(one["name"], one["max_model_len"], ", ".join(one["units"]), ", ".join(one["ready"])) for one in models]
        print(table(("MODEL", "CONTEXT", "UNITS", "READY"), rows))
    return OK


def by_model(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry a model: name, the shortest context of its units in tokens, its units, and those that are ready."""
    models: dict[str, dict[str, Any]] = {}
    for unit in status.get("units", ()):
        name = str(unit.get("model") or status.get("model") or "")
        one = models.setdefault(name, {"name": name, "max_model_len": None, "units": [], "ready": []})
        one["units"].append(unit["name"])
        if unit.get("state") == "ready":
            one["ready"].append(unit["name"])
        lengths = [length for length in (one["max_model_len"], unit.get("max_model_len")) if length]
        one["max_model_len"] = min(lengths, default=None)
    return list(models.values())
