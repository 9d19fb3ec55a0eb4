"""Exceptions for the status codes of the native core (kernels/include/syshax/kernels.h)."""

from __future__ import annotations


class KernelError(Exception):
    """A call into the native core failed; `status` is its code, the text says what was expected and what came."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class FullError(KernelError):
    """SX_EFULL: no free chunk, ticket, token room or shared memory."""


class NotFoundError(KernelError):
    """SX_ENOTFOUND: no such ticket, or no stats written yet."""


class StaleError(KernelError):
    """SX_ESTALE: generation or state changed under the caller; what was copied must be thrown away."""


class CorruptError(KernelError):
    """SX_ECORRUPT: checksum, magic or bounds check failed."""


class BusyError(KernelError):
    """SX_EBUSY: somebody else holds it, or it is still being filled; waiting (bounded) may help."""


class MismatchError(KernelError):
    """SX_EMISMATCH: geometry or format version differs."""


class UnsupportedError(KernelError):
    """SX_EUNSUPPORTED: this machine or build can't do it."""


_BY_STATUS: dict[int, type[KernelError]] = {
    -3: UnsupportedError,
    -6: FullError,
    -7: NotFoundError,
    -8: StaleError,
    -9: CorruptError,
    -10: BusyError,
    -11: MismatchError,
}


def error_for(status: int, message: str) -> KernelError:
    """The exception for a failing `status`; codes callers don't tell apart are plain KernelError."""
    return _BY_STATUS.get(status, KernelError)(message, status)
