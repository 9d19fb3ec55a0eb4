"""Listening sockets: opened new before the old ones close, or inherited from the service manager."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from typing import Callable

from syshaxd.errors import SysHaxError

BACKLOG = 1024
AT_ONCE = 64  # connections accepted in one turn of the loop: so many are there before the first is counted
Factory = Callable[[], asyncio.BaseProtocol]


class Listeners:
    """Servers over one aiohttp protocol factory. Closing one leaves its connections alone, in every aiohttp version."""

    def __init__(self, factory: Factory) -> None:
        self._factory = factory
        self._servers: list[asyncio.AbstractServer] = []
        self._place: tuple[str, int] = ("", -1)

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port of every socket listened on."""
        sockets = (sock for server in self._servers for sock in getattr(server, "sockets", ()) or ())
        return tuple(sock.getsockname()[:2] for sock in sockets)

    async def inherit(self, sockets: Sequence[socket.socket]) -> None:
        """Listens on sockets that outlive this process."""
        loop = asyncio.get_running_loop()
        for sock in sockets:
            sock.setblocking(False)
            self._servers.append(await loop.create_server(self._factory, sock=sock, backlog=AT_ONCE))
            sock.listen(BACKLOG)

    async def listen(self, host: str, port: int) -> None:
        """Listens there, and only there; raises SysHaxError, and nothing has changed, when that is impossible."""
        if (host, port) == self._place:
            return
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(self._factory, host, port, backlog=AT_ONCE, reuse_address=True)
            for listening in server.sockets:
                with socket.socket(fileno=os.dup(listening.fileno())) as sock:
                    sock.listen(BACKLOG)  # asyncio takes one number for the queue and for what it accepts at once
        except OSError as err:
            raise SysHaxError(f"services.conductor: cannot listen on {host}:{port}: {err.strerror or err}") from err
        self.close()
        self._servers.append(server)
        self._place = (host, port)

    def close(self) -> None:
        """Accepts no more connections."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        self._place = ("", -1)
