"""Command line and environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sysinfer.engine_errors import SetupError
from sysinfer.env import parse_cpus, read_environment
from sysinfer.options import parse_options


def test_cpu_lists_as_libgomp_takes_them() -> None:
    assert parse_cpus("0-3,8", "X") == (0, 1, 2, 3, 8)
    assert parse_cpus(" 0 2  4-5 ", "X") == (0, 2, 4, 5)
    assert parse_cpus("0-8:4,1", "X") == (0, 4, 8, 1)
    for text in ("a", "3-1", "0,0", "0-4:0", "1-", "99999"):
        with pytest.raises(SetupError, match="X"):
            parse_cpus(text, "X")


def test_the_environment_of_the_guides() -> None:
    found = read_environment(
        {"OMP_NUM_THREADS": "2", "GOMP_CPU_AFFINITY": "4-5", "CUSTOM_CPU_AFFINITY": "0-1", "NRC": "32",
         "SYSHAX_QUANTIZE": "Q4_0", "SYSHAX_POOL_DIR": "/p", "SYSHAX_POOL_NAME": "a.pool", "SYSHAX_POOL_BYTES": "4096"}
    )  # fmt: skip
    assert (found.threads, found.cpus, found.nrc, found.quantize) == (2, (0, 1), 32, "q4_0")
    options = parse_options(["serve", "m.gguf"], found)
    assert (options.threads, options.cpus, options.sizing.weights) == (2, (0, 1), "q4_0")
    assert str(options.pool_path) == "/p/a.pool"
    for name, value in {
        "OMP_NUM_THREADS": "many",
        "NRC": "-1",
        "SYSHAX_QUANTIZE": "q3",
        "SYSHAX_POOL_BYTES": "1G",
    }.items():
        with pytest.raises(SetupError, match=name):
            read_environment({name: value})


def test_auto_is_every_cpu_of_the_process() -> None:
    own = tuple(sorted(os.sched_getaffinity(0)))
    assert read_environment({"CUSTOM_CPU_AFFINITY": "auto"}).cpus == own
    assert read_environment({"CUSTOM_CPU_AFFINITY": "auto", "GOMP_CPU_AFFINITY": "3"}).cpus == (3,)
    assert read_environment({"CUSTOM_CPU_AFFINITY": "1", "GOMP_CPU_AFFINITY": "3"}).cpus == (1,)


def test_the_old_form_of_the_command() -> None:
    options = parse_options(["/m/Baichuan2-13B-Chat-Q4_0.gguf", "-t", "0.0", "-n", "4096"], read_environment({}))
    assert (options.served_name, options.temperature, options.max_tokens) == ("Baichuan2-13B-Chat-Q4_0", 0.0, 4096)
    assert options.port == 7860


def test_threads_must_equal_the_cpus_bound() -> None:
    empty = read_environment({})
    assert parse_options(["serve", "m", "--cpus", "2,3"], empty).threads == 2
    with pytest.raises(SetupError, match="--threads is 3 and 2 CPUs"):
        parse_options(["serve", "m", "--cpus", "2,3", "--threads", "3"], empty)
    both = read_environment({"OMP_NUM_THREADS": "3", "GOMP_CPU_AFFINITY": "0-1"})
    with pytest.raises(SetupError, match="OMP_NUM_THREADS is 3"):
        parse_options(["serve", "m"], both)
    assert parse_options(["serve", "m", "--threads", "1"], both).cpus == ()


def test_wrong_values_say_what_is_allowed(tmp_path: Path) -> None:
    for words, message in (
        (["--host", "0.0.0.0"], "needs --api-key-file"),
        (["--host", "example"], "expected an IP address"),
        (["--block-size", "24"], "power of two"),
        (["--port", "70000"], "--port is 70000"),
        (["--max-num-seqs", "0"], "--max-num-seqs is 0"),
        (["--api-key-file", str(tmp_path / "none")], "can't be read"),
    ):
        with pytest.raises(SetupError, match=message):
            parse_options(["serve", "m", *words], read_environment({}))


@pytest.mark.parametrize(
    "words, status, message",
    [(["serve", "absent.gguf", "--port", "0"], 1, "absent.gguf: can't be read: No such file"),
     (["serve", "m.gguf", "--cpus", "x"], 2, "--cpus: 'x'")],
)  # fmt: skip
def test_a_start_that_fails_says_why_in_one_line(words: list[str], status: int, message: str) -> None:
    done = subprocess.run([sys.executable, "-m", "sysinfer", *words], capture_output=True, text=True, timeout=30)
    assert done.returncode == status
    assert message in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1
