"""Named, owned tasks and deadlines, alike on every Python from 3.9 on (no TaskGroup, no asyncio.timeout there)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, Callable, TypeVar

from syshaxd.errors import DeadlineError

T = TypeVar("T")
OnFailure = Callable[[str, BaseException], None]


async def within(seconds: float | None, what: str, awaitable: Awaitable[T]) -> T:
    """Await it for at most `seconds` (None: no limit); then cancel it, wait for its end, raise DeadlineError.

    asyncio.wait_for of Python 3.9 loses a cancellation that meets the result; asyncio.wait does not.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        await cancelled(task)
        raise
    if not done:
        await cancelled(task)
        if task.cancelled() or task.exception() is not None:
            raise DeadlineError(what, seconds or 0.0) from (None if task.cancelled() else task.exception())
    return task.result()


async def cancelled(task: "asyncio.Future[Any]") -> None:
    """Cancel and wait until it has ended, however it ends."""
    task.cancel()
    await asyncio.wait({task})


async def put_down(process: asyncio.subprocess.Process, timeout: float = 2.0) -> None:
    """Kill a helper program and read its pipes to their end, so that nothing of it is left in the loop."""
    try:
        process.kill()
    except ProcessLookupError:
        pass
    try:
        await within(timeout, "end of a killed program", process.communicate())
    except DeadlineError:
        return  # a child of its own holds the pipe; it is not ours to kill


class TaskSet:
    """Tasks of one owner. A task that fails is reported once through `on_failure(name, error)`, never lost."""

    def __init__(self, owner: str, on_failure: OnFailure) -> None:
        self._owner = owner
        self._on_failure = on_failure
        self._tasks: dict[asyncio.Task[Any], str] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine as task `owner.name`."""
        task = asyncio.get_running_loop().create_task(work, name=f"{self._owner}.{name}")
        self._tasks[task] = name
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        name = self._tasks.pop(task)
        if not task.cancelled() and task.exception() is not None:
            self._on_failure(f"{self._owner}.{name}", task.exception() or RuntimeError("no exception"))

    async def settle(self, timeout: float) -> None:
        """Let those that run come to their own ends."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=timeout)

    async def close(self, timeout: float = 5.0) -> tuple[str, ...]:
        """Cancel all and wait for their ends; returns the names of those that did not end in time."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=timeout)
        return tuple(self._tasks.values())
