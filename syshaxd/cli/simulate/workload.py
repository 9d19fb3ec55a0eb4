"""Requests of a simulation: from a trace file, or from the daemon's own access log."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Mapping, Sequence

from syshaxd.errors import SysHaxError
from syshaxd.model.request import Tier


class TraceError(SysHaxError):
    """The trace can't be read; says which line and what was expected."""


@dataclass(frozen=True)
class Arrival:
    """One request: seconds since the start, tokens in and out."""

    at: float
    prompt: int
    output: int
    tier: Tier


@dataclass(frozen=True)
class Demand:
    """How a trace is used. `rate` in requests/s; longer requests than `longest` tokens are left out."""

    rate: float
    count: int
    longest: int = 8192
    flex_share: float = 0.5
    skip: int = 0
    seed: int = 0


def read_trace(path: Path) -> list[tuple[float, int, int]]:
    """(seconds, prompt tokens, output tokens) of a CSV with columns t_s,input,output or of a JSON-lines access log."""
    try:
        with path.open(encoding="utf-8") as lines:
            rows = list(_from_log(path, lines) if path.suffix in (".jsonl", ".log") else _from_csv(path, lines))
    except OSError as error:
        raise TraceError(f"{path}: can't be read: {error.strerror}") from error
    if len(rows) < 2:
        raise TraceError(f"{path}: expected at least 2 requests, found {len(rows)}")
    return rows


def _from_csv(path: Path, lines: Iterator[str]) -> Iterator[tuple[float, int, int]]:
    for number, row in enumerate(csv.DictReader(line for line in lines if not line.startswith("#")), start=2):
        try:
            yield float(row["t_s"]), int(row["input"]), int(row["output"])
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"{path}:{number}: expected the columns t_s,input,output with numbers") from error


def _from_log(path: Path, lines: Iterator[str]) -> Iterator[tuple[float, int, int]]:
    for number, line in enumerate(lines, start=1):
        try:
            row: Mapping[str, float] = json.loads(line)
            yield float(row["time"]), int(row["prompt_tokens"]), int(row["completion_tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(
                f"{path}:{number}: expected a JSON object with time, prompt_tokens and completion_tokens"
            ) from error


def arrivals(rows: Sequence[tuple[float, int, int]], demand: Demand) -> list[Arrival]:
    """The first `count` fitting rows, their times stretched so that the mean rate is `rate`; tiers drawn by seed."""
    fitting = [row for row in rows[demand.skip :] if row[1] + row[2] <= demand.longest and row[2] > 0][: demand.count]
    if len(fitting) < 2:
        raise TraceError(f"expected at least 2 requests of at most {demand.longest} tokens, found {len(fitting)}")
    start, span = fitting[0][0], max(1e-9, fitting[-1][0] - fitting[0][0])
    stretch = (len(fitting) / span) / demand.rate
    draw = random.Random(demand.seed)
    return [
        Arrival(
            (at - start) * stretch, prompt, output, Tier.FLEX if draw.random() < demand.flex_share else Tier.DEFAULT
        )
        for at, prompt, output in fitting
    ]
