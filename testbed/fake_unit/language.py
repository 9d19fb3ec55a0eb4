"""Token ids, text, and the "model": the next token is a hash of all tokens before it, or follows a script."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

EOS = 256
WORDS = (
    " the",
    " of",
    " KV",
    " cache",
    " decode",
    "你好",
    "，",
    "世界",
    " é",
    " naïve",
    "e\u0301",
    " a",
    "\n",
    ".",
    " 42",
)
FIRST_WORD = 300
SCRIPT_MARK, SCRIPT_END = b"SAY:", b"|"


def encode(text: str) -> list[int]:
    """One token a byte: characters beyond ASCII are several tokens, as with byte fallback."""
    return list(text.encode())


def token_bytes(token: int) -> bytes:
    """Bytes that a token stands for; none for end of text."""
    if token < 256:
        return bytes([token])
    return WORDS[token - FIRST_WORD].encode() if token >= FIRST_WORD else b""


def decode(tokens: Iterable[int]) -> str:
    """Text of whole token lists."""
    return b"".join(map(token_bytes, tokens)).decode(errors="replace")


def render(body: dict[str, Any]) -> list[int]:
    """Prompt tokens of a request of either endpoint."""
    given = (body.get("kv_transfer_params") or {}).get("prompt_token_ids")
    if given is not None:
        return list(given)
    if "messages" in body:
        turns = (f"<{message['role']}>{_content(message)}" for message in body["messages"])
        return encode("".join(turns) + "<assistant>")
    prompt = body["prompt"]
    return encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]


def _content(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


class Speaker:
    """Produces the tokens after a context."""

    def __init__(self, context: Sequence[int]) -> None:
        self._script = _script_of(context)
        self._hash = zlib.crc32(struct.pack(f"<{len(context)}i", *context))
        self._tail = b"".join(map(token_bytes, context[-8:]))

    def next(self) -> int:
        """The next token."""
        token = self._next()
        self._hash = zlib.crc32(struct.pack("<i", token), self._hash)
        self._tail = (self._tail + token_bytes(token))[-8:]
        return token

    def _next(self) -> int:
        if self._script is not None:
            return next(self._script, EOS)
        missing = _missing(self._tail)
        if missing:
            return {3: 0x9F, 2: 0x98, 1: 0x80 + self._hash % 0x40}[missing]
        if self._hash % 8 == 0:
            return 0xF0  # an emoji, in four tokens
        return FIRST_WORD + (self._hash >> 8) % len(WORDS)


def _missing(tail: bytes) -> int:
    """Bytes missing to the emoji that the tail began."""
    for have in (1, 2, 3):
        if tail[-have:].startswith(b"\xf0") and len(tail) >= have:
            return 4 - have
    return 0


def _script_of(context: Sequence[int]) -> Any | None:
    """`SAY:text|` in the prompt: the output is that text. What follows the bar (and the turn's end) is already said."""
    whole = b"".join(map(token_bytes, context))
    start = whole.rfind(SCRIPT_MARK)
    end = whole.find(SCRIPT_END, start)
    if start < 0 or end < 0:
        return None
    said = whole[end + 1 :]
    said = said[len(b"<assistant>") :] if said.startswith(b"<assistant>") else said
    return iter(whole[start + len(SCRIPT_MARK) : end][len(said) :])


class Detokenizer:
    """Emits text only at whole characters. Seeded inside a character it emits the decoded context first, as vLLM
    does (and as no unit should ever be asked to)."""

    def __init__(self, context: Sequence[int]) -> None:
        whole = b"".join(map(token_bytes, context))
        cut = _whole_length(whole)
        self._pending = b"" if cut == len(whole) else whole

    def feed(self, token: int) -> str:
        """Text that this token completes."""
        self._pending += token_bytes(token)
        if _whole_length(self._pending) != len(self._pending):
            return ""
        text, self._pending = self._pending.decode(errors="replace"), b""
        return text


def _whole_length(data: bytes) -> int:
    """Bytes up to an incomplete last character."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        need = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return len(data) if need <= back else len(data) - back
    return len(data)


def text_after(prompt: Sequence[int], tokens: int) -> str:
    """What an undisturbed unit says: the tests' oracle. Ends early at the end of a script."""
    speaker, detokenizer, text = Speaker(prompt), Detokenizer(prompt), ""
    for _ in range(tokens):
        token = speaker.next()
        text += detokenizer.feed(token)
        if token == EOS:
            break
    return text
