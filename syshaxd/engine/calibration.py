"""Step times that `syshax bench calibrate` has measured, by unit digest: they make the first decisions good ones."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable

from syshaxd.errors import SysHaxError
from syshaxd.log import Log
from syshaxd.model.unit import UnitView
from syshaxd.scheduler import StepSample

FORMAT = 1
MAX_BYTES = 1 << 20
FOLDER = "calibration"
_COUNTS = ("decoding", "prefill_tokens", "kv_tokens")
log = Log("engine")


class CalibrationError(SysHaxError):
    """A calibration file is unusable; says what was expected."""


def calibration_path(state_dir: str, digest: str) -> Path:
    """Where the calibration of a unit of that digest is kept."""
    return Path(state_dir) / FOLDER / f"{digest}.json"


def parse_calibration(text: str) -> tuple[StepSample, ...]:
    """Samples of a file's text; raises CalibrationError."""
    try:
        data: Any = json.loads(text)
        if data["format"] != FORMAT:
            raise CalibrationError(f"expected format {FORMAT}, found {data['format']!r}")
        samples = tuple(_sample(row) for row in data["samples"])
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise CalibrationError(f"expected JSON with format and samples: {err!r}") from err
    if not samples:
        raise CalibrationError("expected at least one sample")
    return samples


def _sample(row: Any) -> StepSample:
    counts = [row[name] for name in _COUNTS]
    seconds = row["seconds"]
    whole = all(isinstance(count, int) and 0 <= count < 1 << 40 for count in counts)
    if not (whole and isinstance(seconds, (int, float)) and math.isfinite(seconds) and 0 < seconds < 3600):
        raise CalibrationError(f"expected counts of 0 or more and seconds above 0, found {row!r}"[:200])
    return StepSample(counts[0], counts[1], counts[2], float(seconds))


class Calibrations:
    """Gives each READY unit's calibration to the Scheduler once, and again when the file has changed."""

    def __init__(self, give: Callable[[str, Iterable[StepSample]], None]) -> None:
        self._give = give
        self._seen: dict[str, tuple[str, int]] = {}  # by unit: digest and time of the file

    def look(self, state_dir: str, views: Iterable[UnitView]) -> None:
        """Whenever units or configuration changed. A bad file costs a warning, nothing else."""
        for view in views:
            if view.ready and view.digest:
                self._look_at(view, calibration_path(state_dir, view.digest))

    def _look_at(self, view: UnitView, path: Path) -> None:
        try:
            version = (view.digest, path.stat().st_mtime_ns)
            if self._seen.get(view.name) == version:
                return
            self._seen[view.name] = version
            with path.open("rb") as file:
                samples = parse_calibration(file.read(MAX_BYTES).decode("utf-8", "replace"))
        except FileNotFoundError:
            return
        except (OSError, CalibrationError) as err:
            log.warning("a calibration is not used", unit=view.name, file=str(path), reason=str(err))
            return
        self._give(view.name, samples)
        log.info("calibration in use", unit=view.name, samples=len(samples))
