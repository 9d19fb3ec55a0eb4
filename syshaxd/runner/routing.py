"""Where a request goes: from what is to be done, and from the units as they are now, to its next step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from syshaxd.admission.refusals import Refusal, error_of
from syshaxd.errors import UnitError, UnitErrorKind
from syshaxd.model.plan import Move, Reason, Split, Whole
from syshaxd.model.request import RequestInfo
from syshaxd.model.unit import UnitView

from .client_request import ClientRequest
from .planning import Planner
from .services import Services
from .sink import Sink
from .steps import Step, new_ticket


class Routing:
    """Of one request."""

    def __init__(self, services: Services, request: ClientRequest, sink: Sink) -> None:
        self._services = services
        self._request = request
        self._sink = sink
        self._planner = Planner(services, request.info, sink.timeline)

    async def first(self) -> tuple[Whole | Split, Step]:
        """Where it begins, or begins anew; raises RequestError."""
        plan = await self._planner.first()
        assert isinstance(plan, (Whole, Split))
        self._sink.planned(plan.reason, plan.prediction)
        if isinstance(plan, Whole):
            return plan, self._on(self._known(plan.unit), plan.reason, "")
        prefill = self._known(plan.prefill)
        owned = self._may_own(self._known(plan.decode))
        k = plan.k if owned and not prefill.nixl else 0
        # Nobody would fetch the KV of a request that ends with its first token.
        limit = self._request.info.max_tokens
        fetched = not prefill.nixl and (k == 0 or limit is None or limit > 1)
        save = new_ticket(prefill) if fetched else None
        return plan, Step(prefill, owned, plan.reason, plan.decode, k, save=save)

    def decode(self, step: Step, remote: Mapping[str, Any] | None) -> Step:
        """Where a split decodes: asked again now that the prefill has taken its time. Raises UnitError."""
        services = self._services
        unit = self._ready(step.then)
        prompt_tokens, snapshot = self._sink.entry.prompt_tokens, services.snapshots.snapshot()
        if services.scheduler.keep_split(self._request.info, unit.name, prompt_tokens, snapshot):
            return replace(self._on(unit, step.reason, "split"), load=step.save, remote=remote)
        self._sink.not_split(step.unit.name, unit.name)
        return replace(self._on(step.unit, step.reason, ""), load=step.save)

    def moved(self, step: Step, move: Move, kind: str) -> Step:
        """Where it goes on after its unit ended it for a move. Raises UnitError."""
        return replace(self._on(self._ready(move.target), move.reason, kind), load=step.save)

    async def outgrow(self, step: Step) -> Step:
        """Where it goes on when its unit's context is full; raises RequestError."""
        self._planner.note_failure(step.unit.name, step.unit.epoch)
        return await self.rescue()

    def longest_context(self) -> int | None:
        """Of the units that serve its model, in tokens; None: one of them does not tell."""
        name, any_model = self._request.info.model, ("", self._services.config.model_name)
        mine = [view for view in self._services.units.views() if name in any_model or view.model in ("", name)]
        contexts = [view.max_model_len or 0 for view in mine]
        return max(contexts) if contexts and all(contexts) else None

    async def rescue(self) -> Step:
        """Where it goes on after a failure; raises RequestError."""
        plan = await self._planner.rescue()
        return self._on(self._known(plan.unit), plan.reason, "failover")

    def why_not_move(self, move: Move) -> str | None:
        """Why it can't go on there; None: it can."""
        target = self._services.ready(move.target)
        if target is not None and self._services.parses(target, self._request.info.endpoint):
            return "target_differs"
        if target is None or self._planner.has_failed(target.name, target.epoch):
            return "failed_there"
        return None

    def note_failure(self, step: Step, err: UnitError) -> None:
        """It is not asked there again for a while; the unit's supervisor is told, but only once of one input."""
        view = step.unit if err.unit == step.unit.name else self._services.view(err.unit)
        epoch = view.epoch if view is not None else 0
        self._planner.note_failure(err.unit, epoch)
        digest = self._request.digest or self._request.info.request_id.encode()
        if err.blames_unit and self._services.suspicions.first(digest, err.unit):
            self._services.units.suspect(err.unit, epoch, str(err))

    def _on(self, unit: UnitView, reason: Reason, handoff: str) -> Step:
        owned = self._may_own(unit)
        save = new_ticket(unit) if owned and self._could_move(unit) else None
        return Step(unit, owned, reason, handoff=handoff, save=save)

    def _may_own(self, unit: UnitView) -> bool:
        """Whether the daemon makes the text itself, from tokens: only such a stream can change its unit."""
        info: RequestInfo = self._request.info
        free = info.stays is None and info.first_token_stays is None and unit.abilities.token_ids
        if free and self._services.parses(unit, info.endpoint):
            self._sink.stays("reasoning_parser")
            return False
        return free

    def _could_move(self, unit: UnitView) -> bool:
        if not (unit.can_hand_over and self._services.config.pd.enabled):
            return False
        return any(view.can_hand_over and view.name != unit.name for view in self._services.units.views())

    def _ready(self, name: str) -> UnitView:
        unit = self._services.ready(name)
        if unit is None:
            raise UnitError(name, UnitErrorKind.GONE, "stopped before the handoff")
        return unit

    def _known(self, name: str) -> UnitView:
        view = self._services.view(name)
        if view is None:
            raise error_of(Refusal.UNIT_REMOVED.told(unit=name))
        return view
