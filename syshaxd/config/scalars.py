"""What an unquoted YAML value means here: the part of YAML 1.2's core schema on which YAML 1.1 readers agree.

What the two versions read differently (yes, 010, 1:30) is refused, so that a file means what it seems to say.
Sources: https://yaml.org/spec/1.2.2/#103-core-schema, https://yaml.org/type/ (1.1).
"""

from __future__ import annotations

import math
import re

from .nodes import Value

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_OLD_BOOL = re.compile(r"(?i)yes|no|on|off|y|n")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_SIXTY = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_ZERO = re.compile(r"[-+]?0[0-9_]+")
_SPECIAL = re.compile(r"(?i)[-+]?\.(inf|nan)")


class AmbiguousError(ValueError):
    """A value that YAML readers disagree about. The text says what to write instead."""


def resolve(text: str) -> Value:
    """The value of an unquoted scalar. AmbiguousError where it must be quoted or written otherwise."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    _refuse(text)
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return _number(text)
    return text


def _refuse(text: str) -> None:
    if _OLD_BOOL.fullmatch(text):
        better = "true" if text.lower() in ("yes", "on", "y") else "false"
        raise AmbiguousError(f"{text} without quotes; write {better}, or '{text}' in quotes if the word is meant")
    if _SIXTY.fullmatch(text):
        raise AmbiguousError(f"{text} without quotes, which YAML 1.1 reads as a number to base 60; put it in quotes")
    if _ZERO.fullmatch(text):
        raise AmbiguousError(f"{text}, which YAML 1.1 reads as an octal number; drop the leading zero or quote it")
    if _SPECIAL.fullmatch(text):
        raise AmbiguousError(f"{text}, which is no finite number; write a number, or quote the word")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or len(text) > 40:
        raise AmbiguousError(f"{text[:40]}, a number too large to be meant; write a smaller one, or quote it")
    return value
