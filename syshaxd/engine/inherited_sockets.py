"""Sockets that the service manager opened for us: sd_listen_fds(3). They outlive the daemon, so nobody is refused."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping

from syshaxd.errors import SysHaxError

FIRST_FD = 3
NAMES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


def inherited_sockets(environ: MutableMapping[str, str], first: int = FIRST_FD) -> tuple[socket.socket, ...]:
    """The listening sockets given to this process, and the variables removed. Raises SysHaxError for anything else."""
    count, pid = environ.get("LISTEN_FDS", ""), environ.get("LISTEN_PID", "")
    for name in NAMES:
        environ.pop(name, None)
    if not count.isdigit() or pid != str(os.getpid()):
        return ()
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(_adopt(first + index)) for index in range(int(count))]
        opened.pop_all()
        return tuple(sockets)


def _adopt(descriptor: int) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        adopted = socket.socket(fileno=descriptor)
    except OSError as err:
        raise SysHaxError(f"LISTEN_FDS names descriptor {descriptor}, which is no socket: {err.strerror}") from err
    if adopted.type != socket.SOCK_STREAM or not adopted.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        adopted.detach()
        raise SysHaxError(f"descriptor {descriptor} of LISTEN_FDS does not listen; expected ListenStream= in the unit")
    return adopted
