"""`kv_transfer_params.syshax` of a request: what to save of its KV, and what to load (docs/kv-handoff.md section 1)."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Any

_TICKET = re.compile(r"[0-9a-f]{32}")
_POOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_NAME = "kv_transfer_params.syshax"


class SaveOn(str, enum.Enum):
    """When a saved KV cache is published."""

    FINISH = "finish"
    LENGTH = "length"
    ABORT = "abort"


PUBLISHED = {
    SaveOn.FINISH: ("length", "stop", "abort"),
    SaveOn.LENGTH: ("length", "abort"),
    SaveOn.ABORT: ("abort",),
}


@dataclass(frozen=True)
class LoadFrom:
    """A ticket of another unit."""

    ticket: bytes
    pool: str  # file name in the pool folder
    generation: int = 0  # 0: any


@dataclass(frozen=True)
class HandoffParams:
    """What a request wants of the handoff. `save`: the ticket to leave its KV under."""

    save: bytes | None = None
    save_on: SaveOn = SaveOn.FINISH
    load: LoadFrom | None = None

    def publishes(self, finish: str) -> bool:
        """Whether a request that ended so (`length`, `stop`, `abort` by its id) leaves its ticket."""
        return finish in PUBLISHED[self.save_on]


class TransferError(ValueError):
    """A parameter is wrong; `param` is its name."""

    def __init__(self, param: str, found: object, expected: str) -> None:
        shown = repr(found)[:60] if isinstance(found, (str, int, float)) else type(found).__name__
        super().__init__(f"{param} is {shown}, expected {expected}")
        self.param = param


def parse_transfer(params: Any, any_pool: bool = False) -> HandoffParams:
    """`params`: the value of kv_transfer_params, None included. Raises TransferError.

    `any_pool`: whoever loads refuses names that are no file's, and counts them.
    """
    ours = params.get("syshax") if isinstance(params, dict) else None
    if ours is None:
        return HandoffParams()
    if not isinstance(ours, dict):
        raise TransferError(_NAME, ours, "an object")
    when, save = ours.get("save_on"), ours.get("save")
    if when is not None and when not in [each.value for each in SaveOn]:
        raise TransferError(f"{_NAME}.save_on", when, "finish, length or abort")
    saved = None if save is None else ticket_id(save, f"{_NAME}.save")
    return HandoffParams(saved, SaveOn(when or "finish"), _load(ours.get("load"), any_pool))


def _load(value: Any, any_pool: bool) -> LoadFrom | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise TransferError(f"{_NAME}.load", value, "an object with ticket and pool")
    ticket, pool, generation = value.get("ticket"), value.get("pool"), value.get("generation") or 0
    if ticket is None or not pool:
        raise TransferError(f"{_NAME}.load", value, "an object: it needs ticket and pool")
    if not isinstance(pool, str) or not any_pool and not _POOL.fullmatch(pool):
        raise TransferError(f"{_NAME}.load.pool", pool, "a file name")
    if isinstance(generation, bool) or not isinstance(generation, int) or not 0 <= generation < 2**64:
        raise TransferError(f"{_NAME}.load.generation", generation, "a whole number")
    return LoadFrom(ticket_id(ticket, f"{_NAME}.load.ticket"), pool, generation)


def ticket_id(value: Any, name: str) -> bytes:
    """A ticket's 16 bytes from its 32 hex digits. Raises TransferError naming `name`."""
    if not isinstance(value, str) or not _TICKET.fullmatch(value):
        raise TransferError(name, value, "32 hex digits")
    return bytes.fromhex(value)


def save_values(ticket: str, save_on: str) -> dict[str, Any]:
    """The members of `syshax` that ask a unit to keep its KV."""
    return {"save": ticket, "save_on": save_on}


def load_values(ticket: str, pool: str, generation: int) -> dict[str, Any]:
    """Those that ask it to begin with the KV of a ticket."""
    return {"load": {"ticket": ticket, "pool": pool, "generation": generation}}
