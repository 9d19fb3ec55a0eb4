"""The only HTTP client toward a unit (docs/kv-handoff.md section 1)."""

from __future__ import annotations

from .client import Answer, Generated, ModelCard, Target, Tokenized, UnitClient
from .events import Chunk, Usage, parse_chunk, remote_kv, transfer_params
from .plain_events import Plain, PlainForm
from .unit_stream import AnswerStream, Deadlines, UnitStream

__all__ = [
    "Answer",
    "AnswerStream",
    "Chunk",
    "Deadlines",
    "Generated",
    "ModelCard",
    "Plain",
    "PlainForm",
    "Target",
    "Tokenized",
    "UnitClient",
    "UnitStream",
    "Usage",
    "parse_chunk",
    "remote_kv",
    "transfer_params",
]
