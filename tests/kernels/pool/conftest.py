"""Builds the handoff pool alone, in the variants its tests need, and gives each test a folder on tmpfs."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from syshax_kernels.library import Library
from syshax_kernels.pool import pool_library

ROOT = Path(__file__).resolve().parents[3]
Build = Callable[[str], Path]


@pytest.fixture(scope="session")
def build() -> Build:
    """`build(variant)`: the output folder of the pool and its test programs in that variant of kernels/Makefile."""

    def make(variant: str) -> Path:
        arguments = ["make", "-s", "-C", str(ROOT / "kernels"), "PART=pool", f"VARIANT={variant}"]
        done = subprocess.run([*arguments, "tests"], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        where = subprocess.run([*arguments, "where"], capture_output=True, text=True, timeout=60, check=True)
        return Path(where.stdout.strip())

    return make


@pytest.fixture(scope="session")
def cut_library(build: Build) -> Library:
    """The pool with cut points between any two effects that another process can see (kernels/src/pool/step.h)."""
    return pool_library(build("test") / "libsyshax_kernels.so")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A private folder on tmpfs, where pools belong; gone afterwards."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="syshax-test-", dir=shm if shm.is_dir() else None) as name:
        yield Path(name)
