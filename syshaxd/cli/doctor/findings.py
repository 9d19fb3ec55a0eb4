"""One finding of the doctor."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.IntEnum):
    """How bad it is. An error keeps a unit from running."""

    OK = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True)
class Finding:
    """`subject`: what was looked at; `advice`: what to do, "" where all is well."""

    level: Level
    subject: str
    found: str
    advice: str = ""


def good(subject: str, found: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, subject, found)


def warning(subject: str, found: str, advice: str) -> Finding:
    """It will do, but not well."""
    return Finding(Level.WARNING, subject, found, advice)


def error(subject: str, found: str, advice: str) -> Finding:
    """A unit can't run like this."""
    return Finding(Level.ERROR, subject, found, advice)
