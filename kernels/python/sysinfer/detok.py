"""Token ids to text, one token at a time: whole characters only, stop strings held back until they are ruled out."""

from __future__ import annotations

import codecs
from typing import Protocol, Sequence, Tuple


class TokenBytes(Protocol):
    """The part of a tokenizer that detokenising needs."""

    def token_bytes(self, token: int, skip_special: bool = False) -> bytes: ...


def open_bytes(tail: bytes) -> bytes:
    """The bytes at the end of `tail` that begin a UTF-8 character and don't finish it; at most 3."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(tail)
    return decoder.getstate()[0]


class Detokenizer:
    """Text of a continuation of `context`.

    The deltas of any split of the same tokens concatenate to the same text. A character that the context began and the
    output ends is emitted whole; one that the output leaves unfinished is not emitted (as vLLM does it).
    """

    def __init__(self, tokens: TokenBytes, context: Sequence[int], skip_special: bool = True) -> None:
        self._tokens, self._skip = tokens, skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        tail = b"".join(tokens.token_bytes(t, skip_special) for t in context[-4:])
        self._decoder.decode(open_bytes(tail))

    def push(self, token: int) -> str:
        """The text that `token` completes; "" while a character is open."""
        return self._decoder.decode(self._tokens.token_bytes(token, self._skip))


class StopStrings:
    """Ends a text at the first of `stops`; text that may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = tuple(s for s in stops if s)
        self._include = include
        self._held = ""

    def push(self, delta: str) -> Tuple[str, str]:
        """The text that may go out, and the stop string that ends it ("" while none has been met)."""
        if not self._stops:
            return delta, ""
        text = self._held + delta
        at, stop = min(((text.find(s), s) for s in self._stops if s in text), default=(-1, ""))
        if stop:
            self._held = ""
            return text[: at + len(stop) if self._include else at], stop
        keep = max(_overlap(text, s) for s in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], ""

    def flush(self) -> str:
        """What was held back, when the generation ends otherwise."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if stop.startswith(text[len(text) - length :]):
            return length
    return 0
