"""`kv_transfer_params.syshax` of a request (docs/kv-handoff.md section 1)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_ID = re.compile(r"[0-9a-f]{32}")
_POOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


@dataclass(frozen=True)
class LoadFrom:
    """A ticket of another unit."""

    ticket: bytes
    pool: str
    generation: int = 0  # 0: any


@dataclass(frozen=True)
class Wish:
    """What a request wants of the handoff."""

    save: bytes | None = None
    save_on: str = "finish"
    load: LoadFrom | None = None


def parse(params: Any) -> Wish:
    """Raises ValueError that says what is wrong."""
    mine = params.get("syshax") if isinstance(params, dict) else None
    if mine is None:
        return Wish()
    if not isinstance(mine, dict):
        raise ValueError(f"kv_transfer_params.syshax is {type(mine).__name__}, expected an object")
    when = mine.get("save_on", "finish")
    if when not in ("finish", "length", "abort"):
        raise ValueError(f"save_on is {when!r}, expected finish, length or abort")
    save = mine.get("save")
    return Wish(None if save is None else _ticket(save), when, _load(mine.get("load")))


def _ticket(value: Any) -> bytes:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ValueError(f"ticket {value!r}, expected 32 hex digits")
    return bytes.fromhex(value)


def _load(value: Any) -> LoadFrom | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"load is {type(value).__name__}, expected an object")
    pool, generation = value.get("pool"), value.get("generation") or 0
    if not isinstance(pool, str) or not _POOL.fullmatch(pool):
        raise ValueError(f"pool {pool!r}, expected a file name")
    if not isinstance(generation, int) or not 0 <= generation < 2**64:
        raise ValueError(f"generation {generation!r}, expected a whole number")
    return LoadFrom(_ticket(value.get("ticket")), pool, generation)
