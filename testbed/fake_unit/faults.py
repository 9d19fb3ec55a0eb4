"""Misbehaviour, set by flags and at run time through POST /fake/faults."""

from __future__ import annotations

import json
from typing import Any

KNOWN = {
    "start_delay": "seconds of 503 from /health",
    "ignore_sigterm": "",
    "die_after": "exit (kill -9 to itself) after that many tokens of one request",
    "reset_after": "connection reset after that many tokens",
    "close_after": "clean end of the connection after that many tokens, without finish",
    "garbage_after": "bytes that are no event stream after that many tokens",
    "not_json_after": "an event that is not JSON after that many tokens",
    "error_after": "an error event after that many tokens",
    "stall_after": "silence after that many tokens",
    "http_status": "answer generations with this status",
    "slow": "extra seconds of each step",
    "freeze": "no steps at all, /health stays 200",
    "wrong_metrics": "/metrics is not Prometheus text",
    "pool_full": "no ticket is ever saved",
    "corrupt_tickets": "saved tickets have a wrong checksum",
    "no_abort": "abort by id answers 404",
    "ignore_abort": "abort by id answers 200 and does nothing",
    "line_end": "crlf or cr",
    "dribble": "one byte a write",
    "no_token_ids": "never returns token ids",
    "no_remote": "keeps KV for NIXL and does not say where",
    "unasked_abort_after": "finish_reason abort after that many tokens",
}


class Faults:
    """What is wrong with this unit now. A fault with `times` wears off after so many uses."""

    def __init__(self) -> None:
        self._active: dict[str, Any] = {}
        self._times: dict[str, int] = {}

    def set(self, values: dict[str, Any]) -> None:
        """Sets faults; null clears one; `times`: how often a request may meet each of them."""
        times = values.pop("times", None)
        for name, value in values.items():
            if name not in KNOWN:
                raise ValueError(f"unknown fault {name}; known: {', '.join(KNOWN)}")
            if value is None:
                self._active.pop(name, None)
            else:
                self._active[name] = value
            self._times.pop(name, None)
            if times is not None:
                self._times[name] = times

    def clear(self) -> None:
        """All is well again."""
        self._active.clear()
        self._times.clear()

    def parse(self, text: str) -> None:
        """NAME or NAME=VALUE."""
        name, _, value = text.partition("=")
        self.set({name: json.loads(value) if value else True})

    def on(self, name: str) -> Any:
        """The fault's value, None where it is off."""
        return self._active.get(name)

    def spend(self, name: str) -> None:
        """One use; it wears off with the last."""
        if name in self._times:
            self._times[name] -= 1
            if self._times[name] <= 0:
                self._active.pop(name, None)
