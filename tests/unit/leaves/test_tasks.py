"""Deadlines and task sets keep their word about cancellation and failures."""

from __future__ import annotations

import asyncio

import pytest

from syshaxd.errors import DeadlineError
from syshaxd.tasks import TaskSet, within


async def test_result_in_time() -> None:
    async def answer() -> int:
        return 42

    assert await within(5.0, "answer", answer()) == 42


async def test_too_late_is_cancelled_and_named() -> None:
    ended = asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(DeadlineError, match="reading did not finish within 0.01 s"):
        await within(0.01, "reading", hang())
    assert ended.is_set()


async def test_cancellation_reaches_the_caller_even_when_the_result_is_there() -> None:
    inner: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    caller = asyncio.ensure_future(within(5.0, "result", inner))
    await asyncio.sleep(0)
    inner.set_result(1)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_errors_of_the_work_pass_through() -> None:
    async def fail() -> None:
        raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was"):
        await within(5.0, "work", fail())


async def test_failed_task_is_reported_with_its_name() -> None:
    failures: list[tuple[str, str]] = []
    reported = asyncio.Event()

    def report(name: str, error: BaseException) -> None:
        failures.append((name, str(error)))
        reported.set()

    async def fail() -> None:
        raise ValueError("broken")

    tasks = TaskSet("engine", report)
    tasks.start("reload", fail())
    await asyncio.wait_for(reported.wait(), 5)
    assert failures == [("engine.reload", "broken")]
    assert len(tasks) == 0


async def test_close_cancels_everything_and_names_what_stays() -> None:
    release = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await release.wait()

    async def polite() -> None:
        await asyncio.Event().wait()

    tasks = TaskSet("runner", lambda name, error: None)
    tasks.start("polite", polite())
    left = tasks.start("stubborn", stubborn())
    await asyncio.sleep(0)
    assert await tasks.close(timeout=0.05) == ("stubborn",)
    release.set()
    await left


async def test_tasks_that_end_soon_are_let_end() -> None:
    ended: list[str] = []

    async def short() -> None:
        await asyncio.sleep(0)
        ended.append("short")

    tasks = TaskSet("runner", lambda name, error: None)
    tasks.start("short", short())
    tasks.start("endless", asyncio.Event().wait())
    await tasks.settle(timeout=0.05)
    assert ended == ["short"] and len(tasks) == 1
    assert await tasks.close() == ()
