"""The bytes path: a unit's events go to the client as they came."""

from __future__ import annotations

import json
from typing import Any

from syshaxd.unitclient import Chunk

from .client_request import Raw
from .sink import Sink
from .text import Parts, ReasoningSplitter
from .tickets import LeftTicket


class BytesPath:
    """Of one leg. `think`: tells `<think>` blocks apart, where the unit does not; None: it does, or there are none."""

    stopped = False
    finish: str | None = None
    stop_reason: Any = None
    remote = None

    def __init__(self, left: LeftTicket, sink: Sink, think: "ThinkBlocks | None") -> None:
        self._left, self._sink, self._think = left, sink, think

    def take(self, chunk: Chunk) -> Raw:
        """What the client gets for a chunk, or for the whole answer."""
        self._left.taken()
        self._sink.tokens(self._sink.entry.output_tokens + 1)
        return Raw(chunk.payload if self._think is None else self._think.split(chunk.payload))


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
        except (ValueError, AttributeError, TypeError):
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
