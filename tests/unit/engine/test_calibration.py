"""Saved calibrations reach the Scheduler; bad ones cost a warning."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from syshaxd.engine.calibration import CalibrationError, Calibrations, calibration_path, parse_calibration
from syshaxd.model.unit import BackendKind, Role, UnitState, UnitView
from syshaxd.scheduler import StepSample

GOOD = {"format": 1, "samples": [{"decoding": 1, "prefill_tokens": 0, "kv_tokens": 100, "seconds": 0.01}]}
VIEW = UnitView("gpu", Role.ACCELERATOR, "vllm", BackendKind.PROCESS, UnitState.READY, "u", digest="abc")
BAD = [
    "", "[]", "{}", "null", '{"format": 2, "samples": []}', '{"format": 1, "samples": []}', "[" * 100_000,
    '{"format": 1, "samples": [{"decoding": -1, "prefill_tokens": 0, "kv_tokens": 0, "seconds": 1}]}',
    '{"format": 1, "samples": [{"decoding": 1, "prefill_tokens": 0, "kv_tokens": 0, "seconds": NaN}]}',
    '{"format": 1, "samples": [{"decoding": 1, "prefill_tokens": 0, "seconds": 1}]}',
]  # fmt: skip


def test_a_file_is_given_once_and_again_when_it_changes(tmp_path: Path) -> None:
    given: list[tuple[str, int]] = []

    def give(name: str, samples: Iterable[StepSample]) -> None:
        given.append((name, len(list(samples))))

    calibrations = Calibrations(give)
    calibrations.look(str(tmp_path), [VIEW])
    file = calibration_path(str(tmp_path), "abc")
    file.parent.mkdir()
    for stamp, text in ((1, json.dumps(GOOD)), (2, "broken"), (3, json.dumps(GOOD))):
        file.write_text(text)
        os.utime(file, ns=(stamp, stamp))
        for _ in range(3):
            calibrations.look(str(tmp_path), [VIEW])
    assert given == [("gpu", 1), ("gpu", 1)]


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_bad_files_are_told_apart(text: str) -> None:
    with pytest.raises(CalibrationError):
        parse_calibration(text)


def test_a_good_file_is_read() -> None:
    assert parse_calibration(json.dumps(GOOD)) == (StepSample(1, 0, 100, 0.01),)
