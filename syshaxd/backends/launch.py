"""Becomes a unit: binds itself to CPUs and memory nodes, makes sure to die with the daemon, then runs its program.

Run as a file by a bare interpreter (`python -I -S launch.py PARENT_PID CPUS NODES COMMAND...`), so that binding and the
death signal are in force before the unit's first instruction, which a change from outside could not promise.
Imports nothing of the daemon.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)
MPOL_BIND = 2  # set_mempolicy(2); kept over execve
SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
MOST_NODES = 1024
CANNOT_RUN = 127


def main(arguments: list[str]) -> int:
    """Does not return where the command can be run."""
    parent, cpus, nodes, *command = arguments
    if int(parent):
        _die_with(int(parent))
    try:
        if cpus:
            os.sched_setaffinity(0, [int(cpu) for cpu in cpus.split(",")])
    except OSError as err:
        print(f"cannot bind to CPUs {cpus}: {err.strerror}; are they online and in the cpuset?", file=sys.stderr)
        return CANNOT_RUN
    if nodes:
        _take_memory_from([int(node) for node in nodes.split(",")])
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


def _take_memory_from(nodes: list[int]) -> None:
    """The unit runs without it, too, if more slowly: a refusal is one line in its log."""
    mask = (ctypes.c_ulong * (MOST_NODES // 64))()
    for node in nodes:
        mask[node // 64] |= 1 << node % 64
    number = SET_MEMPOLICY.get(os.uname().machine)
    library = ctypes.CDLL(None, use_errno=True)
    if number is None or library.syscall(number, MPOL_BIND, mask, MOST_NODES + 1) != 0:
        reason = os.strerror(ctypes.get_errno()) if number is not None else "not known on this architecture"
        print(f"memory is not bound to nodes {nodes}: set_mempolicy: {reason}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
