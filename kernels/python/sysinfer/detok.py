"""Token ids to text, one token at a time: whole characters only, stop strings held back until they are ruled out."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol


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


class _Matcher:
    """How much of a stop string the end of the text spells: Knuth, Morris, Pratt (1977), the table made as far as it is
    needed. So a character costs the same however long stop string and text are."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self._length = 0  # the longest beginning of `stop` that the text ends with
        self._border = [0, 0]  # of the beginning of each length: its longest proper beginning that also ends it

    @property
    def length(self) -> int:
        return self._length

    def push(self, character: str) -> bool:
        """Whether `character` completes the stop string."""
        stop = self.stop
        while self._length and stop[self._length] != character:
            self._length = self._border[self._length]
        if stop[self._length] == character:
            self._length += 1
        if self._length == len(stop):
            self._length = 0
            return True
        if self._length == len(self._border):
            self._extend()
        return False

    def _extend(self) -> None:
        last, border = self.stop[self._length - 1], self._border[self._length - 1]
        while border and self.stop[border] != last:
            border = self._border[border]
        self._border.append(border + 1 if self.stop[border] == last else 0)


class StopStrings:
    """Ends a text at the first of `stops`; text that may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._matchers = [_Matcher(s) for s in stops if s]
        self._include = include
        self._held = ""

    def push(self, delta: str) -> tuple[str, str]:
        """The text that may go out, and the stop string that ends it ("" while none has been met)."""
        if not self._matchers:
            return delta, ""
        text = self._held + delta
        found = [met for met in (self._meets(m, delta, len(self._held)) for m in self._matchers) if met is not None]
        if found:
            at, stop = min(found)
            self._held = ""
            return text[: at + len(stop) if self._include else at], stop
        cut = len(text) - max(m.length for m in self._matchers)
        self._held = text[cut:]
        return text[:cut], ""

    @staticmethod
    def _meets(matcher: _Matcher, delta: str, before: int) -> tuple[int, str] | None:
        """Where the stop string begins in the text, of which `before` characters came before `delta`; None: nowhere."""
        for index, character in enumerate(delta, before + 1):
            if matcher.push(character):
                return index - len(matcher.stop), matcher.stop
        return None

    def flush(self) -> str:
        """What was held back, when the generation ends otherwise."""
        held, self._held = self._held, ""
        return held
