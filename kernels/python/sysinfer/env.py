"""The only reader of the process environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sysinfer.engine_errors import SetupError

_RANGE = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
MAX_CPU = 4096


@dataclass(frozen=True)
class Environment:
    """What the variables say; None or empty where they are not set."""

    threads: int | None = None  # OMP_NUM_THREADS
    cpus: tuple[int, ...] = ()  # CUSTOM_CPU_AFFINITY (auto: all of this process), else GOMP_CPU_AFFINITY
    nrc: int = 0  # NRC: weight rows a tile step; 0: the core's choice
    quantize: str = ""  # SYSHAX_QUANTIZE: q8_0 or q4_0
    packed_cache: str = ""  # SYSHAX_PACKED_CACHE: folder of packed weights
    pool_dir: str = ""
    pool_name: str = ""
    pool_bytes: int = 0


def parse_cpus(text: str, name: str) -> tuple[int, ...]:
    """CPU numbers of a list as libgomp takes it: `0-3,8`, `0 2 4`, `0-14:2`. Raises SetupError naming `name`."""
    cpus: list[int] = []
    for part in re.split(r"[\s,]+", text.strip()):
        match = _RANGE.fullmatch(part)
        first, last, step = (int(g) if g else None for g in match.groups()) if match else (None, None, None)
        if first is None or (last or first) >= MAX_CPU or step == 0 or (last is not None and last < first):
            raise SetupError(f"{name}: {part!r} in {text!r}, expected CPU numbers and ranges such as 0-3,8 or 0-14:2")
        cpus.extend(range(first, (first if last is None else last) + 1, step or 1))
    if len(set(cpus)) != len(cpus):
        raise SetupError(f"{name}: {text!r} names a CPU twice")
    return tuple(cpus)


def _number(values: Mapping[str, str], name: str, least: int) -> int | None:
    text = values.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < least:
        raise SetupError(f"{name} is {text!r}, expected a whole number from {least}")
    return int(text)


def read_environment(values: Mapping[str, str]) -> Environment:
    """Reads the variables this engine obeys; raises SetupError for a value that makes no sense."""
    quantize = values.get("SYSHAX_QUANTIZE", "").strip().lower()
    if quantize not in ("", "q8_0", "q4_0"):
        raise SetupError(f"SYSHAX_QUANTIZE is {quantize!r}, expected q8_0 or q4_0")
    cpus: tuple[int, ...] = ()
    for name in ("CUSTOM_CPU_AFFINITY", "GOMP_CPU_AFFINITY"):
        text = values.get(name, "").strip()
        if text and text != "auto" and not cpus:
            cpus = parse_cpus(text, name)
    if not cpus and values.get("CUSTOM_CPU_AFFINITY", "").strip() == "auto":
        cpus = tuple(sorted(os.sched_getaffinity(0)))
    return Environment(
        threads=_number(values, "OMP_NUM_THREADS", 1), cpus=cpus, nrc=_number(values, "NRC", 0) or 0,
        quantize=quantize, packed_cache=values.get("SYSHAX_PACKED_CACHE", "").strip(),
        pool_dir=values.get("SYSHAX_POOL_DIR", ""), pool_name=values.get("SYSHAX_POOL_NAME", ""),
        pool_bytes=_number(values, "SYSHAX_POOL_BYTES", 0) or 0,
    )  # fmt: skip
