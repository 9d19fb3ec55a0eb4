"""Token ids to text, one token at a time: whole characters only."""

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
