"""The router benchmark's own programs, and the daemon between them: every token arrives, in its stream, in order."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.router import contenders
from testbed.processes import ROOT

STREAMS, RATE = 12, 40.0


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Client and fake unit, built."""
    folder = tmp_path_factory.mktemp("router")
    for part in ("fake_unit", "client"):
        command = ["g++", "-O1", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"bench/router/{part}.cpp"]
        subprocess.run([*command, "-o", str(folder / part)], cwd=ROOT, check=True, timeout=120)
    return folder


@pytest.fixture
def unit(programs: Path, tmp_path: Path) -> Iterator[int]:
    """The fake unit's port."""
    port, log = contenders.free_port(), tmp_path / "unit.log"
    with contenders.process([str(programs / "fake_unit"), str(port)], 0, log, "") as child:
        contenders.wait_until_it_answers(child, port, log, "")
        yield port


def load(programs: Path, port: int) -> dict[str, float]:
    """What the client saw."""
    numbers = (port, STREAMS, RATE, 0.2, 0.5, 0.3)
    command = [str(programs / "client"), *map(str, numbers), "-", contenders.MODEL]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def all_came(found: dict[str, float]) -> bool:
    """Nothing lost, mixed, refused or cut."""
    return found["whole"] >= STREAMS and not any(
        found[name] for name in ("lost", "mixed", "refused", "failed", "unfinished")
    )


def test_direct(programs: Path, unit: int) -> None:
    found = load(programs, unit)
    assert all_came(found), found
    assert 0 < found["chunks_per_s"] and found["transit_p99_ms"] >= found["transit_p50_ms"] >= 0


@pytest.mark.parametrize("contender", [c for c in contenders.CONTENDERS if c.program == sys.executable])
def test_through_the_daemon(programs: Path, unit: int, tmp_path: Path, contender: contenders.Contender) -> None:
    place = contenders.Place(tmp_path, contenders.free_port(), unit, tmp_path)
    log = tmp_path / "daemon.log"
    with contenders.process(contender.command(place), 0, log, "") as child:
        contenders.wait_until_it_answers(child, place.port, log, "")
        found = load(programs, place.port)
    assert all_came(found), (found, log.read_text()[-2000:])
