"""The parsed path: a unit's events become tokens and text of the daemon's own, so that another unit can go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from syshaxd.errors import UnitError, UnitErrorKind
from syshaxd.unitclient import Chunk, Plain, PlainForm, parse_chunk, transfer_params

from .client_request import Delta
from .produced import Produced
from .sink import Sink
from .steps import Step
from .tickets import LeftTicket

MAX_EMPTY = 1000  # events without a token, in a row


class ParsedPath:
    """Of one leg. `over`: its unit gave a reason for the end; `finish`, `stop_reason`: what that was; `remote`: where
    it keeps KV for NIXL; `arrivals`: events that brought tokens. `context`: the longest that the model has; `plain`:
    what is text and ids only may stay bytes."""

    def __init__(
        self, step: Step, produced: Produced, left: LeftTicket, sink: Sink, context: int | None, plain: bool
    ) -> None:
        self._step, self._produced, self._left, self._sink = step, produced, left, sink
        self._context = context
        self._form = PlainForm() if plain and produced.plain and step.owned and not step.prefill_only else None
        self._empty = 0  # events without a token, in a row
        self.arrivals = 0
        self.finish: str | None = None
        self.stop_reason: Any = None
        self.remote: Mapping[str, Any] | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._produced.stopped_by is not None

    @property
    def over(self) -> bool:
        """Whether the end of the connection would be an end."""
        return self.finish is not None

    @property
    def output_tokens(self) -> int:
        """Of the request, received so far."""
        return self._produced.record.seen_tokens

    def take(self, payload: bytes) -> Delta | Plain | None:
        """What the client gets for an event. Raises UnitError."""
        if self._form is not None:
            plain = self._form.cut(payload)
            if plain is not None and self._produced.record.take_plain(plain.ids):
                self.arrivals += 1
                self._check_length()
                return plain
        chunk = parse_chunk(payload, self._step.unit.name)
        if self._form is not None:
            self._form.learn(chunk, self._step.unit.name)
        return self._parsed(chunk)

    def _parsed(self, chunk: Chunk) -> Delta | None:
        step, produced = self._step, self._produced
        if chunk.usage is not None:
            # What a handoff spared a unit is no affair of the client's.
            shown = chunk.usage if step.load is None else chunk.usage._replace(details=None)
            produced.usage = produced.usage or shown
            self._sink.loaded(step, chunk.usage)
        if step.keeps_for_nixl:
            self.remote = transfer_params(chunk.payload, step.unit.name)
        if step.load is not None and (chunk.token_ids or chunk.text or chunk.finish_reason):
            self._left.taken()
        if chunk.finish_reason is not None:
            self.finish, self.stop_reason = chunk.finish_reason, chunk.stop_reason
        self._empty = 0 if chunk.token_ids or chunk.text else self._empty + 1
        delta = None
        if step.prefill_only and step.k == 0:
            produced.record.note_prompt(chunk)
        else:
            delta = produced.take(chunk, self._is_last())
            self.arrivals += bool(chunk.token_ids or chunk.text)
        if chunk.prompt_token_ids is not None and produced.record.prompt_ids is not None:
            self._sink.prompt(len(produced.record.prompt_ids))
        self._check_length()
        return delta

    def _check_length(self) -> None:
        """A unit that says more than it was asked for, or nothing without end, is broken."""
        if self._produced.exceeded:
            raise UnitError(self._step.unit.name, UnitErrorKind.GARBAGE, "more tokens than it was asked for")
        if self._empty > MAX_EMPTY:
            raise UnitError(self._step.unit.name, UnitErrorKind.GARBAGE, f"{MAX_EMPTY} events without a token")

    def _is_last(self) -> bool:
        """Whether the text is over, so that an incomplete character will stay one."""
        if self.finish is None or self.finish == "abort":
            return False
        cut_here = self._step.prefill_only and self.finish == "length"
        return not (cut_here and self._produced.tokens_left(self._context) > 1)
