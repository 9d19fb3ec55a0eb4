"""Test whether this host can run the configured units: engines, images, devices, drivers, memory, ports, models.

One line a finding (ok, warning, error) with what to do. Exit code 1 where there is an error.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from syshaxd.cli.exits import FAILURE, OK
from syshaxd.cli.options import add_config, add_json, print_json, source
from syshaxd.config.types import Config
from syshaxd.supervisor.binding.apply import unit_line
from syshaxd.supervisor.binding.configured import plan_units
from syshaxd.supervisor.binding.host_tree import HostTree, describe, read_host
from syshaxd.topology import format_cpu_list

from .findings import Finding, Level, error, good, warning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_config(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Look, and tell."""
    from .engines import engine_findings
    from .host import host_findings

    config = source(args).load()
    findings = [*host_findings(config), *engine_findings(config), *binding_findings(config, read_host())]
    if args.json:
        print_json([{**vars(finding), "level": finding.level.name.lower()} for finding in findings])
    else:
        print("\n".join(lines(findings)))
    return FAILURE if any(finding.level is Level.ERROR for finding in findings) else OK


def lines(findings: list[Finding]) -> list[str]:
    """For a terminal."""
    shown = []
    for finding in findings:
        shown.append(f"{finding.level.name.lower():<8}{finding.subject}: {finding.found}")
        if finding.advice:
            shown.append(f"{'':8}-> {finding.advice}")
    bad = [sum(finding.level is level for finding in findings) for level in (Level.ERROR, Level.WARNING)]
    return [*shown, f"{bad[0]} errors, {bad[1]} warnings"]


def binding_findings(config: Config, host: HostTree) -> Iterator[Finding]:
    """The plan, one finding a unit; or what keeps it from being one."""
    planned = plan_units(config, host)
    for problem in planned.problems:
        yield error("binding", problem, "change units.NAME.cpu, the unit's env, or its model; see docs/numa.md")
    for note in planned.notes:
        yield warning("binding", note, "syshax check-config shows the whole plan")
    if not planned.problems:
        for binding in planned.units:
            name, _, words = unit_line(binding, host).partition(": ")
            yield good(f"{name}: binding", words)
        yield good("binding", f"{describe(host)}; daemon and helpers: CPUs {format_cpu_list(planned.housekeeping)}")
