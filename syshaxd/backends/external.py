"""Units that somebody else runs: the daemon talks to them, and neither starts nor stops them."""

from __future__ import annotations

import asyncio

from .backend import Adopted, Capabilities, Exit, LaunchSpec, OnLine, Running


class ExternalBackend:
    """Backend for kind `external`."""

    capabilities = Capabilities(survives_daemon=True)

    async def start(self, spec: LaunchSpec, on_line: OnLine) -> Running:
        """Begin to use it."""
        return ExternalUnit()

    async def adopt(self, spec: LaunchSpec, on_line: OnLine) -> Adopted | None:
        """The same as start."""
        return Adopted(ExternalUnit(), spec.url)

    async def close(self) -> None:
        """Holds nothing."""


class ExternalUnit:
    """Running, for a unit whose life is not ours: it "ends" when we let go of it."""

    container = ""
    pid: int | None = None

    def __init__(self) -> None:
        self._let_go = asyncio.Event()

    async def wait(self) -> Exit:
        """See Running."""
        await self._let_go.wait()
        return Exit(0, asked=True)

    async def stop(self, grace: float) -> Exit:
        """See Running."""
        self._let_go.set()
        return Exit(0, asked=True)

    async def kill(self) -> Exit:
        """See Running."""
        return await self.stop(0)

    def activity(self) -> int | None:
        """Unknown."""
        return None

    async def release(self) -> None:
        """See Running."""
        self._let_go.set()
