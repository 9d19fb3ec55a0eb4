"""Text on its way to the client: stop strings and reasoning, across chunks and across units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


def partial_suffix(text: str, words: Sequence[str]) -> int:
    """Length of the longest end of `text` that is a beginning (not the whole) of one of `words`."""
    longest = max((len(word) for word in words), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        tail = text[-size:]
        if any(len(word) > size and word.startswith(tail) for word in words):
            return size
    return 0


class StopMatcher:
    """Lets text through up to the first stop string; holds back what may be the beginning of one.

    A stop string counts only when it ends in text that came while armed (vLLM's rule for `min_tokens`).
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self._passed = ""  # the end of what was let through, as far as a later stop may begin in it
        self.matched: str | None = None

    def feed(self, text: str, armed: bool = True) -> str:
        """Text that may be delivered now. After a match nothing more comes."""
        if not self._stops or self.matched is not None:
            return "" if self.matched is not None else text
        whole = self._held + text
        if armed:
            hit = self._first_hit(whole, len(self._held))
            if hit is not None:
                start, self.matched = hit
                self._held = ""
                return whole[: start + len(self.matched)] if self._include else whole[:start]
        keep = partial_suffix(whole, self._stops)
        self._held = whole[len(whole) - keep :]
        return whole[: len(whole) - keep]

    def flush(self) -> str:
        """What is held back, when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held

    def _first_hit(self, whole: str, old: int) -> tuple[int, str] | None:
        hits: list[tuple[int, str]] = []
        for stop in self._stops:
            start = whole.find(stop, max(0, old - len(stop) + 1))
            if start >= 0:
                hits.append((start, stop))
        return min(hits, key=lambda hit: hit[0]) if hits else None


class Parts(NamedTuple):
    """One piece of text, told apart."""

    content: str = ""
    reasoning: str = ""


class ReasoningSplitter:
    """`<think>...</think>answer` into reasoning and content, as DeepSeek-R1 writes it.

    Its chat template may already have opened the block, so text counts as reasoning until `</think>`, with or
    without a `<think>` at the beginning.
    """

    _OPEN, _CLOSE = "<think>", "</think>"

    def __init__(self) -> None:
        self._held = ""
        self._begun = False
        self._closed = False

    def feed(self, text: str) -> Parts:
        """The parts that are certain now."""
        if self._closed:
            return Parts(content=text)
        whole = self._held + text
        if not self._begun:
            if self._OPEN.startswith(whole) and whole != self._OPEN:
                self._held = whole
                return Parts()
            self._begun = True
            whole = whole[len(self._OPEN) :] if whole.startswith(self._OPEN) else whole
        reasoning, close, content = whole.partition(self._CLOSE)
        self._closed = bool(close)
        if self._closed:
            self._held = ""
            return Parts(content, reasoning)
        keep = partial_suffix(whole, (self._CLOSE,))
        self._held = whole[len(whole) - keep :]
        return Parts(reasoning=whole[: len(whole) - keep])

    def flush(self) -> Parts:
        """What is held back, when the text ends."""
        held, self._held = self._held, ""
        return Parts(reasoning=held)


class TextPipeline:
    """Stop strings first, on the raw text as a unit would see it; then reasoning."""

    def __init__(self, stops: Sequence[str], include_stop: bool, min_tokens: int, reasoning: bool) -> None:
        self._matcher = StopMatcher(stops, include_stop)
        self._splitter = ReasoningSplitter() if reasoning else None
        self._min_tokens = min_tokens

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the text."""
        return self._matcher.matched

    def feed(self, text: str, tokens_so_far: int) -> Parts:
        """Text of new tokens; `tokens_so_far` counts them."""
        return self._split(self._matcher.feed(text, tokens_so_far > self._min_tokens))

    def flush(self) -> Parts:
        """The rest, when the text ends without a stop string."""
        first = self._split(self._matcher.flush())
        if self._splitter is None:
            return first
        last = self._splitter.flush()
        return Parts(first.content + last.content, first.reasoning + last.reasoning)

    def _split(self, text: str) -> Parts:
        if not text:
            return Parts()
        return Parts(text) if self._splitter is None else self._splitter.feed(text)
