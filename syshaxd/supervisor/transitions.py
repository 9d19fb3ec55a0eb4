"""What the log says when a unit changes its state."""

from __future__ import annotations

from typing import Protocol

from syshaxd import log as logging
from syshaxd.backends.backend import LaunchSpec
from syshaxd.model.unit import UnitState

from .life import Life, LifeEvent, What

log = logging.Log("supervisor")


class Started(Protocol):
    """What is told of a start."""

    spec: LaunchSpec
    began: float


def tell_transition(unit: str, before: Life, life: Life, event: LifeEvent, start: Started | None, now: float) -> None:
    """One log line for each change of state that an operator wants to know of."""
    if life.state is before.state and life.epoch == before.epoch:
        return
    if life.state is UnitState.STARTING:
        log.info("starting unit", unit=unit, start=life.epoch, reason=life.reason or None)
    elif life.state is UnitState.READY and start is not None:
        seconds = now - start.began
        log.info("unit is ready", message_id=logging.UNIT_READY, unit=unit, seconds=seconds, url=start.spec.url)
    elif life.state is UnitState.FAILED:
        wait = None if life.retry_at is None else life.retry_at - now
        message_id = logging.UNIT_DIED if wait is not None else logging.UNIT_FAILED
        message = "unit died; it is started again" if wait is not None else "unit failed too often; it stays down"
        log.error(message, message_id=message_id, unit=unit, reason=life.reason, wait=wait, failures=life.failures)
    elif event.what is What.BROKEN:
        log.error("unit is broken; killing it", unit=unit, reason=life.reason)
    elif life.state is UnitState.STOPPED:
        log.info("unit has stopped", message_id=logging.UNIT_STOPPED, unit=unit)
