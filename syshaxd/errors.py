"""Exceptions of the daemon. Foreign errors are mapped to these once, at the border, with the cause kept."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class SysHaxError(Exception):
    """Root of all errors the daemon raises on purpose. Its text is one sentence for a person."""


@dataclass(frozen=True)
class Problem:
    """One fault in the configuration. `line` and `column` count from 1; 0 where the fault has no place in a file."""

    message: str  # what was found, what is allowed, what to do
    file: str = ""
    line: int = 0
    column: int = 0
    key: str = ""  # dotted path, such as units.gpu.port

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: " if self.line else f"{self.file}: " if self.file else ""
        return f"{place}{self.key}: {self.message}" if self.key else f"{place}{self.message}"


class ConfigError(SysHaxError):
    """The configuration can't be used. Holds every problem found, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class DeadlineError(SysHaxError):
    """Something did not finish in time."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"{what} did not finish within {seconds:g} s")
        self.what = what
        self.seconds = seconds


class RequestError(SysHaxError):
    """A client's request ends with this HTTP status. `retry_after`: seconds; `body`: a unit's own error object to pass
    on, if any; `param`: the field at fault."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        retry_after: float | None = None,
        body: bytes = b"",
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.body = body
        self.param = param


class UnitErrorKind(enum.Enum):
    """How a unit failed. Decides whether to ask another unit, to suspect this one, or to tell the client."""

    CONNECT = "connect"  # nothing reached the unit
    RESET = "reset"  # the connection ended before the answer did
    TIMEOUT = "timeout"  # no answer within the deadline
    STALL = "stall"  # the answer began and then stood still
    STATUS = "status"  # an HTTP status other than 200
    GARBAGE = "garbage"  # an answer that is not the protocol
    REPORTED = "reported"  # an error event inside a stream
    ABORTED = "aborted"  # the unit ended the request unasked
    OWN = "own"  # the daemon could not make the call: no descriptor, memory or port was left
    GONE = "gone"  # the daemon gave the call up: the unit was stopped or replaced


class UnitError(SysHaxError):
    """A call to a unit failed. `status` is the HTTP status (0: none), `body` the unit's own error text."""

    def __init__(self, unit: str, kind: UnitErrorKind, message: str, *, status: int = 0, body: bytes = b"") -> None:
        super().__init__(f"unit {unit}: {message}")
        self.unit = unit
        self.kind = kind
        self.status = status
        self.body = body

    @property
    def client_fault(self) -> bool:
        """Whether the unit refused the request itself (4xx), so that another unit would refuse it as well."""
        answered = self.kind in (UnitErrorKind.STATUS, UnitErrorKind.REPORTED)
        return answered and 400 <= self.status < 500 and self.status not in (401, 403, 404, 408, 429)

    @property
    def blames_unit(self) -> bool:
        """Whether it says anything about the unit's health."""
        return not self.client_fault and self.kind not in (UnitErrorKind.GONE, UnitErrorKind.OWN)


class BackendError(SysHaxError):
    """Starting, stopping or looking at a unit's process or container failed."""

    passing = False  # the unit is not at fault: it is tried again for as long as this lasts


class ControlError(SysHaxError):
    """A control request can't be served; `status` is the HTTP status of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
