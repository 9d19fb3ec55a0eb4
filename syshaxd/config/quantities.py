"""Durations and sizes as people write them."""

from __future__ import annotations

import re

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s?(ms|s|m|min|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"(?i)([0-9]+(?:\.[0-9]+)?)\s?(b|[kmgt](?:i?b)?)")
_BYTES = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def duration(text: str) -> float:
    """ "500ms" -> 0.5, "5m" -> 300.0 (seconds). ValueError on anything else."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no duration; expected a number of seconds, or 500ms, 30s, 5m, 2h, 1d")
    return float(match[1]) * _SECONDS[match[2]]


def size(text: str) -> int:
    """ "64g" = "64GiB" = "64GB" -> 68719476736 (bytes; as podman and docker do, k is 1024). ValueError otherwise."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size; expected a number of bytes, or 512k, 16MiB, 64g")
    return int(float(match[1]) * _BYTES[match[2][0].lower()])


def format_duration(seconds: float) -> str:
    """The shortest exact form: 300 -> "5m", 0.25 -> "250ms"."""
    for unit in ("d", "h", "m", "s"):
        if seconds >= _SECONDS[unit] and seconds % _SECONDS[unit] == 0:
            return f"{int(seconds // _SECONDS[unit])}{unit}"
    millis = seconds * 1000
    return f"{millis:.0f}ms" if seconds and millis == round(millis) else f"{seconds!r}s"


def format_size(count: int) -> str:
    """The largest unit that divides it: 1073741824 -> "1GiB"."""
    for unit in ("t", "g", "m", "k"):
        if count and count % _BYTES[unit] == 0:
            return f"{count // _BYTES[unit]}{unit.upper()}iB"
    return f"{count}b"


def parse(kind: str, text: str) -> int | float:
    """`kind` as in the schema's x-unit: "duration" or "size"."""
    return duration(text) if kind == "duration" else size(text)
