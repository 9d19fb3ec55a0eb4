"""Becomes a unit: binds itself to CPUs, makes sure to die with the daemon, then runs the unit's program in its place.

Run as a file by a bare interpreter (`python -I -S launch.py PARENT_PID CPUS COMMAND...`), so that binding and the
death signal are in force before the unit's first instruction, which a change from outside could not promise.
Imports nothing of the daemon.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)
CANNOT_RUN = 127


def main(arguments: list[str]) -> int:
    """Does not return where the command can be run."""
    parent, cpus, *command = arguments
    if int(parent):
        _die_with(int(parent))
    if cpus:
        os.sched_setaffinity(0, [int(cpu) for cpu in cpus.split(",")])
    try:
        os.execvp(command[0], command)
    except OSError as err:
        print(f"cannot run {command[0]}: {err.strerror}", file=sys.stderr)
        return CANNOT_RUN


def _die_with(parent: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the call above
        sys.exit(CANNOT_RUN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
