"""Show the version."""

from __future__ import annotations

import argparse
import platform

import syshaxd

from .exits import OK
from .options import add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    python = platform.python_version()
    if args.json:
        print_json({"version": syshaxd.__version__, "python": python, "machine": platform.machine()})
    else:
        print(f"sysHAX {syshaxd.__version__} (Python {python}, {platform.machine()})")
    return OK
