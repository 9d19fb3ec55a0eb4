"""One step of a request: a stay on one unit. Pure."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from syshaxd.model.plan import Reason
from syshaxd.model.snapshot import Snapshot
from syshaxd.model.unit import UnitView


@dataclass(frozen=True)
class Ticket:
    """KV that a unit left (or will leave) in its outbox."""

    id: str
    pool: str
    generation: int = 0


@dataclass(frozen=True)
class Step:
    """`owned`: the daemon makes the text from tokens, so that it can change its unit; else it passes bytes on. `then`:
    unit that decodes after this prefill, with `k` tokens from here. `handoff`: its kind for metrics, when the request
    comes from another unit. `load`: KV to begin with; `save`: where this unit keeps its KV; `remote`: what a unit that
    keeps KV for NIXL said of it."""

    unit: UnitView
    owned: bool
    reason: Reason
    then: str = ""
    k: int = 0
    handoff: str = ""
    load: Ticket | None = None
    save: Ticket | None = None
    remote: Mapping[str, Any] | None = None

    @property
    def keeps_for_nixl(self) -> bool:
        """Whether it is a prefill whose answer tells where the KV is."""
        return self.prefill_only and self.unit.nixl

    @property
    def prefill_only(self) -> bool:
        """Whether the unit computes one token and stops."""
        return bool(self.then)


def new_ticket(unit: UnitView) -> Ticket:
    """Names a ticket in the unit's outbox."""
    return Ticket(secrets.token_hex(16), os.path.basename(unit.pool_file))


def kv_width(step: Step, snapshot: Snapshot) -> int:
    """Bytes of one token's KV in the ticket that the step loads; 0: none, or not known."""
    for unit in snapshot.units:
        if step.load is not None and unit.load is not None and os.path.basename(unit.view.pool_file) == step.load.pool:
            return unit.load.kv_token_bytes or 0
    return 0
