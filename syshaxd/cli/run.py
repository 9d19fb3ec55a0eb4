"""Run the daemon in the foreground; Ctrl-C stops it and its units. The same as `syshaxd`."""

from __future__ import annotations

import argparse
import importlib

from .options import add_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Hand over to the daemon's own entry."""
    daemon = importlib.import_module("syshaxd.__main__")
    return int(daemon.main(["--config", args.config] if args.config else []) or 0)
