"""The parsed path: a unit's events become tokens and text of the daemon's own, so that another unit can go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from syshaxd.unitclient import Chunk, transfer_params

from .client_request import Delta
from .produced import Produced
from .sink import Sink
from .steps import Step
from .tickets import LeftTicket


class ParsedPath:
    """Of one leg. `finish` and `stop_reason`: what the unit gave; `remote`: where it keeps KV for NIXL. `context`: the
    longest that the model has."""

    def __init__(
        self, step: Step, produced: Produced, left: LeftTicket, sink: Sink, context: int | None = None
    ) -> None:
        self._step, self._produced, self._left, self._sink = step, produced, left, sink
        self._context = context
        self.finish: str | None = None
        self.stop_reason: Any = None
        self.remote: Mapping[str, Any] | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._produced.stopped_by is not None

    def take(self, chunk: Chunk) -> Delta | None:
        """What the client gets for a chunk."""
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
        delta = None
        if step.prefill_only and step.k == 0:
            produced.record.note_prompt(chunk)
        else:
            delta = produced.take(chunk, self._over())
            if chunk.token_ids or chunk.text:
                self._sink.tokens(produced.record.seen_tokens)
        if chunk.prompt_token_ids is not None and produced.record.prompt_ids is not None:
            self._sink.prompt(len(produced.record.prompt_ids))
        return delta

    def _over(self) -> bool:
        """Whether the text is over, so that an incomplete character will stay one."""
        if self.finish is None or self.finish == "abort":
            return False
        cut_here = self._step.prefill_only and self.finish == "length"
        return not (cut_here and self._produced.tokens_left(self._context) > 1)
