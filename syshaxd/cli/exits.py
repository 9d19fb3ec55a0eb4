"""Exit codes, as docs/cli.md lists them (numbers of sysexits.h where it has one)."""

from __future__ import annotations

OK = 0
FAILURE = 1
USAGE = 2
UNREACHABLE = 69  # EX_UNAVAILABLE
CONFIG = 78  # EX_CONFIG


class CommandError(Exception):
    """A verb can't do what it was asked. The text is one line for a person."""

    def __init__(self, message: str, code: int = FAILURE) -> None:
        super().__init__(message)
        self.code = code


def code_of(err: Exception) -> int:
    """The exit code an error stands for."""
    if isinstance(err, CommandError):
        return err.code
    from syshaxd.errors import ConfigError

    return CONFIG if isinstance(err, ConfigError) else FAILURE
