"""Options that several verbs have, and where they lead."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syshaxd.config import Source

    from .client import Client

DEFAULT_SOCKET = "/run/syshax/control.sock"


def add_config(parser: argparse.ArgumentParser) -> None:
    """--config."""
    parser.add_argument(
        "--config", metavar="PATH", help="configuration folder or file (default: $SYSHAX_CONFIG, then /etc/syshax)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_daemon(parser: argparse.ArgumentParser) -> None:
    """What a verb that talks to the daemon needs."""
    add_config(parser)
    parser.add_argument("--socket", metavar="PATH", help="control socket (default: as the configuration says)")


def source(args: argparse.Namespace) -> "Source":
    """The configuration that is meant."""
    from syshaxd.config.source import find_source

    return find_source(args.config, os.environ)


def client(args: argparse.Namespace, timeout: float = 10.0) -> "Client":
    """A client of the daemon that is meant."""
    from .client import Client

    return Client(socket_path(args), timeout)


def socket_path(args: argparse.Namespace) -> str:
    """--socket, or what the configuration says. A faulty configuration must not stop anyone from asking the daemon."""
    if args.socket:
        return str(args.socket)
    from .socket_path import peek_control_socket

    return peek_control_socket(source(args)) or DEFAULT_SOCKET


def print_json(value: Any) -> None:
    """One JSON document to stdout."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
