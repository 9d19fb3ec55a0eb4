"""Test the configuration: every fault at once on stderr, with file, line, column and key; exit code 78.

What is good is planned for this host: which CPUs, memory nodes and memory each unit gets. A plan that the host can't
carry is a fault. --host plans for another host, from a copy of its /sys/devices/system.

--print shows the merged configuration with the file and line of each value; it is YAML that reads as the same again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from syshaxd.conductor.keys import read_keys
from syshaxd.config.emit import emit, with_defaults
from syshaxd.config.host_warnings import host_warnings
from syshaxd.config.load import Loaded
from syshaxd.config.shape import problem
from syshaxd.errors import ConfigError, Problem
from syshaxd.supervisor.binding.apply import lines, plan_json
from syshaxd.supervisor.binding.configured import plan_problems, plan_units
from syshaxd.supervisor.binding.host_tree import read_host

from .exits import CONFIG, OK
from .options import add_config, add_json, print_json, source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("--print", action="store_true", help="print the merged configuration with origins")
    parser.add_argument("--all", action="store_true", help="with --print: values that nobody set, too")
    parser.add_argument("--host", metavar="PATH", help="copy of another host's /sys/devices/system to plan for")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but faults")
    add_config(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Load, judge, plan, tell."""
    try:
        loaded = source(args).read()
        host = read_host(Path(args.host)) if args.host else read_host()
    except ConfigError as err:
        return _bad(args, err.problems)
    planned, warnings = plan_units(loaded.config, host), [*loaded.warnings, *host_warnings(loaded)]
    problems = [*_keys(loaded), *plan_problems(planned)]
    if problems:
        return _bad(args, problems, warnings)
    if args.json:
        units = [unit.name for unit in loaded.config.units]
        said = {"ok": True, "files": list(loaded.files), "units": units, "problems": [], "warnings": _json(warnings)}
        print_json({**said, "binding": plan_json(planned, host)})
        return OK
    if not args.quiet:
        sys.stderr.writelines(f"warning: {warning}\n" for warning in warnings)
    if args.print:
        sys.stdout.write(emit(with_defaults(loaded.root) if args.all else loaded.root, origins=True))
    elif not args.quiet:
        print(_summary(loaded, len(warnings)), *lines(planned, host), sep="\n")
    return OK


def _keys(loaded: Loaded) -> list[Problem]:
    """The daemon does not start, or reload, with keys that can't be used."""
    try:
        read_keys(loaded.config.conductor.api_keys_file)
    except ConfigError as err:
        path = ("services", "conductor", "api_keys_file")
        return [problem(loaded.root, path, one.message) for one in err.problems]
    return []


def _bad(args: argparse.Namespace, problems: Sequence[Problem], warnings: Sequence[Problem] = ()) -> int:
    if args.json:
        told = {"problems": _json(problems), "warnings": _json(warnings), "binding": None}
        print_json({"ok": False, "files": [], "units": [], **told})
        return CONFIG
    sys.stderr.writelines(f"warning: {warning}\n" for warning in warnings if not args.quiet)
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    if not args.quiet:
        sys.stderr.write(f"syshax: {len(problems)} fault{'s' if len(problems) > 1 else ''} in the configuration\n")
    return CONFIG


def _json(problems: Sequence[Problem]) -> list[dict[str, object]]:
    return [asdict(problem) for problem in problems]


def _summary(loaded: Loaded, warnings: int) -> str:
    units = ", ".join(f"{unit.name} ({unit.role.value}, {unit.kind})" for unit in loaded.config.units)
    noted = f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
    return f"syshax: configuration is good{noted}: {', '.join(loaded.files)}; units: {units}"
