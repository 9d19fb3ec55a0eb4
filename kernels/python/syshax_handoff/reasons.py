"""Why a handoff was not saved or not loaded: the labels of the metrics (docs/kv-handoff.md section 4)."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from syshax_kernels.kernel_errors import BusyError, CorruptError, FullError, MismatchError, NotFoundError, StaleError

REASONS = (
    (NotFoundError, "missing"), (StaleError, "stale"), (CorruptError, "corrupt"), (MismatchError, "mismatch"),
    (BusyError, "busy"), (FullError, "full"), (ValueError, "bad_request"),
)  # fmt: skip
TIMEOUT = "timeout"  # still FILLING when its time was over
NO_POOL = "no_pool"


def reason_of(err: Exception) -> str:
    """The label of a failure."""
    return next((name for kind, name in REASONS if isinstance(err, kind)), "error")


class HandoffCounts(Protocol):
    """Where an engine counts."""

    saved_tokens: int
    load_failures: Counter[str]
    save_failures: Counter[str]
