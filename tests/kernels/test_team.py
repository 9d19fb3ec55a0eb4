"""How the threads of a context wait, and what memory their weights lie in."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest

from syshax_kernels.context import Context
from syshax_kernels.kernel_errors import KernelError
from syshax_kernels.matrix import Matrix
from syshax_kernels.types import DType

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MIB = 1 << 20


def test_waiting_threads_spin_for_50_microseconds_at_most() -> None:
    with pytest.raises(KernelError, match="spin_us: expected at most 50, got 51"):
        Context(threads=2, spin_us=51)


def test_waiting_threads_sleep() -> None:
    """A thread that went on spinning would never be seen asleep."""
    before = set(tasks())
    with Context(threads=4, spin_us=50) as context, packed(context, 64, 64) as matrix:
        matrix.linear(np.ones((1, 64), np.float32))
        mine = set(tasks()) - before
        assert len(mine) == 3
        end = time.monotonic() + 10
        while {state(task) for task in mine} != {"S"}:
            assert time.monotonic() < end, "waiting threads do not sleep"


def tasks() -> list[str]:
    return os.listdir("/proc/self/task")


def state(task: str) -> str:
    return Path(f"/proc/self/task/{task}/stat").read_text().rpartition(")")[2].split()[0]


def packed(context: Context, rows: int, cols: int) -> Matrix:
    return Matrix(context, np.ones((rows, cols), np.float32), DType.F32, DType.F32, rows, cols)


def advised() -> int:
    """Bytes of this process that the kernel may back with huge pages."""
    text, total = Path("/proc/self/smaps").read_text(), 0
    for size, flags in re.findall(r"(?m)^Size:\s+(\d+) kB$(?:\n^.*$)*?\n^VmFlags: (.*)$", text):
        total += int(size) * 1024 if "hg" in flags.split() else 0
    return total


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="this kernel is built without transparent huge pages")
def test_large_weights_ask_for_huge_pages_and_small_ones_do_not() -> None:
    with Context() as context:
        before = advised()
        with packed(context, 64, 64):
            assert advised() == before
        with packed(context, 2048, 1024):
            assert advised() - before >= 8 * MIB
