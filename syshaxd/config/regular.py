"""Reading a file that a person names: never a pipe or a device, which could keep the reader for ever."""

from __future__ import annotations

import errno
import os
import stat

MOST_BYTES = 16 * 1024 * 1024


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """What a regular file holds. Raises OSError for anything else, and for more than 16 MiB."""
    return _read(path)[0]


def read_secret(path: str) -> str:
    """The text of a file that only its owner and group may read, without a byte order mark. Raises OSError or
    ValueError with what to do."""
    data, mode = _read(path)
    if stat.S_IMODE(mode) & 0o007:
        raise ValueError(f"it is open to everybody (mode {stat.S_IMODE(mode):04o}); chmod 0640 {path}")
    return data.decode("utf-8-sig")


def _read(path: str | os.PathLike[str]) -> tuple[bytes, int]:
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with os.fdopen(opened, "rb") as file:
        found = os.fstat(opened)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if found.st_size > MOST_BYTES:
            raise OSError(errno.EFBIG, f"it is larger than {MOST_BYTES >> 20} MiB")
        return file.read(MOST_BYTES), found.st_mode
