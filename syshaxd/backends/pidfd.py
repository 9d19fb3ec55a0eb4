"""The end of a process that is not our child, without asking anybody again and again (pidfd_open(2))."""

from __future__ import annotations

import asyncio
import os
import select


def has_ended(pid: int) -> bool:
    """Whether it is gone, or only waits for its parent to notice."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(descriptor)


async def process_end(pid: int) -> None:
    """Until that process has ended. Returns at once for 0 and below."""
    if pid <= 0:
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
