"""The native programs of the pool (kernels/tests/pool_*): conformance, stress, damage."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.kernels.pool.conftest import Build
from tests.kernels.pool.handoff import make_outbox, save


def run(program: Path, *arguments: str) -> str:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("variant", ["plain", "asan"])
def test_conformance(build: Build, variant: str, folder: Path) -> None:
    run(build(variant) / "tests" / "pool_conformance", str(folder))


def test_a_file_checks_by_the_specification_alone(build: Build, folder: Path) -> None:
    path = str(folder / "a.pool")
    with make_outbox(path) as outbox:
        for name in ("one", "two"):
            save(outbox, name, 70)
        out = run(build("plain") / "tests" / "pool_conformance", "--check", path)
    assert out == "2 tickets to take\n"


@pytest.mark.parametrize("seed", ["1", "2"])
def test_damage_never_crashes_and_never_passes(build: Build, seed: str, folder: Path) -> None:
    run(build("asan") / "tests" / "pool_fuzz", str(folder), "2000", seed)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("variant", ["tsan", "asan"])
@pytest.mark.parametrize("mode", ["patient", "hurried"])
def test_stress(build: Build, variant: str, mode: str, folder: Path) -> None:
    """Under ThreadSanitizer a consumer must have right data or a refusal, and no access may race."""
    out = run(build(variant) / "tests" / "pool_stress", mode, str(folder), "2.5")
    numbers = dict(zip(out.split()[0::2], map(int, out.split()[1::2])))
    assert numbers["taken"] > 0
    assert numbers["leaked"] == 0
