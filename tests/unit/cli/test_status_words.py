"""What `syshax status` and `syshax units show` say of units on their way up, and of one that failed before."""

from __future__ import annotations

from typing import Any

import pytest

from syshaxd.cli.status import lines
from syshaxd.cli.units import _show_failure


def _unit(state: str, **more: Any) -> dict[str, Any]:
    return {"name": "gpu", "state": state, "age": 1.0, **more}


def test_progress_of_a_pull_is_in_the_status() -> None:
    said = "pulling x:1: 2.00 of 8.00 GB"
    assert f"gpu: starting, says: {said}" in lines({"units": [_unit("starting", last_log=[said])]})
    assert not any(said in line for line in lines({"units": [_unit("failed", last_log=[said])]}))


def test_the_last_failure_stays(capsys: pytest.CaptureFixture[str]) -> None:
    _show_failure({"reason": "exited with status 7", "at": 0.0, "last_log": ["first", "last words"]})
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].endswith(": exited with status 7") and shown[1:] == ["  first", "  last words"]
    _show_failure(None)
    assert capsys.readouterr().out == ""
