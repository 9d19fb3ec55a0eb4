"""Questions to one start of a unit, and how long to wait for its first answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Callable, NamedTuple

from syshaxd.errors import UnitError, UnitErrorKind
from syshaxd.model.abilities import Abilities
from syshaxd.unitclient import ModelCard, Target, UnitClient
from syshaxd.units.discovery import described

POLL_FIRST, POLL_MOST = 0.05, 0.5  # seconds between two /health while it starts
HEALTH_TIMEOUT = 2.0
ACTIVITY_INTERVAL = 1.0
LAST_TRY = 0.1  # seconds, where a deadline is over: none at all would mean no deadline to the HTTP client
WARM_TOKENS = 2  # one prefill, one decode step


class Activity(NamedTuple):
    """Signs of work before a unit answers."""

    lines: int  # written so far
    busy: int | None  # grows with CPU time and I/O


class Deadline:
    """A start may take `limit` seconds in all and `idle` seconds without a sign of work. Pure."""

    def __init__(self, now: float, limit: float, idle: float) -> None:
        self._began = self._moved_at = now
        self._limit = limit
        self._idle = idle
        self._last: Activity | None = None

    def saw(self, activity: Activity, now: float) -> None:
        """Take note."""
        if activity != self._last:
            self._last, self._moved_at = activity, now

    def passed(self, now: float) -> str | None:
        """The reason to give up, or None."""
        if now - self._began > self._limit:
            return f"did not answer within {self._limit:g} s (start_timeout)"
        if now - self._moved_at > self._idle:
            return f"did nothing for {self._idle:g} s while starting: no log line, no CPU time, no I/O"
        return None

    def left(self, now: float) -> float:
        """Seconds of `limit`."""
        return max(0.0, self._limit - (now - self._began))


class Probe:
    """Asks over HTTP. What speaks against the unit comes back as text; that the daemon could not ask is OwnFailure."""

    def __init__(self, client: UnitClient, target: Target, model: str) -> None:
        self._client = client
        self._target = target
        self.model = model

    async def health_error(self, timeout: float) -> str | None:
        """None where /health says yes."""
        try:
            return None if await self._client.health(self._target, timeout) else "HTTP 503 from /health"
        except UnitError as err:
            return said(err)

    async def card(self, timeout: float) -> ModelCard:
        """What it serves; it must serve our model, or exactly one where the configuration names none."""
        cards = await self._client.models(self._target, timeout)
        for card in cards:
            if card.id == self.model or (not self.model and len(cards) == 1):
                self.model = card.id
                return card
        names = ", ".join(card.id for card in cards) or "nothing"
        raise WrongModel(f"it serves {names}; the configuration expects {self.model or 'one model'}")

    async def abilities(self, known: Abilities, card: ModelCard, timeout: float) -> Abilities:
        """What it can do: as its kind says, and as it describes itself where it does."""
        known = replace(known, max_context=card.max_model_len)
        try:
            answer = await self._client.forward(self._target, "GET", "/openapi.json", None, timeout)
            return described(known, json.loads(answer.body)) if answer.status == 200 else known
        except (UnitError, ValueError, RecursionError):
            return known

    async def generation_error(self, timeout: float, more: Mapping[str, Any] = {}) -> str | None:
        """None where it generates, with `more` in the request."""
        try:
            await self._client.generate_once(self._target, self.model, WARM_TOKENS, timeout, more)
        except UnitError as err:
            return said(err)
        return None

    async def warm_up_error(self, warm_ups: Sequence[Mapping[str, Any]], timeout: float) -> str | None:
        """The same after requests that make it prepare what it prepares at first use. It may refuse those."""
        until = time.monotonic() + timeout
        for more in warm_ups:
            error = await self.generation_error(max(LAST_TRY, until - time.monotonic()), more)
            if error is not None and time.monotonic() >= until:
                return error
        return await self.generation_error(max(LAST_TRY, until - time.monotonic()))


class OwnFailure(Exception):
    """The daemon could not ask (descriptors, memory): it says nothing about the unit."""


def said(err: UnitError) -> str:
    """Its text where it speaks against the unit. Raises OwnFailure where it does not."""
    if err.kind is UnitErrorKind.OWN:
        raise OwnFailure(str(err)) from err
    return str(err)


class WrongModel(Exception):
    """The unit serves something else."""


async def await_answer(
    probe: Probe, deadline: Deadline, activity: Callable[[], Activity], clock: Callable[[], float] = time.monotonic
) -> str | None:
    """Poll /health until it says yes (None) or the deadline passes (the reason)."""
    pause, looked_at = POLL_FIRST, clock() - ACTIVITY_INTERVAL
    while True:
        with contextlib.suppress(UnitError, OwnFailure):
            if await probe.health_error(HEALTH_TIMEOUT) is None:
                return None
        if clock() - looked_at >= ACTIVITY_INTERVAL:
            looked_at = clock()
            deadline.saw(activity(), looked_at)
        reason = deadline.passed(clock())
        if reason is not None:
            return reason
        await asyncio.sleep(pause)
        pause = min(POLL_MOST, pause * 1.2)
