"""The bytes path: a unit's events go to the client as they came."""

from __future__ import annotations

import json
from typing import Any

from syshaxd.unitclient import parse_chunk

from .client_request import Raw
from .sink import Sink
from .text import Parts, ReasoningSplitter
from .tickets import LeftTicket


class BytesPath:
    """Of one leg. `over`: its unit gave a reason for the end. `whole`: the unit answers at once. `think`: tells
    `<think>` blocks apart, where the unit does not; None: it does, or there are none."""

    stopped = False
    finish: str | None = None  # not looked for: the answer may have several choices
    stop_reason: Any = None
    remote = None

    def __init__(self, unit: str, left: LeftTicket, sink: Sink, whole: bool, think: "ThinkBlocks | None") -> None:
        self._unit, self._left, self._whole, self._think = unit, left, whole, think
        self._before = sink.entry.output_tokens
        self.arrivals = 0
        self.over = False

    @property
    def output_tokens(self) -> int:
        """Of the request; an event counts as one."""
        return self._before + self.arrivals

    def take(self, payload: bytes) -> Raw:
        """What the client gets for an event, or for the whole answer. Raises UnitError."""
        self._left.taken()
        # All but the last event of a choice say "not finished"; what does not is read, for it may be an error.
        if not self._whole and (b'"finish_reason":null' not in payload or b'"error"' in payload):
            self.over = parse_chunk(payload, self._unit).finish_reason is not None or self.over
        self.arrivals += 1
        return Raw(payload if self._think is None else self._think.split(payload))


class ThinkBlocks:
    """A splitter for each choice of a chat answer that is passed on. What is no chat answer stays as it is."""

    def __init__(self) -> None:
        self._splitters: dict[int, ReasoningSplitter] = {}

    def split(self, payload: bytes) -> bytes:
        """One event's payload, or a whole response body."""
        try:
            message = json.loads(payload)
            choices = message.get("choices") or []
            changed = [self._split(choice) for choice in choices]
        except (ValueError, AttributeError, TypeError, RecursionError):
            return payload
        return json.dumps(message, separators=(",", ":")).encode() if any(changed) else payload

    def _split(self, choice: dict[str, Any]) -> bool:
        said = choice["delta"] if "delta" in choice else choice.get("message")
        if not isinstance(said, dict):
            return False
        splitter = self._splitters.setdefault(choice.get("index", 0), ReasoningSplitter())
        text = said.get("content")
        parts = splitter.feed(text) if text else Parts()
        if choice.get("finish_reason"):
            rest = splitter.flush()
            parts = Parts(parts.content + rest.content, parts.reasoning + rest.reasoning)
        if (parts.content, parts.reasoning) == (text or "", ""):
            return False
        said["content"] = parts.content
        if parts.reasoning:
            said["reasoning_content"] = parts.reasoning
        return True
