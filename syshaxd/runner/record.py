"""What a request has produced so far: the state from which any unit can go on."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from syshaxd.unitclient import Chunk


class Segment(NamedTuple):
    """Tokens whose text is whole characters."""

    text: str
    token_ids: Tuple[int, ...]
    logprobs: Optional[Mapping[str, Any]]


class Record:
    """Prompt and output token ids. A unit sends text "" while a character is incomplete, so tokens wait in `pending`
    until text comes; only what is committed counts as produced, and a request is cut only there."""

    def __init__(self) -> None:
        self.prompt_ids: Optional[Tuple[int, ...]] = None
        self.output_ids: List[int] = []
        self.text_length = 0  # characters committed
        self.without_ids = 0  # chunks of text that came without token ids
        self._pending: List[Chunk] = []
        self._leg_base = 0

    @property
    def can_continue(self) -> bool:
        """Whether another unit could go on from here: it needs every token id."""
        return self.prompt_ids is not None and self.without_ids == 0

    @property
    def output_tokens(self) -> int:
        """Tokens committed; where the unit gives no ids, chunks."""
        return len(self.output_ids) + self.without_ids

    @property
    def pending_ids(self) -> List[int]:
        """Tokens that brought no text yet: part of a character, or tokens that have none."""
        return [token for chunk in self._pending for token in chunk.token_ids]

    @property
    def seen_tokens(self) -> int:
        """Tokens received, committed or not."""
        return self.output_tokens + len(self.pending_ids)

    def context(self) -> List[int]:
        """Prompt and output token ids."""
        assert self.prompt_ids is not None
        return [*self.prompt_ids, *self.output_ids]

    def begin_leg(self) -> None:
        """A new unit goes on from the committed tokens; what was pending is computed again."""
        self._pending.clear()
        self._leg_base = self.text_length

    def note_prompt(self, chunk: Chunk) -> None:
        """Keeps the prompt's token ids; a later unit's prompt holds output tokens as well and is not it."""
        if self.prompt_ids is None and chunk.prompt_token_ids is not None:
            self.prompt_ids = chunk.prompt_token_ids

    def take(self, chunk: Chunk) -> Optional[Segment]:
        """Adds a chunk; a segment when its text completes one."""
        self.note_prompt(chunk)
        if not chunk.text:
            if chunk.token_ids or chunk.logprobs:
                self._pending.append(chunk)
            return None
        if chunk.finish_reason == "abort" and chunk.text.endswith("\ufffd"):
            return None  # half a character, forced out by the abort
        self._pending.append(chunk)
        return self.flush()

    def flush(self) -> Optional[Segment]:
        """Commits what is pending: at the end of the text nothing more completes it."""
        chunks, self._pending = self._pending, []
        if not chunks:
            return None
        text = "".join(chunk.text for chunk in chunks)
        ids = tuple(token for chunk in chunks for token in chunk.token_ids)
        if not ids:
            self.without_ids += len(chunks)
        self.output_ids += ids
        self.text_length += len(text)
        return Segment(text, ids, join_logprobs([_shifted(chunk.logprobs, self._leg_base) for chunk in chunks]))


def join_logprobs(parts: Sequence[Optional[Mapping[str, Any]]]) -> Optional[Mapping[str, Any]]:
    """One logprobs object of either endpoint out of several: their lists joined."""
    present = [part for part in parts if part]
    if len(present) < 2:
        return present[0] if present else None
    joined: Dict[str, Any] = {}
    for part in present:
        for name, values in part.items():
            joined[name] = [*(joined.get(name) or []), *values] if isinstance(values, list) else joined.get(name)
    return joined


def _shifted(logprobs: Optional[Mapping[str, Any]], base: int) -> Optional[Mapping[str, Any]]:
    """Completions count `text_offset` from where a unit began; the client's text began earlier."""
    if not base or not logprobs or not logprobs.get("text_offset"):
        return logprobs
    return {**logprobs, "text_offset": [offset + base for offset in logprobs["text_offset"]]}
