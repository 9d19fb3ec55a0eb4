"""Becomes a unit that systemd runs: reads what to run from a file the daemon wrote, binds itself, runs it in its place.

ExecStart of syshax-unit@NAME.service, run as a file by a bare interpreter (`python3 -I -S launch_file.py FILE`).
Imports nothing of the daemon.
"""

from __future__ import annotations

import json
import os
import sys

CANNOT_RUN = 127


def main(arguments: list[str]) -> int:
    """Does not return where the command can be run."""
    if len(arguments) != 1:
        print("usage: launch_file.py FILE", file=sys.stderr)
        return CANNOT_RUN
    try:
        with open(arguments[0], encoding="utf-8") as file:
            spec = json.load(file)
        argv, env, cpus = spec["argv"], spec["env"], spec["cpus"]
    except (OSError, ValueError, KeyError) as err:
        print(f"{arguments[0]}: {err!r}; syshaxd writes this file before it starts the unit", file=sys.stderr)
        return CANNOT_RUN
    if cpus:
        os.sched_setaffinity(0, cpus)
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as err:
        print(f"cannot run {argv[0]}: {err.strerror}", file=sys.stderr)
        return CANNOT_RUN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
