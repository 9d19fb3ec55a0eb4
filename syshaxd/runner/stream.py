"""A request's stream: legs on units come and go under it, the client sees one answer.

The driver: it begins legs, passes on what they bring, and does what `states.next_step` says when one ends. It decides
nothing itself, and never from text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

from syshaxd.admission.refusals import Refusal, error_of
from syshaxd.errors import UnitError, UnitErrorKind
from syshaxd.model.plan import Move, Split
from syshaxd.model.request import Endpoint
from syshaxd.model.unit import UnitView

from .aborts import ABORT_TIMEOUT
from .bytes_path import BytesPath, ThinkBlocks
from .client_request import ClientRequest, Delta, Event, Head, RequestError
from .ledger import Entry
from .leg import Leg
from .ordered_move import OrderedMove
from .parsed_path import ParsedPath
from .produced import Produced
from .render import DONE, Collector, StreamRenderer
from .routing import Routing
from .services import Services
from .sink import Sink
from .states import Act, Ending, State, Transition, next_step
from .steps import Step
from .tickets import LeftTicket
from .timeline import Timeline

MAX_PARTIAL = 3  # tokens that can be the beginning of one character


class Stream:
    """`open`, then `next_bytes` until it gives none, or `body`; then `close`: always, whatever happened."""

    def __init__(self, services: Services, request: ClientRequest, timeline: Timeline) -> None:
        self._services = services
        self._request = request
        self._sink = Sink(services, request, timeline)
        self._routing = Routing(services, request, self._sink)
        self._order = OrderedMove(services, self._sink, request.info.endpoint)
        self._left = LeftTicket(services, self._sink)
        self._answer = self._streamed() if request.info.stream else self._collected()
        shown = any(request.body.get(name) not in (None, False) for name in ("logprobs", "return_token_ids"))
        self._plain = request.info.stream and not shown  # its events may stay bytes
        deadline = request.arrived + services.config.limits.request_timeout
        self._expiry = asyncio.get_running_loop().call_at(deadline, self._expire)
        # What changes, and nothing else does:
        self._state = State()
        self._leg: Leg | None = None
        self._produced = Produced(request)
        self._head: Head | None = None
        self._first = b""

    # ---- for the conductor ----

    async def open(self) -> Head:
        """Runs until the first bytes are there; raises RequestError when there will be none."""
        self._first = await self._answer.__anext__()
        assert self._head is not None
        return self._head

    async def next_bytes(self) -> bytes:
        """The next events, the last of them `[DONE]`, then b""; raises RequestError when the stream is lost."""
        first, self._first = self._first, b""
        if first:
            return first
        try:
            return await self._answer.__anext__()
        except StopAsyncIteration:
            return b""

    async def body(self) -> bytes:
        """The whole response as JSON."""
        return await self.next_bytes()

    def summary(self) -> Mapping[str, Any]:
        """For the access line."""
        return self._sink.summary()

    async def close(self, status: int) -> None:
        """Ends what is still running; `status`: HTTP status that the client saw, 499 when it left."""
        self._expiry.cancel()
        await self._answer.aclose()
        self._order.over("request_ended")
        self._left.discard()
        self._sink.ended(status, self._produced.record.output_tokens)

    # ---- for the Runner's cycle ----

    @property
    def entry(self) -> Entry:
        """Its line in the ledger."""
        return self._sink.entry

    def request_move(self, move: Move) -> str | None:
        """Begins a handoff; returns why not, or None. After a refusal it is left alone for a while."""
        leg = self._leg
        refusal: str | None = "not_running"
        if leg is not None and leg.runs and leg.step.owned and not leg.step.prefill_only and self._order.move is None:
            can_continue = self._produced.record.can_continue
            refusal = self._routing.why_not_move(move) if can_continue else "no_token_ids"
            if refusal is None:
                self._order.begin(move, leg)
        if refusal is not None:
            self._sink.move_refused(move, refusal)
        return refusal

    def unit_gone(self, view: UnitView | None) -> None:
        """Given the present view of the unit it is on: gives the leg up when that unit was stopped or replaced."""
        if self._leg is not None:
            unit = self._leg.step.unit
            if view is None or view.epoch != unit.epoch or view.url != unit.url:
                self._leg.abandon(UnitErrorKind.GONE, "the unit was stopped or replaced")

    def go_down(self) -> None:
        """The daemon stops: the request ends with an error."""
        self._doom(error_of(Refusal.SHUTTING_DOWN.told()), UnitErrorKind.GONE, "the daemon is stopping")

    def _expire(self) -> None:
        refusal = RequestError(504, "request_timeout", "the request took longer than limits.request_timeout")
        self._doom(refusal, UnitErrorKind.TIMEOUT, "limits.request_timeout has passed")

    def _doom(self, refusal: RequestError, kind: UnitErrorKind, why: str) -> None:
        self._state = replace(self._state, doom=refusal)
        if self._leg is not None:
            self._leg.abandon(kind, why)

    # ---- the answer ----

    async def _streamed(self) -> AsyncGenerator[bytes, None]:
        renderer, events = StreamRenderer(self._request), self._events()
        try:
            async for group in events:
                prompt_ids = self._produced.record.prompt_ids
                yield b"".join([renderer.render(event, prompt_ids) for event in group])
        finally:
            await events.aclose()
        yield DONE

    async def _collected(self) -> AsyncGenerator[bytes, None]:
        collector, events = Collector(self._request), self._events()
        try:
            async for group in events:
                for event in group:
                    collector.add(event)
        finally:
            await events.aclose()
        yield collector.body(self._produced.record.prompt_ids)

    async def _events(self) -> AsyncGenerator[list[Event], None]:
        """In groups: what came at once goes out at once."""
        step = await self._anew()
        while True:
            settled = await self._settle_pending(step)
            if settled is not None:
                yield [settled]
            leg = self._leg = self._begin(step)
            events, error = leg.events(), None
            try:
                async for group in events:
                    if not self._state.delivered:
                        self._state = replace(self._state, delivered=True)
                    yield group
            except UnitError as err:
                error = err
            finally:
                await events.aclose()
            following = await self._follow(leg, error)
            if isinstance(following, Transition):
                break
            step = following
        if step.owned:
            yield list(self._produced.ending(following.finish, following.stop_reason, self.entry.prompt_tokens))

    def _begin(self, step: Step) -> Leg:
        """A leg that does the step, under a name that its unit has not heard yet."""
        state = self._state
        if state.doom is not None:
            raise state.doom
        services, info = self._services, self._request.info
        number = state.legs + 1
        self._state = replace(state, legs=number)
        again = f".{number}" if state.delivered else f".prefill{number}" if step.prefill_only else ""
        record = self._produced.record
        record.begin_leg()
        self._sink.leg(step, record.output_tokens)
        path: BytesPath | ParsedPath
        if step.owned or step.prefill_only:
            context = self._routing.longest_context()
            path = ParsedPath(step, self._produced, self._left, self._sink, context, self._plain)
        else:
            thinks = info.endpoint is Endpoint.CHAT and not step.unit.abilities.reasoning_field
            blocks = ThinkBlocks() if thinks and services.reasoning(step.unit.name) else None
            path = BytesPath(step.unit.name, self._left, self._sink, not info.stream, blocks)
        leg = Leg(services, self._request, step, f"{info.request_id}{again}", record, path, self._sink)
        if leg.whole:
            self._sink.silent()
        return leg

    async def _settle_pending(self, step: Step) -> Delta | None:
        """Decides at a cut about tokens without text. Up to three may be a part of a character and are cheap to compute
        again; more are something else (special tokens, as a rule), which the next unit's /detokenize tells apart."""
        pending = self._produced.record.pending_ids
        if len(pending) <= MAX_PARTIAL or not step.owned:
            return None
        target, info = self._services.target(step.unit), self._request.info
        model = step.unit.model or info.model
        try:
            text = await self._services.client.detokenize(target, model, pending, ABORT_TIMEOUT)
        except UnitError as err:
            self._services.log.warning("tokens will be computed again", request_id=info.request_id, error=str(err))
            return None
        return self._produced.commit_pending() if "\ufffd" not in text else None

    # ---- what follows a leg ----

    async def _follow(self, leg: Leg, error: UnitError | None) -> Step | Transition:
        """The next step, or how the answer ends; raises RequestError."""
        while True:
            done = next_step(self._state, leg.step, self._ending(leg, error))
            self._state = done.state
            if done.left:
                self._left.leave(leg.step)
            if done.fault is not None:
                self._order.over("source_failed")
                self._sink.failed(done.fault)
                self._routing.note_failure(leg.step, done.fault)
            try:
                return await self._do(done, leg)
            except UnitError as err:  # where it was to go is gone
                error = err

    def _ending(self, leg: Leg, error: UnitError | None) -> Ending:
        info, path = self._request.info, leg.path
        if leg.step.owned:
            stuck = None if self._produced.record.can_continue else "its unit gave no token ids"
        else:
            stuck = info.stays or info.first_token_stays or self.entry.stays or "its unit is of kind openai"
        produced = self._produced
        return Ending(
            path.finish,
            path.stop_reason,
            produced.stopped_by,
            error,
            produced=produced.record.output_tokens,
            left=produced.tokens_left(self._routing.longest_context()),
            full=produced.room(leg.step.unit.max_model_len) <= 0,
            stuck=stuck,
            moving=self._order.move is not None,
        )

    async def _do(self, done: Transition, leg: Leg) -> Step | Transition:
        if done.act is Act.END:
            self._order.over("finished_first")
            return done
        if done.act is Act.FAIL:
            assert done.refusal is not None
            raise done.refusal from done.fault
        if done.act is Act.DECODE:
            return self._routing.decode(leg.step, leg.path.remote)
        if done.act is Act.MOVE:
            return self._moved(leg.step)
        if done.act is Act.ANEW:
            self._left.discard()
            return await self._anew()
        return await self._rescue(done, leg)

    async def _anew(self) -> Step:
        plan, step = await self._routing.first()
        reasoning = self._services.reasoning(plan.decode if isinstance(plan, Split) else step.unit.name)
        self._produced = Produced(self._request, reasoning)
        self._head = Head(plan.route, plan.reason, plan.prediction)
        return step

    def _moved(self, step: Step) -> Step:
        move = self._order.move
        assert move is not None
        try:
            following = self._routing.moved(step, move, self._order.kind(move))
        except UnitError:
            self._order.over("target_gone")
            raise
        self._order.over("")
        return following

    async def _rescue(self, done: Transition, leg: Leg) -> Step:
        outgrown = done.act is Act.OUTGROW
        following = await (self._routing.outgrow(leg.step) if outgrown else self._routing.rescue())
        # What the failed unit was to load and has not taken is still there.
        if not following.owned:
            text = f"{done.fault}; {following.unit.name} can't go on from its tokens"
            raise RequestError(502, "stream_lost", text) from done.fault
        return replace(following, load=self._left.offer(self._services.snapshots.snapshot().pd.enabled))
