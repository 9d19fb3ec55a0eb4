"""Text on its way to the client: stop strings and reasoning, across chunks and across units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from syshax_contract.stop_strings import StopMatcher


def partial_suffix(text: str, word: str) -> int:
    """Length of the longest end of `text` that is a beginning (not the whole) of `word`."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)


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
        keep = partial_suffix(whole, self._CLOSE)
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
