"""Each step of the start registers how to undo it; the end undoes them in reverse and goes on after errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Callable

from syshaxd.errors import DeadlineError
from syshaxd.log import Log
from syshaxd.tasks import within

log = Log("engine")
Undo = Callable[[], Awaitable[Any]]


class Cleanup:
    """Owned by Engine."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, Undo, float]] = []

    def add(self, name: str, undo: Undo, timeout: float) -> None:
        """`undo` gets at most `timeout` seconds."""
        self._steps.append((name, undo, timeout))

    async def run(self) -> tuple[str, ...]:
        """Undo all; the names of the steps that failed."""
        failed = []
        while self._steps:
            name, undo, timeout = self._steps.pop()
            try:
                await within(timeout, name, undo())
            except asyncio.CancelledError:
                raise
            except DeadlineError as err:
                failed.append(name)
                log.error("a part did not stop in time", part=name, reason=str(err))
            except Exception as err:  # the end must reach every part, whatever one of them does
                failed.append(name)
                log.error("a part failed to stop", part=name, error=err)
        return tuple(failed)
