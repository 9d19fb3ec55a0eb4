"""Loads libsyshax_kernels.so and declares its calls.

Each header of kernels/include/syshax has one family of prototypes, a mapping from call name to argument types, kept
beside the code that uses it and declared by `Library.declare`. `Library.check` turns a status into an exception.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from syshax_kernels.kernel_errors import KernelError, error_for

ABI_VERSION = 2
FILE_NAME = "libsyshax_kernels.so"

Prototypes = Mapping[str, Sequence[Any]]
"""Call name to argument types; each such call returns an sx_status."""


class Library:
    """The loaded native core."""

    def __init__(self, path: os.PathLike[str] | None = None) -> None:
        """Loads `path`, by default the library beside this module.

        Raises KernelError when it is missing, can't be loaded, or speaks another ABI version.
        """
        self.path = Path(path) if path is not None else Path(__file__).with_name(FILE_NAME)
        self.calls = _load(self.path)
        self.calls.sx_abi_version.restype = ctypes.c_uint32
        for name in ("sx_status_name", "sx_last_error"):
            getattr(self.calls, name).restype = ctypes.c_char_p
        self.calls.sx_status_name.argtypes = [ctypes.c_int32]
        found = self.calls.sx_abi_version()
        if found != ABI_VERSION:
            raise KernelError(f"{self.path}: ABI version {found}, expected {ABI_VERSION}; run `make native`", -11)

    def declare(self, prototypes: Prototypes) -> None:
        """Sets the argument types of every call in `prototypes`; all of them return a status."""
        for name, arguments in prototypes.items():
            call = getattr(self.calls, name)
            call.argtypes = list(arguments)
            call.restype = ctypes.c_int32

    def check(self, status: int) -> None:
        """Raises the exception of a failing `status`, with the native core's own text."""
        if status != 0:
            name = self.calls.sx_status_name(status).decode()
            text = self.calls.sx_last_error().decode(errors="replace")
            raise error_for(status, f"{text} ({name})")


def _load(path: Path) -> Any:
    if not path.exists():
        raise KernelError(f"{path} is missing: build the native core with `make native`", -5)
    try:
        return ctypes.CDLL(str(path))
    except OSError as err:
        raise KernelError(f"{path} can't be loaded ({err}); rebuild it with `make native`", -5) from err
