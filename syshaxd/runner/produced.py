"""What a request has produced so far, over all its legs: the state from which any unit can go on, and as the client
reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from syshaxd.model.request import Endpoint
from syshaxd.unitclient import Chunk, Usage

from .client_request import ClientRequest, Delta, Event, Finish
from .text import TextPipeline


class Segment(NamedTuple):
    """Tokens whose text is whole characters."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: Mapping[str, Any] | None


class Record:
    """Prompt and output token ids. A unit sends text "" while a character is incomplete, so tokens wait in `pending`
    until text comes; only what is committed counts as produced, and a request is cut only there."""

    def __init__(self) -> None:
        self.prompt_ids: tuple[int, ...] | None = None
        self._output_ids: list[int] = []
        self._plain: list[bytes] = []  # ids after those, as they came: read when somebody needs them
        self._plain_count = 0
        self.text_length = 0  # characters committed
        self.without_ids = 0  # chunks of text that came without token ids
        self._pending: list[Chunk] = []
        self._pending_count = 0
        self._leg_base = 0

    @property
    def can_continue(self) -> bool:
        """Whether another unit could go on from here: it needs every token id."""
        return self.prompt_ids is not None and self.without_ids == 0

    @property
    def output_tokens(self) -> int:
        """Tokens committed; where the unit gives no ids, chunks."""
        return len(self._output_ids) + self._plain_count + self.without_ids

    @property
    def output_ids(self) -> list[int]:
        """Token ids committed."""
        if self._plain:
            self._output_ids += json.loads(b"[" + b",".join(self._plain) + b"]")
            self._plain.clear()
            self._plain_count = 0
        return self._output_ids

    @property
    def pending_ids(self) -> list[int]:
        """Tokens that brought no text yet: part of a character, or tokens that have none."""
        return [token for chunk in self._pending for token in chunk.token_ids]

    @property
    def seen_tokens(self) -> int:
        """Tokens received, committed or not."""
        return self.output_tokens + self._pending_count

    def context(self) -> list[int]:
        """Prompt and output token ids."""
        assert self.prompt_ids is not None
        return [*self.prompt_ids, *self.output_ids]

    def begin_leg(self) -> None:
        """A new unit goes on from the committed tokens; what was pending is computed again."""
        self._pending.clear()
        self._pending_count = 0
        self._leg_base = self.text_length

    def note_prompt(self, chunk: Chunk) -> None:
        """Keeps the prompt's token ids; a later unit's prompt holds output tokens as well and is not it."""
        if self.prompt_ids is None and chunk.prompt_token_ids is not None:
            self.prompt_ids = chunk.prompt_token_ids

    def take_plain(self, ids: bytes) -> bool:
        """Adds an event that is text and its token ids, the ids as they came; False while tokens wait for text."""
        if self._pending:
            return False
        self._plain.append(ids)
        self._plain_count += ids.count(b",") + 1
        return True

    def take(self, chunk: Chunk) -> Segment | None:
        """Adds a chunk; a segment when its text completes one."""
        self.note_prompt(chunk)
        if not chunk.text:
            if chunk.token_ids or chunk.logprobs:
                self._pending.append(chunk)
                self._pending_count += len(chunk.token_ids)
            return None
        if chunk.finish_reason == "abort" and chunk.text.endswith("\ufffd"):
            return None  # half a character, forced out by the abort
        self._pending.append(chunk)
        return self.flush()

    def flush(self) -> Segment | None:
        """Commits what is pending: at the end of the text nothing more completes it."""
        chunks, self._pending, self._pending_count = self._pending, [], 0
        if not chunks:
            return None
        text = "".join(chunk.text for chunk in chunks)
        ids = tuple(token for chunk in chunks for token in chunk.token_ids)
        if not ids:
            self.without_ids += len(chunks)
        self.output_ids.extend(ids)
        self.text_length += len(text)
        return Segment(text, ids, join_logprobs([_shifted(chunk.logprobs, self._leg_base) for chunk in chunks]))


