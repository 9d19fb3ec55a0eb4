"""Test whether this host can run the configured units: engines, images, devices, drivers, memory, ports, models.

One line a finding (ok, warning, error) with what to do. Exit code 1 where there is an error.
"""

from __future__ import annotations

import argparse
from typing import List

from syshaxd.cli.exits import FAILURE, OK
from syshaxd.cli.options import add_config, add_json, print_json, source
from syshaxd.config.types import Config
from syshaxd.errors import ConfigError

from .findings import Finding, Level, error, good


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_config(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Look, and tell."""
    from .engines import engine_findings
    from .host import host_findings

    config = source(args).load()
    findings = [*host_findings(config), *engine_findings(config), _binding(config)]
    if args.json:
        print_json([{**vars(finding), "level": finding.level.name.lower()} for finding in findings])
    else:
        print("\n".join(lines(findings)))
    return FAILURE if any(finding.level is Level.ERROR for finding in findings) else OK


def lines(findings: List[Finding]) -> List[str]:
    """For a terminal."""
    shown = []
    for finding in findings:
        shown.append(f"{finding.level.name.lower():<8}{finding.subject}: {finding.found}")
        if finding.advice:
            shown.append(f"{'':8}-> {finding.advice}")
    bad = [sum(finding.level is level for finding in findings) for level in (Level.ERROR, Level.WARNING)]
    return [*shown, f"{bad[0]} errors, {bad[1]} warnings"]


def _binding(config: Config) -> Finding:
    from syshaxd.supervisor.binding.host import read_host
    from syshaxd.supervisor.supervisor import binding_plan

    try:
        plan = binding_plan(config.units, read_host())
    except ConfigError as err:
        return error("binding", str(err), "change units.NAME.cpu; syshax check-config shows the plan")
    words = ", ".join(f"{unit.name}: {unit.threads} CPUs" for unit in plan.units if unit.cpus)
    return good("binding", words or "no unit is bound")
