"""Tell what happened to one request and why. The id is x-request-id of the answer; the last 1024 are kept."""

from __future__ import annotations

import argparse

from .exits import OK
from .options import add_daemon, add_json, client, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("request_id", metavar="REQUEST_ID")
    parser.add_argument("--chrome-trace", action="store_true", help="print a trace for chrome://tracing or Perfetto")
    add_daemon(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Ask and print."""
    story = client(args).get("requests", args.request_id)
    if args.chrome_trace:
        print_json(story.get("trace", {}))
    elif args.json:
        print_json({name: value for name, value in story.items() if name not in ("text", "trace")})
    else:
        print(story.get("text", "the daemon has no text for this request"))
    return OK