def join_logprobs(parts: Sequence[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    """One logprobs object of either endpoint out of several: their lists joined."""
    present = [part for part in parts if part]
    if len(present) < 2:
        return present[0] if present else None
    joined: dict[str, Any] = {}
    for part in present:
        for name, values in part.items():
            joined[name] = [*(joined.get(name) or []), *values] if isinstance(values, list) else joined.get(name)
    return joined


def _shifted(logprobs: Mapping[str, Any] | None, base: int) -> Mapping[str, Any] | None:
    """Completions count `text_offset` from where a unit began; the client's text began earlier."""
    if not base or not logprobs or not logprobs.get("text_offset"):
        return logprobs
    return {**logprobs, "text_offset": [offset + base for offset in logprobs["text_offset"]]}


class Produced:
    """One a request; made anew when it begins anew. `reasoning`: the daemon tells `<think>` blocks apart."""

    def __init__(self, request: ClientRequest, reasoning: bool = False) -> None:
        body, info = request.body, request.info
        self.record = Record()
        self.usage: Usage | None = None
        self._text: TextPipeline | None = None
        stops, chat = request.stops(), info.endpoint is Endpoint.CHAT
        if info.stays is None and info.first_token_stays is None and (stops or reasoning and chat):
            include, after = bool(body.get("include_stop_str_in_output")), int(body.get("min_tokens") or 0)
            self._text = TextPipeline(stops, include, after, reasoning and chat)
        self._allowed = float("inf") if info.max_tokens is None else float(info.max_tokens)

    @property
    def plain(self) -> bool:
        """Whether the text goes to the client as it comes."""
        return self._text is None

    @property
    def stopped_by(self) -> str | None:
        """The client's stop string that ended the text."""
        return None if self._text is None else self._text.stopped_by

    @property
    def exceeded(self) -> bool:
        """Whether there are more tokens than the client allows, received or committed; known where ids are told."""
        return not self.record.without_ids and self.record.seen_tokens > self._allowed

    def tokens_left(self, context: int | None) -> float:
        """Output tokens that the client, and a context of so many tokens, still allow."""
        return min(self._allowed - self.record.output_tokens, self.room(context))

    def room(self, context: int | None) -> float:
        """Tokens that a context of so many still has; infinite where it, or the prompt, is not known."""
        if context is None or self.record.prompt_ids is None:
            return float("inf")
        return context - len(self.record.prompt_ids) - self.record.output_tokens

    def take(self, chunk: Chunk, over: bool) -> Delta | None:
        """Adds what a unit brought; `over`: nothing follows that could complete a character."""
        segment = self.record.take(chunk)
        if segment is None and over:
            segment = self.record.flush()
        if segment is not None:
            return self._delta(segment)
        # Clients time tokens by events, so a token without text is one too.
        return Delta() if chunk.token_ids else None

    def commit_pending(self) -> Delta | None:
        """Tokens that wait for a character's end will not get one."""
        segment = self.record.flush()
        return None if segment is None else self._delta(segment)

    def ending(self, reason: str, stop_reason: Any, prompt_tokens: int) -> Iterator[Event]:
        """The last events; `prompt_tokens`: as good as known, where no unit has counted them."""
        if self._text is not None and self._text.stopped_by is None:
            parts = self._text.flush()
            if parts.content or parts.reasoning:
                yield Delta(parts.content, parts.reasoning)
        record = self.record
        if record.prompt_ids is not None:
            prompt_tokens = len(record.prompt_ids)
        elif self.usage is not None:
            prompt_tokens = self.usage.prompt_tokens
        details = None if self.usage is None else self.usage.details
        yield Finish(reason, stop_reason, Usage(prompt_tokens, record.output_tokens, details))

    def _delta(self, segment: Segment) -> Delta:
        if self._text is None:
            return Delta(segment.text, "", segment.token_ids, segment.logprobs)
        parts = self._text.feed(segment.text, self.record.output_tokens)
        return Delta(parts.content, parts.reasoning, segment.token_ids, segment.logprobs)
