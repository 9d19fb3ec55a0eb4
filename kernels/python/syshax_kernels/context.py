"""A context of the native core: an instruction set and a team of pinned threads."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from syshax_kernels.library import Library, Prototypes

_u32 = ctypes.c_uint32


class _ContextArgs(ctypes.Structure):
    _fields_ = [
        ("size", _u32),
        ("n_threads", _u32),
        ("cpus", ctypes.POINTER(ctypes.c_int32)),
        ("isa", ctypes.c_char_p),
        ("spin_us", _u32),
        ("nrc", _u32),
    ]


class _ContextInfo(ctypes.Structure):
    _fields_ = [
        ("size", _u32),
        ("n_threads", _u32),
        ("n_pinned", _u32),
        ("n_nodes", _u32),
        ("isa", ctypes.c_char * 16),
        ("nrc", _u32),
        ("n_unbound", _u32),
    ]


_PROTOTYPES: Prototypes = {
    "sx_context_create": [ctypes.POINTER(_ContextArgs), ctypes.POINTER(ctypes.c_void_p)],
    "sx_context_describe": [ctypes.c_void_p, ctypes.POINTER(_ContextInfo)],
    "sx_isa_list": [ctypes.c_char_p, ctypes.c_size_t],
}


@dataclass(frozen=True)
class ContextInfo:
    """What a context really runs with; `pinned` below `threads` means that binding was refused by the system."""

    threads: int
    pinned: int
    nodes: int
    isa: str
    nrc: int
    unbound: int = 0  # ranges of weights or KV that the system refused to bind to their node


def available_isas(library: Library | None = None) -> list[str]:
    """Names of the instruction sets this CPU and build can run, best first."""
    lib = library or Library()
    lib.declare(_PROTOTYPES)
    names = ctypes.create_string_buffer(128)
    lib.check(lib.calls.sx_isa_list(names, len(names)))
    return names.value.decode().split(",")


class Context:
    """Owns the threads. Close it after every Model and Matrix made with it."""

    def __init__(
        self,
        threads: int = 1,
        cpus: Sequence[int] | None = None,
        isa: str | None = None,
        nrc: int = 0,
        spin_us: int = 50,
        library: Library | None = None,
    ) -> None:
        """Starts `threads` - 1 threads; the calling thread of each operation is one more.

        cpus: one CPU number a thread, or None: not pinned. isa: None takes SYSHAX_ISA, then the best of this CPU.
        nrc: weight rows of a tile step (16 or 32), 0: the instruction set's default. spin_us: at most 50.
        Raises KernelError for values out of range, UnsupportedError for an `isa` this CPU can't run.
        """
        if cpus is not None and len(cpus) != threads:
            raise ValueError(f"cpus: expected one for each of {threads} threads, got {len(cpus)}")
        self.library = library or Library()
        self.library.declare(_PROTOTYPES)
        self.library.calls.sx_context_destroy.argtypes = [ctypes.c_void_p]
        self.library.calls.sx_context_destroy.restype = None
        name = isa or os.environ.get("SYSHAX_ISA") or None
        numbers = (ctypes.c_int32 * threads)(*cpus) if cpus is not None else None
        args = _ContextArgs(
            ctypes.sizeof(_ContextArgs), threads, numbers, name.encode() if name else None, spin_us, nrc
        )
        self._handle = ctypes.c_void_p()
        self.library.check(self.library.calls.sx_context_create(ctypes.byref(args), ctypes.byref(self._handle)))

    @property
    def handle(self) -> ctypes.c_void_p:
        """The sx_context; raises ValueError once closed."""
        if not self._handle:
            raise ValueError("the context is closed")
        return self._handle

    def describe(self) -> ContextInfo:
        """What was asked for and what the system granted."""
        info = _ContextInfo(ctypes.sizeof(_ContextInfo))
        self.library.check(self.library.calls.sx_context_describe(self.handle, ctypes.byref(info)))
        return ContextInfo(info.n_threads, info.n_pinned, info.n_nodes, info.isa.decode(), info.nrc, info.n_unbound)

    def close(self) -> None:
        """Ends the threads. May be called twice."""
        if self._handle:
            self.library.calls.sx_context_destroy(self._handle)
            self._handle = ctypes.c_void_p()

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
