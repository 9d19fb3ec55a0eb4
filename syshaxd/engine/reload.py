"""Coalesces requests for a reload: however many come while one runs, exactly one more follows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, Callable

from syshaxd.errors import SysHaxError

Result = Mapping[str, Any]


class Reloader:
    """`request` from signals and from the control socket; `run` is Engine's one reload task."""

    def __init__(self, load_and_apply: Callable[[], Awaitable[Result]]) -> None:
        self._load_and_apply = load_and_apply
        self._asked = asyncio.Event()
        self._waiting: list[asyncio.Future[Result]] = []
        self.runs = 0

    def request(self) -> None:
        """A reload shall begin after this moment; nobody waits for it."""
        self._asked.set()

    async def wait(self) -> Result:
        """The same, and its result or its error."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._asked.set()
        return await future

    async def run(self) -> None:
        """Forever. Errors that a reload may have (SysHaxError) go to those who wait; others end the task."""
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                waiting, self._waiting = self._waiting, []
                await self._once(waiting)
        finally:
            for future in self._waiting:
                future.cancel()

    async def _once(self, waiting: list[asyncio.Future[Result]]) -> None:
        self.runs += 1
        try:
            result = await self._load_and_apply()
        except SysHaxError as err:
            for future in waiting:
                if not future.done():
                    future.set_exception(err)
            return
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
        for future in waiting:
            if not future.done():
                future.set_result(result)
