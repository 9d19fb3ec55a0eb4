"""Becomes a unit that systemd runs: reads what to run from a file the daemon wrote, and has launch.py do it.

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
        argv, env = spec["argv"], spec["env"]
        cpus, nodes = (",".join(map(str, spec[name])) for name in ("cpus", "memory_nodes"))
    except (OSError, ValueError, KeyError, TypeError) as err:
        print(f"{arguments[0]}: {err!r}; syshaxd writes this file before it starts the unit", file=sys.stderr)
        return CANNOT_RUN
    launcher = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launch.py")
    os.execve(sys.executable, [sys.executable, "-I", "-S", launcher, "0", cpus, nodes, *argv], env)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
