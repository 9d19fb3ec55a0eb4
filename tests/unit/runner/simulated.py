"""Units inside the test's own loop, given to the Runner in place of the HTTP client: many interleavings a second."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from syshaxd.errors import UnitError, UnitErrorKind
from syshaxd.model.request import Endpoint
from syshaxd.model.snapshot import PdStatus, Snapshot, UnitSnapshot
from syshaxd.model.unit import BackendKind, Role, UnitState, UnitView
from syshaxd.runner import InFlightLedger
from syshaxd.unitclient import Deadlines, Target
from syshaxd.units import SYSINFER
from testbed.fake_unit.language import EOS, Detokenizer, Speaker, decode, render


class SimulatedUnit:
    """One unit: its view, its running streams, what is wrong with it."""

    def __init__(self, name: str, role: Role) -> None:
        self.view = UnitView(
            name, role, "sysinfer", BackendKind.PROCESS, UnitState.READY,
            f"http://{name}", 1, "m", f"/{name}", abilities=replace(SYSINFER.abilities, max_context=4096),
        )  # fmt: skip
        self.streams: list["SimulatedStream"] = []
        self.refuses_aborts = False
        self.tickets: set[str] = set()  # published, not taken
        self.left_to_lease: set[str] = set()  # whose discard it refused: their leases end them
        self.cut_at: list[int] = []  # where they were cut
        self.cuts: list[int] = []  # an aborted stream first makes so many tokens; one entry a stream

    def fail(self, kind: UnitErrorKind) -> None:
        """Every stream on it breaks."""
        for stream in self.streams:
            stream.error = UnitError(self.view.name, kind, "told to fail")

    def stop(self) -> None:
        """Not READY any more; what it held is lost."""
        self.view = replace(self.view, state=UnitState.FAILED)
        self.fail(UnitErrorKind.RESET)

    def restart(self) -> None:
        """READY again, as another epoch."""
        self.fail(UnitErrorKind.RESET)
        self.tickets.clear()
        self.view = replace(self.view, state=UnitState.READY, epoch=self.view.epoch + 1)


class SimulatedStream:
    """What UnitStream is to the Runner."""

    def __init__(
        self, units: Mapping[str, SimulatedUnit], unit: SimulatedUnit, endpoint: Endpoint, body: Mapping[str, Any],
        request_id: str,
    ) -> None:  # fmt: skip
        self._units = units
        self.unit, self.id = unit, ("chatcmpl-" if endpoint is Endpoint.CHAT else "cmpl-") + request_id
        self.error: UnitError | None = None
        self.aborted = False
        self._prompt = render(dict(body))
        self._left = int(body.get("max_tokens") or 16)
        self._speaker, self._detokenizer = Speaker(self._prompt), Detokenizer(self._prompt)
        self._first, self._over = True, False
        self.finished = False
        self._made, self._cut = 0, 0
        self._ours = (body.get("kv_transfer_params") or {}).get("syshax") or {}

    async def __aenter__(self) -> "SimulatedStream":
        await asyncio.sleep(0)
        if not self.unit.view.ready:
            raise UnitError(self.unit.view.name, UnitErrorKind.CONNECT, "not there")
        self.unit.streams.append(self)
        self._cut = self.unit.cuts.pop(0) if self.unit.cuts else 0
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.unit.streams.remove(self)

    def __aiter__(self) -> "SimulatedStream":
        return self

    def abandon(self, kind: UnitErrorKind, text: str) -> None:
        self.error = UnitError(self.unit.view.name, kind, text)

    async def __anext__(self) -> list[bytes]:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        if self._over:
            raise StopAsyncIteration
        if self._first:
            self._first = False
            load = self._ours.get("load")
            if load is not None:  # its first token comes after the ticket was consumed
                for unit in self._units.values():
                    unit.tickets.discard(load["ticket"])
            return [event("", (), prompt_token_ids=self._prompt)]
        if self.aborted and self._made >= self._cut:
            self._end("abort")
            self.unit.cut_at.append(self._made)
            return [event("", (), finish_reason="abort")]
        token = self._speaker.next()
        self._left -= 1
        self._made += 1
        finish = "stop" if token == EOS else "length" if self._left <= 0 else None
        if finish is not None:
            self._end(finish)
        return [event(self._detokenizer.feed(token), (token,), finish_reason=finish)]

    def _end(self, finish: str) -> None:
        self._over = True
        save, save_on = self._ours.get("save"), self._ours.get("save_on", "finish")
        if save and (finish == "abort" or save_on in ("finish", finish)):
            self.unit.tickets.add(save)


def event(text: str, ids: Sequence[int], finish_reason: str | None = None, **more: Any) -> bytes:
    """A `data` payload as vLLM writes it."""
    choice = {
        "index": 0,
        "text": text,
        "logprobs": None,
        "finish_reason": finish_reason,
        "token_ids": list(ids),
        **more,
    }
    return json.dumps({"id": "x", "choices": [choice]}, ensure_ascii=False, separators=(",", ":")).encode()


class SimulatedClient:
    """What UnitClient is to the Runner, as far as it uses it."""

    def __init__(self, units: Mapping[str, SimulatedUnit]) -> None:
        self._units = units

    def stream(
        self, target: Target, endpoint: Endpoint, body: Mapping[str, Any], request_id: str, deadlines: Deadlines
    ) -> SimulatedStream:
        return SimulatedStream(self._units, self._units[target.name], endpoint, body, request_id)

    async def abort(
        self, target: Target, request_ids: Sequence[str], timeout: float, discard: Sequence[str] = ()
    ) -> None:
        await asyncio.sleep(0)
        unit = self._units[target.name]
        if unit.refuses_aborts or not unit.view.ready:
            unit.left_to_lease.update(discard)
            raise UnitError(target.name, UnitErrorKind.STATUS, "no", status=404)
        for stream in unit.streams:
            stream.aborted = stream.aborted or stream.id in request_ids
        unit.tickets.difference_update(discard)

    async def detokenize(self, target: Target, model: str, tokens: Sequence[int], timeout: float) -> str:
        return decode(tokens)


class SimulatedWorld:
    """Units and snapshots."""

    def __init__(self, ledger: InFlightLedger) -> None:
        self.units: dict[str, SimulatedUnit] = {
            "gpu": SimulatedUnit("gpu", Role.ACCELERATOR),
            "cpu": SimulatedUnit("cpu", Role.CPU),
        }
        self._ledger = ledger
        self.pd = PdStatus()

    def views(self) -> tuple[UnitView, ...]:
        return tuple(unit.view for unit in self.units.values())

    def api_key(self, name: str) -> str:
        return ""

    def suspect(self, name: str, epoch: int, reason: str) -> None:
        """The supervisor would probe it; here the schedule says what becomes of it."""

    def snapshot(self) -> Snapshot:
        units = tuple(UnitSnapshot(view) for view in self.views())
        return Snapshot(time.monotonic(), units, self._ledger.in_flight(), pd=self.pd)
