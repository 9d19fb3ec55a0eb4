"""Children that are killed or stopped at the n-th cut point of the pool protocol (VARIANT=test of kernels/Makefile)."""

from __future__ import annotations

import ctypes
import os
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Callable

from syshax_kernels.library import Library

Scenario = Callable[[], str]
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass
class Child:
    """A forked process that runs a scenario and reports its result through a pipe."""

    pid: int
    pipe: int

    def wait_stopped(self) -> bool:
        """True when it stopped at its cut point, False when it came to its end without reaching it."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            return True
        self._check(status)
        return False

    def resume(self) -> str:
        """Continues a stopped child; its result."""
        os.kill(self.pid, signal.SIGCONT)
        _, status = os.waitpid(self.pid, 0)
        self._check(status)
        return self.result()

    def killed(self) -> bool:
        """Waits for the end; True when the cut point killed it."""
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return True
        self._check(status)
        return False

    def result(self) -> str:
        with os.fdopen(self.pipe) as pipe:
            return pipe.read()

    def drop(self) -> None:
        """For children whose result nobody reads."""
        os.close(self.pipe)

    @staticmethod
    def _check(status: int) -> None:
        assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, f"the child failed: status {status}"


def start(library: Library, scenario: Scenario, cut: int, cut_signal: int) -> Child:
    """Runs `scenario` in a child that gets `cut_signal` at its `cut`-th cut point."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid > 0:
        os.close(write_end)
        return Child(pid, read_end)
    code = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a test that fails must not leave a stopped child
    try:
        library.calls.sx_test_cut(cut, cut_signal)
        os.write(write_end, scenario().encode())
        code = 0
    except Exception:  # the child's top: show what went wrong, then leave without pytest's own clean-up
        traceback.print_exc()
    finally:
        os._exit(code)


def count_from_one() -> Iterator[int]:
    """Cut points, up to a bound that no scenario reaches."""
    yield from range(1, 500)
    raise AssertionError("the scenario never came to its end")
