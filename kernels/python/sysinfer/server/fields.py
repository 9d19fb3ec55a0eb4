"""Typed access to the raw body of a request; what has the wrong type or range becomes a BadBody naming it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from syshax_contract.request_fields import wrong

MAX_STRINGS = 1024  # request ids and tickets of an abort


class Fields:
    """The members of an object. A member that is null counts as absent, as OpenAI has it."""

    def __init__(self, body: Mapping[str, Any], prefix: str = "") -> None:
        self.body, self.prefix = body, prefix

    def get(self, name: str) -> object:
        return self.body.get(name)

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self.body.get(name)
        if value is not None and not isinstance(value, str):
            raise wrong(self.prefix + name, value, "a string")
        return default if value is None else value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.body.get(name)
        if value is not None and not isinstance(value, bool):
            raise wrong(self.prefix + name, value, "true or false")
        return default if value is None else value

    def number(self, name: str, default: float) -> float:
        """A number that syshax_contract.request_fields has checked."""
        value = self.body.get(name)
        return default if value is None else float(value)

    def integer(self, name: str, default: int) -> int:
        """A whole number that it has checked."""
        value = self.body.get(name)
        return default if value is None else int(value)

    def object(self, name: str) -> Fields | None:
        value = self.body.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise wrong(self.prefix + name, value, "an object")
        return Fields(value, f"{self.prefix}{name}.")

    def array(self, name: str) -> list[Any] | None:
        value = self.body.get(name)
        if value is not None and not isinstance(value, list):
            raise wrong(self.prefix + name, value, "an array")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """A string or an array of strings."""
        value = self.body.get(name)
        items = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(items, list) or len(items) > MAX_STRINGS or not all(isinstance(i, str) for i in items):
            raise wrong(self.prefix + name, value, f"a string or an array of at most {MAX_STRINGS} strings")
        return tuple(items)

    def tokens(self, name: str, vocab: int) -> list[int] | None:
        value = self.array(name)
        if value is not None:
            check_tokens(self.prefix + name, value, vocab)
        return value


def check_tokens(name: str, ids: Sequence[object], vocab: int) -> None:
    """Raises BadBody unless `ids` are token ids of a vocabulary of that size."""
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab:
            raise wrong(name, token, f"token ids from 0 to {vocab - 1}")
