"""The packed-file cache: the same model from it, bit for bit; a file that is no good costs packing again, no more."""

from __future__ import annotations

import logging
import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from syshax_kernels.context import Context
from syshax_kernels.model import packed_bytes
from syshax_kernels.types import DType
from sysinfer import packed
from sysinfer.config import read_config
from sysinfer.gguf_tensors import GgufFile
from sysinfer.native import NativeRunner, RunnerSizes
from sysinfer.runner import ALL_LOGITS, Row

DEMO = Path(__file__).resolve().parents[2] / "kernels/demo/syshax-demo.gguf"
SIZES = RunnerSizes(64, 8, 16, 64, "f16")
ROW = Row([5, 9, 2, 300, 7], 0, [0], ALL_LOGITS)


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    with Context(threads=2) as made:
        yield made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Path(shutil.copy(DEMO, tmp_path / "m.gguf"))


def start(context: Context, source: Path, cache: Path | None, weights: str = "keep") -> NDArray[np.float32]:
    """A start of the engine: the logits of a short text."""
    file = GgufFile(source)
    runner = NativeRunner(context, file, read_config(file), SIZES, weights, cache)
    logits = runner.forward([ROW]).copy()
    runner.close()
    return logits


def logged(caplog: pytest.LogCaptureFixture, level: int) -> str:
    text = " ".join(r.getMessage() for r in caplog.records if r.levelno == level)
    caplog.clear()
    return text


@pytest.mark.parametrize("weights", ["keep", "q8_0", "q4_0", "f32"])
def test_a_second_start_takes_the_packed_file_and_says_the_same(
    context: Context, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, weights: str
) -> None:
    caplog.set_level(logging.INFO, "sysinfer.weights")
    expected = start(context, source, None, weights)
    assert not [r for r in caplog.records if "packed" in r.getMessage()]
    caplog.clear()
    assert np.array_equal(start(context, source, tmp_path / "cache", weights), expected)
    assert "no packed weights" in logged(caplog, logging.INFO)
    assert np.array_equal(start(context, source, tmp_path / "cache", weights), expected)
    assert "taken packed" in logged(caplog, logging.INFO)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".packed"]


def damaged(whole: bytes, kind: str, rng: random.Random) -> bytes:
    if kind == "cut":
        return whole[: rng.randrange(len(whole))]
    if kind == "empty":
        return b""
    at = rng.randrange(200) if kind == "header" else rng.randrange(len(whole) // 2, len(whole) // 2 + 4000)
    return whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]


@pytest.mark.parametrize("kind", ["cut", "empty", "header", "body"])
def test_a_damaged_file_is_packed_again(
    context: Context, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    expected = start(context, source, tmp_path)
    (path,) = tmp_path.glob("*.packed")
    whole, rng = path.read_bytes(), random.Random(kind)
    for _ in range(6):
        path.write_bytes(damaged(whole, kind, rng))
        assert np.array_equal(start(context, source, tmp_path), expected)
        assert "the weights are packed again" in logged(caplog, logging.WARNING)
        assert path.read_bytes() == whole


def test_a_changed_model_file_is_packed_again(
    context: Context, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(context, source, tmp_path)
    os.utime(source, (1, 1))
    start(context, source, tmp_path)
    assert "made from another model file" in logged(caplog, logging.WARNING)
    start(context, source, tmp_path)
    assert not caplog.records


def test_a_folder_that_cannot_be_had_costs_a_log_line_only(
    context: Context, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert np.array_equal(start(context, source, tmp_path / "file" / "x"), start(context, source, None))
    assert "can't be kept" in logged(caplog, logging.WARNING)


def test_starts_at_the_same_time_all_come_up_and_leave_one_whole_file(
    context: Context, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, ready = start(context, source, None), threading.Barrier(4)
    same: list[bool] = []

    def some_starts() -> None:
        with Context(threads=1) as own:
            ready.wait(30)
            for weights in ("keep", "q8_0", "keep"):
                same.append(weights != "keep" or np.array_equal(start(own, source, tmp_path, weights), expected))
                start(own, source, tmp_path, weights)

    threads = [threading.Thread(target=some_starts) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert same == [True] * 12 and not logged(caplog, logging.WARNING)
    assert len(list(tmp_path.glob("*.packed"))) == 2 and not list(tmp_path.glob(".*.packed.*"))


def test_only_old_left_overs_are_removed(context: Context, source: Path, tmp_path: Path) -> None:
    name = packed.path_for(tmp_path, GgufFile(source), "keep").name
    old, fresh = tmp_path / f".{name}.a", tmp_path / f".{name}.b"
    for left in (old, fresh):
        left.write_bytes(b"half")
    os.utime(old, (1, 1))
    start(context, source, tmp_path)
    assert not old.exists() and fresh.exists()


def test_sizes_of_packed_tensors_are_those_of_the_header() -> None:
    assert packed_bytes(DType.Q4_0, 17, 96) == 2 * 2 * 576
    assert packed_bytes(DType.Q8_0, 16, 64) == 1088
    assert packed_bytes(DType.F16, 17, 96) == 32 * 96 * 2
    assert packed_bytes(DType.F32, 1, 96) == 96 * 4
