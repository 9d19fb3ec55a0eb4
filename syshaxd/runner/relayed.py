"""Chat answers passed through as a unit wrote them, but for `<think>` blocks that the unit does not tell apart."""

from __future__ import annotations

import json
from typing import Any, Dict

from .text import Parts, ReasoningSplitter


class RelaySplitter:
    """Of one request: a splitter for each choice. What is no chat answer stays as it is."""

    def __init__(self) -> None:
        self._splitters: Dict[int, ReasoningSplitter] = {}

    def split(self, payload: bytes) -> bytes:
        """One event's payload, or a whole response body."""
        try:
            message = json.loads(payload)
            choices = message.get("choices") or []
            changed = [self._split(choice) for choice in choices]
        except (ValueError, AttributeError, TypeError):
            return payload
        return json.dumps(message, separators=(",", ":")).encode() if any(changed) else payload

    def _split(self, choice: Dict[str, Any]) -> bool:
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
