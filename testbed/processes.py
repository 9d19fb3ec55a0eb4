"""Processes of this machine: run one, end one, wait for what it does."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Callable, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]


def run(*command: object, timeout: float = 300, check: bool = True, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command on this machine; its whole output stands in the error when it fails."""
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=ROOT, input=text, capture_output=True, text=True, timeout=timeout)
    if check and result.returncode != 0:
        raise AssertionError(f"{' '.join(words)}: status {result.returncode}\n{result.stdout}{result.stderr}")
    return result


def end_process(process: "subprocess.Popen[bytes]", number: int, seconds: float) -> None:
    """Signal it and wait; one that does not end in time is killed, and that is an error."""
    process.send_signal(number)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def wait_for(what: str, probe: Callable[[], T | None], timeout: float = 30.0, pause: float = 0.02) -> T:
    """Ask until the answer is true; an error that names the last answer after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {timeout:g} s; last answer {answer!r}")
        time.sleep(pause)
