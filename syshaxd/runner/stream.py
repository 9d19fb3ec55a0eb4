"""A request's stream: legs on units come and go under it, the client sees one answer.

Written as one generator over steps. A step ends by itself (finish), by the daemon's order (abort, to move on) or by a
failure; what follows is decided here, from tokens and never from text.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, AsyncGenerator, Iterator, Mapping, Optional

from syshaxd.admission.refusals import Refusal, error_of
from syshaxd.errors import UnitError, UnitErrorKind
from syshaxd.model.plan import Move, Reason, Split, Whole
from syshaxd.model.request import Endpoint
from syshaxd.model.unit import UnitView
from syshaxd.unitclient import Chunk, Usage, transfer_params

from . import bodies
from .accounts import Accounts
from .ledger import Entry
from .mover import ABORT_TIMEOUT, Leg, Mover, abort_later
from .planning import Planner
from .record import Record, Segment
from .relayed import RelaySplitter
from .render import DONE, Collector, StreamRenderer
from .request import ClientRequest, Delta, Event, Finish, Head, Raw, RequestError
from .services import Generation, Services
from .steps import Step, body_of, kv_width, new_ticket
from .text import TextPipeline
from .tickets import LeftTicket
from .timeline import Timeline

MAX_FAILURES = 8  # of one request, over all units
MAX_PARTIAL = 3  # tokens that can be the beginning of one character


class Stream:
    """`open`, then `sse` or `body`, then `close`: always, whatever happened."""

    def __init__(self, services: Services, request: ClientRequest, entry: Entry, timeline: Timeline) -> None:
        self._services = services
        self._request = request
        self._entry = entry
        self._timeline = timeline
        self._loop = asyncio.get_running_loop()
        self._planner = Planner(services, request.info, timeline)
        self.accounts = Accounts(services.metrics, entry, timeline, request.arrived, services.queue)
        self._mover = Mover(services, entry, self.accounts, request.info.endpoint)
        self._left = LeftTicket(services, entry)
        self._record = Record()
        self._pipeline = self._new_pipeline("")
        self._outcome: Optional[tuple[str, Any]] = None  # finish and stop reason of the present leg
        self._usage: Optional[Usage] = None
        self._delivered = False
        self._remote: Optional[Mapping[str, Any]] = None  # KV that a prefill keeps for NIXL
        self._leg: Optional[Leg] = None
        self._step: Optional[Step] = None
        self._leg_id = ""
        self._legs = 0
        self._failures = 0
        self._expired = False
        self._going_down = False
        self._expiry = self._loop.call_at(request.arrived + services.config.limits.request_timeout, self._expire)
        self._head: Optional[Head] = None
        self._events = self._run()
        self._first: Optional[Event] = None
        self._renderer: Optional[StreamRenderer] = None
        self._done = False

    # ---- for the conductor ----

    async def open(self) -> Head:
        """Runs until the first event is there; raises RequestError when there will be none."""
        self._first = await self._events.__anext__()
        assert self._head is not None
        return self._head

    async def next_bytes(self) -> bytes:
        """The next events, the last of them `[DONE]`, then b""; raises RequestError when the stream is lost."""
        if self._renderer is None:
            assert self._first is not None
            self._renderer = StreamRenderer(self._request)
            return self._renderer.render(self._first, self._record.prompt_ids)
        try:
            return self._renderer.render(await self._events.__anext__())
        except StopAsyncIteration:
            done, self._done = DONE if not self._done else b"", True
            return done

    async def body(self) -> bytes:
        """The whole response as JSON."""
        collector = Collector(self._request)
        assert self._first is not None
        collector.add(self._first)
        async for event in self._events:
            collector.add(event)
        return collector.body(self._record.prompt_ids)

    def summary(self) -> Mapping[str, Any]:
        """For the access line."""
        return self.accounts.summary(self._loop.time(), self._entry.output_tokens)

    async def close(self, status: int) -> None:
        """Ends what is still running; `status`: HTTP status that the client saw, 499 when it left."""
        self._expiry.cancel()
        await self._events.aclose()
        self._mover.over("request_ended")
        self._left.discard()
        self._services.ledger.remove(self._entry)
        self.accounts.end(status, self._loop.time(), self._record.output_tokens)
        self._services.queue.changed()

    # ---- for the Runner's cycle ----

    @property
    def entry(self) -> Entry:
        """Its line in the ledger."""
        return self._entry

    def request_move(self, move: Move) -> Optional[str]:
        """Begins a handoff; returns why not, or None. After a refusal it is left alone for a while."""
        refusal = self._try_move(move)
        if refusal is not None:
            now = self._loop.time()
            self._entry.last_move = now
            self._timeline.add(now, "not_moved", to=move.target, why=refusal)
        return refusal

    def _try_move(self, move: Move) -> Optional[str]:
        step, leg = self._step, self._leg
        if step is None or leg is None or not step.owned or step.prefill_only or self._mover.move is not None:
            return "not_running"
        if not self._record.can_continue:
            return "no_token_ids"
        target = self._services.ready(move.target)
        if target is not None and self._services.parses(target, self._request.info.endpoint):
            return "target_differs"
        if target is None or self._planner.has_failed(target.name, target.epoch):
            return "failed_there"
        now = self._loop.time()
        self._timeline.add(now, "move", to=move.target, reason=move.reason.code, why=move.reason.text)
        self._mover.begin(move, step, leg, self._leg_id)
        return None

    def unit_gone(self, view: Optional[UnitView]) -> None:
        """Given the present view of the unit it is on: gives the leg up when that unit was stopped or replaced."""
        step = self._step
        if step is None:
            return
        if view is None or view.epoch != step.unit.epoch or view.url != step.unit.url:
            self.give_up("the unit was stopped or replaced")

    def give_up(self, why: str) -> None:
        """Ends the present leg with a failure."""
        if self._leg is not None:
            self._leg.abandon(UnitErrorKind.GONE, why)

    def go_down(self) -> None:
        """The daemon stops: the request ends with an error."""
        self._going_down = True
        self.give_up("the daemon is stopping")

    # ---- the generator ----

    async def _run(self) -> AsyncGenerator[Event, None]:
        following: Optional[Step] = await self._first_step()
        while following is not None:
            step = following
            settled = await self._settle_pending(step)
            if settled is not None:
                yield settled
            self._enter(step)
            leg = self._owned_leg(step) if step.owned or step.prefill_only else self._relay(step)
            try:
                async for event in leg:
                    self._delivered = True
                    yield event
                following = self._after(step)
            except UnitError as err:
                following = await self._after_failure(step, err)
            finally:
                await leg.aclose()
        if self._step is not None and self._step.owned:
            for event in self._ending():
                yield event

    async def _settle_pending(self, step: Step) -> Optional[Delta]:
        """Decides at a cut about tokens without text. Up to three may be a part of a character and are cheap to compute
        again; more are something else (special tokens, as a rule), which the next unit's /detokenize tells apart."""
        pending = self._record.pending_ids
        if len(pending) <= MAX_PARTIAL or not step.owned:
            return None
        target = self._services.target(step.unit)
        model = step.unit.model or self._request.info.model
        try:
            text = await self._services.client.detokenize(target, model, pending, ABORT_TIMEOUT)
        except UnitError as err:
            self._services.log.warning("tokens will be computed again", request_id=self._leg_id, error=str(err))
            return None
        segment = self._record.flush() if "\ufffd" not in text else None
        return None if segment is None else self._deliver(segment)

    def _enter(self, step: Step) -> None:
        if self._going_down:
            raise error_of(Refusal.SHUTTING_DOWN.told())
        self._step = step
        self._outcome, self._entry.silent = None, False
        self._legs += 1
        own_id = self._request.info.request_id
        self._leg_id = f"{own_id}.prefill{self._legs}" if step.prefill_only else own_id
        if self._delivered:
            self._leg_id = f"{own_id}.{self._legs}"
        self._record.begin_leg()
        self._entry.output_tokens = self._record.output_tokens
        self._services.ledger.place(self._entry, step.unit.name)
        # Every token has its KV but the last one, which no unit has computed yet.
        tokens = self._entry.prompt_tokens + max(0, self._record.output_tokens - 1)
        kv_bytes = tokens * kv_width(step, self._services.snapshots.snapshot()) or None
        self.accounts.leg(step, self._loop.time(), kv_bytes)

    async def _owned_leg(self, step: Step) -> AsyncGenerator[Event, None]:
        body = body_of(step, self._request, self._record)
        finished = False
        try:
            async with self._open(step, body) as leg:
                self._leg = leg
                async for chunk in leg:
                    delta = self._take(step, chunk)
                    if delta is not None:
                        yield delta
                    if self._pipeline.stopped_by is not None:
                        return
            finished = True
        finally:
            self._leg = None
            if not finished and (self._outcome is None or step.save is not None):
                abort_later(self._services, self._request.info.endpoint, step, self._leg_id)

    async def _relay(self, step: Step) -> AsyncGenerator[Event, None]:
        body = body_of(step, self._request, self._record)
        finished = False
        thinks = self._request.info.endpoint is Endpoint.CHAT and not step.unit.abilities.reasoning_field
        split = RelaySplitter().split if thinks and self._services.reasoning(step.unit.name) else bytes
        try:
            if not self._request.info.stream:
                answer = await self._whole_answer(step, body)
                self._note_relayed()
                yield Raw(split(answer))
            else:
                async with self._open(step, body) as leg:
                    self._leg = leg
                    async for chunk in leg:
                        self._note_relayed()
                        yield Raw(split(chunk.payload))
            finished = True
        finally:
            self._leg = None
            if not finished:
                abort_later(self._services, self._request.info.endpoint, step, self._leg_id)

    async def _whole_answer(self, step: Step, body: "dict[str, Any]") -> bytes:
        limit = self._request.arrived + self._services.config.limits.request_timeout - self._loop.time()
        target = self._services.target(step.unit)
        call = self._services.client.call(target, self._request.info.endpoint, body, self._leg_id, max(0.1, limit))
        self._leg, self._entry.silent = call, True
        return await call.result()

    def _open(self, step: Step, body: "dict[str, Any]") -> Generation:
        endpoint = self._request.info.endpoint
        return self._services.generation(step.unit, endpoint, body, self._leg_id, step.keeps_for_nixl)

    # ---- what a leg brings ----

    def _take(self, step: Step, chunk: Chunk) -> Optional[Delta]:
        if chunk.usage is not None:
            # What a handoff spared a unit is no affair of the client's.
            self._usage = self._usage or (chunk.usage if step.load is None else chunk.usage._replace(details=None))
            self.accounts.took(step, chunk.usage, self._loop.time())
        if step.keeps_for_nixl:
            self._remote = transfer_params(chunk.payload, step.unit.name)
        if step.load is not None and (chunk.token_ids or chunk.text or chunk.finish_reason):
            self._left.taken()
        if chunk.finish_reason is not None:
            self._outcome = (chunk.finish_reason, chunk.stop_reason)
        record = self._record
        if step.prefill_only and step.k == 0:
            record.note_prompt(chunk)
        else:
            segment = record.take(chunk)
            if segment is None and self._ends_here(step):
                segment = record.flush()
            self._count(chunk)
            if segment is not None:
                return self._deliver(segment)
            if chunk.token_ids:
                return Delta()  # clients time tokens by events, so a token without text is one too
        if record.prompt_ids is not None:
            self._entry.prompt_tokens = len(record.prompt_ids)
        return None

    def _count(self, chunk: Chunk) -> None:
        record, entry = self._record, self._entry
        if record.prompt_ids is not None:
            entry.prompt_tokens = len(record.prompt_ids)
        if chunk.token_ids or chunk.text:
            entry.output_tokens = record.seen_tokens
            self.accounts.tokens(self._loop.time())

    def _ends_here(self, step: Step) -> bool:
        """Whether the text is over, so that an incomplete character will stay one."""
        if self._outcome is None or self._outcome[0] == "abort":
            return False
        return not (step.prefill_only and self._outcome[0] == "length" and self._tokens_left(step.unit) > 1)

    def _deliver(self, segment: Segment) -> Delta:
        parts = self._pipeline.feed(segment.text, self._record.output_tokens)
        return Delta(parts.content, parts.reasoning, segment.token_ids, segment.logprobs)

    def _note_relayed(self) -> None:
        self._left.taken()
        self._entry.output_tokens += 1
        self.accounts.tokens(self._loop.time())

    def _ending(self) -> Iterator[Event]:
        stop = self._pipeline.stopped_by
        if stop is None:
            parts = self._pipeline.flush()
            if parts.content or parts.reasoning:
                yield Delta(parts.content, parts.reasoning)
        reason, stop_reason = ("stop", stop) if stop is not None else self._outcome or ("length", None)
        usage = self._usage or Usage(self._entry.prompt_tokens, 0)
        prompt = self._record.prompt_ids
        prompt_tokens = usage.prompt_tokens if prompt is None else len(prompt)
        yield Finish(reason, stop_reason, Usage(prompt_tokens, self._record.output_tokens, usage.details))

    # ---- what follows a leg ----

    async def _first_step(self) -> Step:
        plan = await self._planner.first()
        assert isinstance(plan, (Whole, Split))
        self._record = Record()
        self.accounts.planned(plan.reason, plan.prediction, self._loop.time())
        self._head = Head(plan.route, plan.reason, plan.prediction)
        if isinstance(plan, Split):
            prefill = self._known(plan.prefill)
            self._pipeline = self._new_pipeline(plan.decode)
            owned = self._may_own(self._known(plan.decode))
            k = plan.k if owned and not prefill.nixl else 0
            # Nobody would fetch the KV of a request that ends with its first token.
            fetched = not prefill.nixl and (k == 0 or self._tokens_left(prefill) > 1)
            save = new_ticket(prefill) if fetched else None
            return Step(prefill, owned, plan.reason, plan.decode, k, save=save)
        unit = self._known(plan.unit)
        self._pipeline = self._new_pipeline(unit.name)
        return self._step_on(unit, plan.reason, "")

    def _after(self, step: Step) -> Optional[Step]:
        """The step that follows a leg which came to its end; None: the request is over. Raises UnitError."""
        if self._pipeline.stopped_by is not None or not (step.owned or step.prefill_only):
            return None
        assert self._outcome is not None
        reason = self._outcome[0]
        if step.prefill_only and (step.k == 0 or reason == "length") and self._tokens_left(step.unit) > 0:
            self._left.leave(step)
            return self._decode(step)
        if reason == "abort":
            self._left.leave(step)
            return self._moved(step)
        self._mover.over("finished_first")
        return None

    def _decode(self, step: Step) -> Step:
        """Where a split decodes: asked again now that the prefill has taken its time."""
        info, services = self._request.info, self._services
        unit = self._services.ready(step.then)
        if unit is None:
            raise UnitError(step.then, UnitErrorKind.GONE, "stopped before the handoff")
        if not services.scheduler.keep_split(info, unit.name, self._entry.prompt_tokens, services.snapshots.snapshot()):
            services.metrics.decided("stay", "split_late")
            self.accounts.stays()
            self._timeline.add(self._loop.time(), "kept", unit=step.unit.name, why=f"{unit.name} would be late")
            return replace(self._step_on(step.unit, step.reason, ""), load=step.save)
        return replace(self._step_on(unit, step.reason, "split"), load=step.save, remote=self._remote)

    def _moved(self, step: Step) -> Step:
        move = self._mover.move
        if move is None:
            raise UnitError(step.unit.name, UnitErrorKind.ABORTED, "ended the request unasked")
        unit = self._services.ready(move.target)
        if unit is None:
            self._mover.over("target_gone")
            raise UnitError(move.target, UnitErrorKind.GONE, "stopped before the handoff")
        kind = self._mover.kind(move)
        self._mover.over("")
        return replace(self._step_on(unit, move.reason, kind), load=step.save)

    async def _after_failure(self, step: Step, err: UnitError) -> Optional[Step]:
        """The step that follows a failure; None: the request was over already. Raises RequestError."""
        if step.owned and self._outcome is not None and self._outcome[0] != "abort" and not step.prefill_only:
            return None  # it broke after its finish
        self._note_failure(step, err)
        if self._going_down:
            raise error_of(Refusal.SHUTTING_DOWN.told()) from err
        if self._expired:
            raise RequestError(504, "request_timeout", "the request took longer than limits.request_timeout") from err
        if err.client_fault and not self._delivered:
            raise RequestError(err.status, "unit_refused", str(err), body=err.body) from err
        self._failures += 1
        if self._failures > MAX_FAILURES:
            raise RequestError(502, "unit_failed", f"given up after {self._failures} failures: {err}") from err
        if not self._delivered:
            self._left.discard()
            return await self._first_step()
        why_not = self._why_not_continue(step)
        if why_not is not None:
            raise RequestError(502, "stream_lost", f"{err}; it can't go on elsewhere: {why_not}") from err
        if self._tokens_left(step.unit) <= 0:
            self._outcome = ("length", None)
            return None
        plan = await self._planner.rescue()
        # What the failed unit was to load and has not taken is still there.
        load = self._left.offer(self._services.snapshots.snapshot().pd.enabled)
        following = replace(self._step_on(self._known(plan.unit), plan.reason, "failover"), load=load)
        if not following.owned:
            raise RequestError(502, "stream_lost", f"{err}; {plan.unit} can't go on from its tokens") from err
        return following

    def _why_not_continue(self, step: Step) -> Optional[str]:
        info = self._request.info
        if not step.owned:
            return info.stays or info.first_token_stays or self._entry.stays or "its unit is of kind openai"
        return None if self._record.can_continue else "its unit gave no token ids"

    def _note_failure(self, step: Step, err: UnitError) -> None:
        self._mover.over("source_failed")
        self.accounts.failed(err, self._loop.time())
        epoch = step.unit.epoch
        if err.unit != step.unit.name:
            view = self._services.view(err.unit)
            epoch = view.epoch if view is not None else 0
        self._planner.note_failure(err.unit, epoch)
        if err.kind is not UnitErrorKind.GONE and not err.client_fault:
            self._services.units.suspect(err.unit, epoch, str(err))

    def _tokens_left(self, unit: UnitView) -> float:
        """Output tokens that the client and the model's length still allow."""
        produced = self._record.output_tokens
        allowed = bodies.max_tokens_of(self._request.body, self._request.info.endpoint)
        left = float("inf") if allowed is None else float(allowed - produced)
        if unit.max_model_len is not None and self._record.prompt_ids is not None:
            left = min(left, unit.max_model_len - len(self._record.prompt_ids) - produced)
        return left

    def _step_on(self, unit: UnitView, reason: Reason, handoff: str) -> Step:
        owned = self._may_own(unit)
        save = new_ticket(unit) if owned and self._could_move(unit) else None
        return Step(unit, owned, reason, handoff=handoff, save=save)

    def _may_own(self, unit: UnitView) -> bool:
        """Whether the daemon makes the text itself, from tokens: only such a stream can change its unit."""
        info = self._request.info
        free = info.stays is None and info.first_token_stays is None and unit.abilities.token_ids
        if free and self._services.parses(unit, info.endpoint):
            self._stays("reasoning_parser")
            return False
        return free

    def _stays(self, rule: str) -> None:
        """A rule that depends on the unit: noticed when the request comes to it, and counted once."""
        if self._entry.stays is None:
            self._entry.stays = rule
            self._services.metrics.stays(rule)
            self._timeline.add(self._loop.time(), "stays", rule=rule)

    def _could_move(self, unit: UnitView) -> bool:
        if not (unit.can_hand_over and self._services.config.pd.enabled):
            return False
        return any(view.can_hand_over and view.name != unit.name for view in self._services.units.views())

    def _expire(self) -> None:
        self._expired = True
        if self._leg is not None:
            self._leg.abandon(UnitErrorKind.TIMEOUT, "limits.request_timeout has passed")

    def _known(self, name: str) -> UnitView:
        view = self._services.view(name)
        if view is None:
            raise error_of(Refusal.UNIT_REMOVED.told(unit=name))
        return view

    def _new_pipeline(self, unit: str) -> TextPipeline:
        body, info = self._request.body, self._request.info
        if info.stays is not None or info.first_token_stays is not None:
            return TextPipeline((), False, 0, False)
        include = bool(body.get("include_stop_str_in_output"))
        reasoning = info.endpoint is Endpoint.CHAT and self._services.reasoning(unit)
        return TextPipeline(bodies.stops_of(body), include, int(body.get("min_tokens") or 0), reasoning)
