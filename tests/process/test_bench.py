"""`syshax bench` against a whole daemon over fake units that obey a step-time law."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from testbed.daemon_fake_units import HUP, ROOT, Daemon, unit
from testbed.fake_unit.language import encode

FIELDS = (
    "Successful requests:", "Benchmark duration (s):", "Total input tokens:", "Total generated tokens:",
    "Request throughput (req/s):", "Output token throughput (tok/s):", "Mean TTFT (ms):", "Median TTFT (ms):",
    "P99 TTFT (ms):", "Mean TPOT (ms):", "Median TPOT (ms):", "P99 TPOT (ms):", "Mean ITL (ms):",
    "Median ITL (ms):", "P99 ITL (ms):",
)  # fmt: skip


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    made = Daemon(tmp_path)
    made.config["units"]["gpu"] = unit("accelerator", "--law", "0.006,0.0002,0.00002,0.0005")
    made.config["units"]["cpu"] = unit("cpu", "--law", "0.010,0.0005,0.0001,0.001")
    await made.start()
    await made.ready()
    yield made
    await made.close()


async def bench(daemon: Daemon, *words: Any) -> tuple[int, str, str]:
    """`syshax bench ...`; exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "syshaxd.cli", "bench", *map(str, words), cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_serve_prints_the_table_and_dataset_is_exact(daemon: Daemon) -> None:
    url, file = f"http://127.0.0.1:{daemon.port}", daemon.folder / "prompts.jsonl"
    shape = ("--groups", 2, "--prompts-per-group", 3, "--prefix", 96, "--suffix", 32, "--seed", 42)
    code, _, err = await bench(daemon, "dataset", "--base-url", url, *shape, "--out", file)
    assert code == 0, err
    prompts = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(prompts) == 6 and all(list(row) == ["prompt"] for row in prompts)
    assert {len(encode(row["prompt"])) for row in prompts} == {96 + 32}
    assert len({row["prompt"][:96] for row in prompts}) == 2
    code, out, err = await bench(
        daemon, "serve", "--base-url", url, "--dataset", file, "--num-prompts", 12, "--output-len", 8,
        "--max-concurrency", 4,
    )  # fmt: skip
    assert code == 0, err
    cells = [line.rsplit(None, 1) for line in out.splitlines() if ": " in line]
    rows = {name.strip(): float(value) for name, value in cells}
    assert [name for name in FIELDS if name not in rows] == []
    assert (rows["Successful requests:"], rows["Total generated tokens:"]) == (12, 96)
    assert rows["Total input tokens:"] == 12 * 128
    assert 0 < rows["Mean ITL (ms):"] < rows["Mean TTFT (ms):"] * 100


@pytest.mark.timeout(150)
async def test_a_calibration_is_kept_and_makes_the_daemon_predict(daemon: Daemon) -> None:
    code, out, err = await bench(daemon, "calibrate", "--config", daemon.folder / "etc")
    assert code == 0, err
    for name in ("gpu", "cpu"):
        file = daemon.folder / "state" / "calibration" / f"{(await daemon.unit(name))['digest']}.json"
        assert json.loads(file.read_text())["format"] == 1 and f"{name}: step = " in out
    daemon.signal(HUP)
    await daemon.until(lambda: daemon.output.count(b"calibration in use") == 2)
    code, out, err = await bench(
        daemon, "serve", "--base-url", f"http://127.0.0.1:{daemon.port}", "--num-prompts", 2, "--input-len", 64,
        "--output-len", 4, "--max-concurrency", 1,
    )  # fmt: skip
    assert code == 0, err
    await daemon.until(lambda: b"accelerator_fits" in daemon.output and b"predicted_ttft_ms" in daemon.output)


async def test_a_unit_that_is_not_there(daemon: Daemon) -> None:
    code, _, err = await bench(daemon, "calibrate", "--config", daemon.folder / "etc", "--unit", "nobody")
    assert (code, err.strip()) == (1, "syshax bench: no unit nobody; units are: gpu, cpu")
