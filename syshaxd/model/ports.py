"""What one part of the daemon asks of another. Engine passes the implementations as constructor arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .snapshot import InFlight, PdStatus, Snapshot
from .unit import UnitView


class Units(Protocol):
    """Supervisor, as Runner, SystemMonitor and conductor see it."""

    def views(self) -> tuple[UnitView, ...]:
        """All units, in configuration order."""

    def api_key(self, name: str) -> str:
        """The unit's secret, "" where it has none."""

    def suspect(self, name: str, epoch: int, reason: str) -> None:
        """Traffic saw the unit fail (reset, stall, garbage): probe it now, restart it if it is dead."""


class Snapshots(Protocol):
    """SystemMonitor, as everybody else sees it."""

    def snapshot(self) -> Snapshot:
        """The newest snapshot, with the ledger's counts of this moment."""


class Ledger(Protocol):
    """Runner's record of requests in flight."""

    def in_flight(self) -> tuple[InFlight, ...]:
        """One entry a request."""


class PdGate(Protocol):
    """Result of the PD self-check (Engine)."""

    def pd_status(self) -> PdStatus:
        """Whether splits and moves with KV are allowed."""


class Control(Protocol):
    """Engine, as the control socket sees it. Results are JSON-ready; errors are `errors.ControlError`."""

    def status(self) -> Mapping[str, Any]:
        """Whole daemon: version, state, pd, reload, in flight, units (name, role, state, url, pid, ...)."""

    async def reload(self) -> Mapping[str, Any]:
        """Load, check and apply the configuration: `{"applied": [], "replaced": [], "pending_restart": []}`."""

    async def drain(self, timeout: float | None) -> Mapping[str, Any]:
        """Stop admitting requests and wait for those in flight."""

    async def pd_check(self) -> Mapping[str, Any]:
        """Tries again whether the pairs of units may split; `enabled` and `reason`."""

    async def unit_action(self, name: str, action: str) -> Mapping[str, Any]:
        """`restart`, `stop` or `start` one unit; returns its status."""

    def unit_logs(self, name: str, lines: int) -> Sequence[str]:
        """The last log lines of a unit."""

    def unit_command(self, name: str) -> Sequence[str]:
        """The equivalent command line of a unit's start."""

    def explain(self, request_id: str) -> Mapping[str, Any]:
        """The timeline of one request."""
