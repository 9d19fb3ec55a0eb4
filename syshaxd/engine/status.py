"""The daemon's state in words: JSON for the control socket, one line for `systemctl status`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from syshaxd.model.abilities import Abilities
from syshaxd.model.snapshot import HostLoad, Snapshot, UnitSnapshot
from syshaxd.model.unit import UnitState


def unit_json(unit: UnitSnapshot, now: float) -> Mapping[str, Any]:
    """One unit. `age`: seconds in its state."""
    view, load = unit.view, unit.load
    return {
        "name": view.name,
        "role": view.role.value,
        "kind": view.kind,
        "backend": view.backend.value,
        "state": view.state.value,
        "age": round(now - view.since, 3),
        "url": view.url,
        "model": view.model,
        "max_model_len": view.max_model_len,
        "abilities": abilities_json(view.abilities),
        "pid": view.pid,
        "container": view.container,
        "epoch": view.epoch,
        "restarts": view.restarts,
        "reason": view.reason,
        "last_log": list(view.last_log),
        "last_failure": asdict(view.last_failure) if view.last_failure else None,
        "pool_file": view.pool_file,
        "digest": view.digest,
        "pending": view.pending,
        "in_flight": unit.in_flight,
        "running": load.running if load else None,
        "waiting": load.waiting if load else None,
        "kv_usage": load.kv_usage if load else None,
        "load_source": load.source if load else None,
    }


def abilities_json(abilities: Abilities) -> Mapping[str, Any]:
    """What it can do. `reasoning_field` "": it leaves reasoning in the content."""
    return {
        "endpoints": sorted(abilities.endpoints),
        "features": sorted(feature.value for feature in abilities.features),
        "reasoning_field": abilities.reasoning_field,
        "token_ids": abilities.token_ids,
        "aborts": abilities.aborts,
        "max_context": abilities.max_context,
    }


def host_json(host: HostLoad) -> Mapping[str, Any]:
    """The host; memory in bytes, `accelerators` null where no vendor tool answers."""
    return asdict(host)


def status_line(snapshot: Snapshot, max_queue: int, note: str = "") -> str:
    """`gpu: ready kv 63% run 41 wait 0 | cpu: ready run 12 | queue 0/256 | pd on`."""
    parts = [_unit_words(unit) for unit in snapshot.units]
    parts.append(f"queue {snapshot.queued}/{max_queue}")
    parts.append("pd on" if snapshot.pd.enabled else f"pd off: {snapshot.pd.reason}")
    if note:
        parts.insert(0, note)
    return " | ".join(parts)


def _unit_words(unit: UnitSnapshot) -> str:
    view, load = unit.view, unit.load
    words = [f"{view.name}: {view.state.value}"]
    if view.state is UnitState.FAILED:
        words.append(f"({view.reason})")
    if view.ready:
        if load is not None and load.kv_usage is not None:
            words.append(f"kv {load.kv_usage:.0%}")
        words.append(f"run {_first(load.running if load else None, unit.in_flight)}")
        if load is not None and load.waiting is not None:
            words.append(f"wait {load.waiting}")
    return " ".join(words)


def _first(known: int | None, otherwise: int) -> int:
    return otherwise if known is None else known
