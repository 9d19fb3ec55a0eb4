"""What the scheduler sees: units, their load, requests in flight. Immutable; SystemMonitor replaces it whole."""

from __future__ import annotations

from dataclasses import dataclass

from .request import RequestInfo
from .unit import Role, UnitView


@dataclass(frozen=True)
class UnitLoad:
    """Signals of one unit. A missing signal is None, never 0. Times are monotonic seconds."""

    at: float
    source: str  # "page" (shared memory), "metrics" (HTTP)
    running: int | None = None
    waiting: int | None = None
    kv_used: int | None = None  # tokens
    kv_total: int | None = None  # tokens
    kv_usage: float | None = None  # 0..1
    preemptions: int | None = None  # total since the unit's start
    generation_tokens: int | None = None  # total
    prompt_tokens: int | None = None  # total
    waiting_prompt_tokens: int | None = None
    step_tokens: int | None = None
    step_seconds: float | None = None
    steps: int | None = None
    pool_free: float | None = None  # 0..1 of the outbox's chunks
    generation: int | None = None  # of the outbox
    kv_token_bytes: int | None = None  # of one token's KV in the outbox
    kv_tokens: int | None = None  # of running requests, a shared prefix as often as they share it
    max_num_seqs: int | None = None
    max_step_tokens: int | None = None  # budget of one step: decodes and prefill chunks


@dataclass(frozen=True)
class InFlight:
    """One request the daemon has sent to a unit and not yet finished. Written by Runner (its ledger)."""

    info: RequestInfo
    unit: str
    started: float  # monotonic seconds of admission
    first_token: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    moves: int = 0
    last_move: float | None = None
    moving: bool = False
    last_token: float | None = None
    target: str = ""  # unit it is moving to
    stays: str | None = None  # why it can't be moved now; None: it can
    kept_by: str = ""  # unit it has left and that keeps its KV until the next one has fetched it
    silent: bool = False  # its unit tells nothing before the end, so that nobody knows when its prefill is over
    left: str = ""  # unit it was on before this one

    def unseen_by(self, unit: UnitSnapshot) -> bool:
        """Whether it has left that unit later than the unit's figures are, which still count its KV."""
        gone = self.left == unit.view.name != self.unit and self.last_move is not None
        return gone and unit.load is not None and (self.last_move or 0.0) >= unit.load.at


@dataclass(frozen=True)
class PdStatus:
    """Whether splits and moves with KV are allowed between a pair of units, and why not."""

    enabled: bool = True
    reason: str = ""


@dataclass(frozen=True)
class UnitSnapshot:
    """One unit as the scheduler sees it. `in_flight` is the daemon's own count."""

    view: UnitView
    load: UnitLoad | None = None
    in_flight: int = 0
    in_flight_tokens: int = 0  # prompt + output tokens of those
    queued: int = 0  # of those, first token not seen yet
    queued_prompt_tokens: int = 0  # prompt tokens of the queued
    arriving: int = 0  # handoffs under way toward this unit
    arriving_tokens: int = 0  # KV tokens they bring


@dataclass(frozen=True)
class DeviceLoad:
    """One accelerator device, as the vendor's tool tells it. None: it does not."""

    percent: float | None = None
    memory_used: int | None = None  # bytes
    memory_total: int | None = None  # bytes


@dataclass(frozen=True)
class HostLoad:
    """The host, from psutil; `accelerators` None where no vendor tool answers."""

    cpu_percent: float | None = None
    memory_available: int | None = None  # bytes
    cpu_percent_per_node: tuple[float, ...] = ()
    accelerators: tuple[DeviceLoad, ...] | None = None


@dataclass(frozen=True)
class Snapshot:
    """Everything a decision may depend on."""

    at: float
    units: tuple[UnitSnapshot, ...] = ()
    in_flight: tuple[InFlight, ...] = ()
    queued: int = 0  # requests that wait in the daemon
    pd: PdStatus = PdStatus()
    host: HostLoad = HostLoad()
    queued_tokens: int = 0  # prompt tokens of those that wait in the daemon, without the request in question
    queued_ahead: int = 0  # and of those that come before it

    def unit(self, name: str) -> UnitSnapshot | None:
        """The unit of that name, or None."""
        return next((unit for unit in self.units if unit.view.name == name), None)

    def ready(self, role: Role) -> tuple[UnitSnapshot, ...]:
        """READY units of a role, in configuration order."""
        return tuple(unit for unit in self.units if unit.view.ready and unit.view.role is role)
