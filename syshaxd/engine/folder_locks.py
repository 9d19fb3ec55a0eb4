"""A daemon's folders are its own: two daemons in one pool folder or state folder would spoil each other's files."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from syshaxd.errors import SysHaxError


class FolderLocks:
    """Holds folders (flock(2) on the folder itself, so that nothing is left in it). Ends with the process."""

    def __init__(self) -> None:
        self._held = ExitStack()

    def take(self, folders: Mapping[str, str]) -> None:
        """`folders`: key of the configuration and path; one that is missing is made. Raises SysHaxError, holding none,
        where another daemon has one, or where it can't be opened."""
        with ExitStack() as stack:
            for key, folder in folders.items():
                stack.enter_context(_locked(key, folder))
            self._held = stack.pop_all()

    async def release(self) -> None:
        """Let them go."""
        self._held.close()


@contextmanager
def _locked(key: str, folder: str) -> Iterator[None]:
    try:
        os.makedirs(folder, mode=0o2770 if key == "pd.pool_dir" else 0o700, exist_ok=True)
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise SysHaxError(f"{key}: cannot use {folder}: {err.strerror}") from err
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        os.close(opened)
        raise SysHaxError(f"{key}: another daemon uses {folder}; give each its own, or stop that one") from err
    except OSError:  # a file system without locks: nothing is promised there
        os.close(opened)
        yield
        return
    try:
        yield
    finally:
        os.close(opened)
