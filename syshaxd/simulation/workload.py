"""Requests of a simulation: from a trace file, or from the daemon's own access log."""

from __future__ import annotations

import csv
import json
import random
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Callable, NamedTuple

from syshaxd.errors import SysHaxError
from syshaxd.model.request import Tier

STDIN = "-"
_VALUE = re.compile(r'(\w+)=("[^"]*"|\S+)')  # of a log line, as syshaxd.log writes it
_PREFIX = "syshax_"  # of the journal's fields


class TraceError(SysHaxError):
    """The trace can't be read; says which line and what was expected."""


class Row(NamedTuple):
    """One request of a trace: seconds, tokens in and out, its tier where the trace tells."""

    at: float
    prompt: int
    output: int
    tier: Tier | None = None


@dataclass(frozen=True)
class Arrival:
    """One request: seconds since the start, tokens in and out."""

    at: float
    prompt: int
    output: int
    tier: Tier


@dataclass(frozen=True)
class Demand:
    """How a trace is used. `rate` in requests/s (None: as in the trace); longer requests than `longest` tokens are
    left out; `flex_share`: of requests whose tier the trace does not tell."""

    rate: float | None
    count: int
    longest: int = 8192
    flex_share: float = 0.5
    skip: int = 0
    seed: int = 0


def read_trace(path: Path, note: Callable[[str], None] = lambda text: None) -> list[Row]:
    """A CSV with columns t_s,input,output, or an access log: lines of the daemon's log, or of `journalctl -o json`.

    `note` is told how many lines of a log were no request that was served."""
    try:
        with _opened(path) as lines:
            rows = list(_from_csv(path, lines)) if path.suffix == ".csv" else _from_log(lines, note)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from error
    if len(rows) < 2:
        form = "" if path.suffix == ".csv" else " (log lines with arrived, prompt_tokens and output_tokens)"
        raise TraceError(f"{path}: expected at least 2 requests{form}, found {len(rows)}")
    return rows


@contextmanager
def _opened(path: Path) -> Iterator[Iterable[str]]:
    if str(path) == STDIN:
        yield sys.stdin
        return
    with path.open(encoding="utf-8", errors="strict" if path.suffix == ".csv" else "replace") as lines:
        yield lines


def _from_csv(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    for number, row in enumerate(csv.DictReader(line for line in lines if not line.startswith("#")), start=2):
        try:
            yield Row(float(row["t_s"]), int(row["input"]), int(row["output"]))
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"{path}:{number}: expected the columns t_s,input,output with numbers") from error


def _from_log(lines: Iterable[str], note: Callable[[str], None]) -> list[Row]:
    """Requests in the order of their arrival; a log holds them in the order of their end, among other lines."""
    rows: list[Row] = []
    others = 0
    for line in lines:
        row = _row(_values(line))
        if row is None:
            others += bool(line.strip())
        else:
            rows.append(row)
    if others:
        note(f"{others} lines of the log are no request that was served, {len(rows)} are")
    return sorted(rows, key=lambda row: row.at)


def _values(line: str) -> Mapping[str, object]:
    """Named values of a log line, of a JSON object, or of a journal's entry as JSON."""
    if not line.lstrip().startswith("{"):
        return {name: value.strip('"') for name, value in _VALUE.findall(line)}
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return {name.lower()[len(_PREFIX) * name.lower().startswith(_PREFIX) :]: value for name, value in found.items()}


def _row(values: Mapping[str, object]) -> Row | None:
    try:
        row = Row(_time(values), int(str(values["prompt_tokens"])), _output(values), _tier(values))
    except (KeyError, ValueError, OverflowError):
        return None
    return row if row.prompt > 0 and row.output > 0 else None


def _time(values: Mapping[str, object]) -> float:
    if "arrived" in values:
        return datetime.fromisoformat(str(values["arrived"])).timestamp()
    at = float(str(values["time"]))
    if not abs(at) < 1e12:
        raise ValueError("no time")
    return at


def _output(values: Mapping[str, object]) -> int:
    return int(str(values["output_tokens" if "output_tokens" in values else "completion_tokens"]))


def _tier(values: Mapping[str, object]) -> Tier | None:
    return Tier(values["tier"]) if "tier" in values else None


def arrivals(rows: Sequence[Row], demand: Demand) -> list[Arrival]:
    """The first `count` fitting rows, their times stretched so that the mean rate is `rate`; tiers drawn by seed."""
    fitting = [r for r in rows[demand.skip :] if r.prompt + r.output <= demand.longest and r.output > 0]
    fitting = fitting[: demand.count]
    if len(fitting) < 2:
        raise TraceError(f"expected at least 2 requests of at most {demand.longest} tokens, found {len(fitting)}")
    start, span = fitting[0].at, max(1e-9, fitting[-1].at - fitting[0].at)
    stretch = 1.0 if demand.rate is None else (len(fitting) / span) / demand.rate
    draw = random.Random(demand.seed)
    return [
        Arrival((row.at - start) * stretch, row.prompt, row.output, row.tier or _drawn(draw, demand.flex_share))
        for row in fitting
    ]


def _drawn(draw: random.Random, flex_share: float) -> Tier:
    return Tier.FLEX if draw.random() < flex_share else Tier.DEFAULT
