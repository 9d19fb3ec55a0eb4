"""The `syshax` command. A verb is a module with `add_arguments(parser)` and `run(args)`, imported when it is used."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .exits import OK, USAGE


@dataclass(frozen=True)
class Verb:
    """One verb: its module below this package, and what it does."""

    name: str
    module: str
    help: str


VERBS = (
    Verb("init", "init", "write a commented configuration for this machine"),
    Verb("config", "config", "read or change one key of the configuration"),
    Verb("check-config", "check_config", "test the configuration"),
    Verb("run", "run", "run the daemon in the foreground"),
    Verb("status", "status", "show what the daemon and its units do"),
    Verb("reload", "reload", "apply the configuration to the running daemon"),
    Verb("drain", "drain", "take no more requests and wait for the running ones"),
    Verb("pd", "pd", "try again whether the units may split requests"),
    Verb("units", "units", "list, show, restart, stop or start units; their logs"),
    Verb("interfaces", "interfaces", "list the addresses the daemon and its units listen on"),
    Verb("model", "model", "show the models served"),
    Verb("image", "image", "list, save or load the images of units"),
    Verb("doctor", "doctor.command", "test whether this host can run the units"),
    Verb("explain", "explain", "tell what happened to one request and why"),
    Verb("simulate", "simulate", "play a trace of requests against schedulers"),
    Verb("estimate", "estimate", "what a host's CPUs can add, by formula"),
    Verb("bench", "bench.command", "load, data sets and calibration"),
    Verb("version", "version", "show the version"),
)

_EXAMPLES = """
examples:
  syshax config gpu.port 8001       change a key (also: services.gpu.port, units.gpu.port)
  syshax check-config               test all files; one line a fault
  syshax reload --wait              apply them; fails, and changes nothing, if they are faulty
  syshax units logs gpu             last log lines of a unit

exit codes: 0 ok, 1 failure, 2 usage, 69 the daemon can't be reached, 78 faulty configuration
syshax VERB --help tells more. Manual: syshax(1), syshax.yaml(5).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return OK if arguments else USAGE
    if arguments[0] in ("--version", "-V"):
        arguments[0] = "version"
    verb = next((verb for verb in VERBS if verb.name == arguments[0]), None)
    if verb is None:
        sys.stderr.write(f"syshax: unknown verb {arguments[0]}{_meant(arguments[0])}; syshax --help lists them\n")
        return USAGE
    return _guarded(verb, arguments[1:])


def usage() -> str:
    """The text of `syshax --help`."""
    lines = "".join(f"  {verb.name:<14}{verb.help}\n" for verb in VERBS)
    return f"usage: syshax VERB [arguments]\n\nverbs:\n{lines}{_EXAMPLES}"


def _meant(word: str) -> str:
    import difflib

    close = difflib.get_close_matches(word, [verb.name for verb in VERBS], 1, 0.4)
    return f" (did you mean {close[0]}?)" if close else ""


def _guarded(verb: Verb, arguments: Sequence[str]) -> int:
    """Run a verb; errors made on purpose become one line and an exit code."""
    import argparse

    from syshaxd.errors import SysHaxError

    from .exits import CommandError, code_of

    module = importlib.import_module(f"{__name__}.{verb.module}")
    doc = (module.__doc__ or "").strip()
    parser = argparse.ArgumentParser(
        f"syshax {verb.name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    try:
        args = parser.parse_args(arguments)
        code: int = module.run(args)
        sys.stdout.flush()
        return code
    except (CommandError, SysHaxError) as err:
        sys.stderr.write("".join(f"syshax: {line}\n" for line in str(err).splitlines()))
        return code_of(err)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader, `head` perhaps, has seen enough
        return OK
    except KeyboardInterrupt:
        return 130
