"""Plain events, cut as bytes: text and token ids and nothing else that differs from event to event."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from syshaxd.errors import UnitError

from .events import Chunk, parse_chunk

# A JSON string's inside as json.dumps(..., ensure_ascii=False) writes it, so that both paths give the same bytes.
_TEXT = re.compile(rb'(?:[^"\\\x00-\x1f]|\\["\\bfnrt])+')
_IDS = re.compile(rb"(?:0|[1-9][0-9]{0,8})(?:,(?:0|[1-9][0-9]{0,8})){0,255}")


LESSONS = 16  # forms learned for one stream; a unit whose every event has another form is left to the parser


class Plain(NamedTuple):
    """`text`: the inside of a JSON string; `ids`: numbers with commas between."""

    text: bytes
    ids: bytes


class PlainForm:
    """How one stream writes its plain events, learned from one that was parsed. What has another form is left
    to the parser."""

    def __init__(self) -> None:
        self._lessons = 0
        self._form: tuple[bytes, bytes, bytes] | None = None  # before the text, between text and ids, after the ids

    def cut(self, payload: bytes) -> Plain | None:
        """Its parts; None where it is not of the form."""
        if self._form is None:
            return None
        before, between, after = self._form
        if not payload.startswith(before) or not payload.endswith(after):
            return None
        # Quotes inside a JSON string are escaped, and `between` has some that are not: it is found at the string's end.
        end = payload.find(between, len(before))
        text = payload[len(before) : end]
        ids = payload[end + len(between) : len(payload) - len(after)]
        if end < 0 or _TEXT.fullmatch(text) is None or _IDS.fullmatch(ids) is None:
            return None
        if not text.isascii():
            try:
                text.decode()
            except UnicodeDecodeError:
                return None
        return Plain(text, ids)

    def learn(self, chunk: Chunk, unit: str) -> None:
        """Takes the form of a parsed event, if it is plain, and proves it on another text and other ids."""
        payload = chunk.payload
        special = chunk.finish_reason is not None or chunk.prompt_token_ids is not None
        if special or self._lessons >= LESSONS or not (chunk.text and chunk.token_ids):
            return
        self._lessons += 1
        text = json.dumps(chunk.text, ensure_ascii=False).encode("utf-8", "replace")[1:-1]
        ids = ",".join(map(str, chunk.token_ids)).encode()
        for key in (b'"content":"', b'"text":"'):
            start = payload.find(key) + len(key)
            tokens = payload.find(b'"token_ids":[', start) + len(b'"token_ids":[')
            form = payload[:start], payload[start + len(text) : tokens], payload[tokens + len(ids) :]
            if form[0] + text + form[1] + ids + form[2] == payload and _proven(form, chunk, unit):
                self._form = form
                return


def _proven(form: tuple[bytes, bytes, bytes], chunk: Chunk, unit: str) -> bool:
    before, between, after = form
    other = before + b"\\n y" + between + b"7,8" + after
    try:
        return parse_chunk(other, unit) == chunk._replace(payload=other, text="\n y", token_ids=(7, 8))
    except UnitError:
        return False
