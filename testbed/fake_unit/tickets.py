"""Handoff tickets as files, and the pool file's stats page. The bytes of KV are not simulated, only who has what."""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STATS_OFFSET = 4096
STATS = struct.Struct("<IIQQQIIIIIIQQQQQIIIIHH")  # sx_unit_stats without its crc
LEASE = 30.0  # seconds an unconsumed ticket lives


class Outbox:
    """This unit's pool: tickets of its own, loads from others'."""

    def __init__(self, folder: str, name: str) -> None:
        self._folder = Path(folder) if folder else None
        self.name = name
        self.generation = 0
        self.sequence = 0
        self.failures: Counter[tuple[str, str]] = Counter()
        if self._folder is not None:
            self._create()

    def _create(self) -> None:
        assert self._folder is not None
        self._tickets(self.name).mkdir(parents=True, exist_ok=True)
        for old in self._tickets(self.name).iterdir():
            old.unlink()
        path = self._folder / self.name
        held = path.read_bytes()[:16] if path.exists() else b""
        self.generation = struct.unpack("<Q", held[8:16])[0] + 1 if len(held) == 16 else 1
        path.write_bytes(b"SXPOOL1\0" + struct.pack("<Q", self.generation) + bytes(8192 - 16))

    def _tickets(self, pool: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{pool}.tickets"

    def count(self) -> int:
        """Tickets that nobody has consumed and whose lease has not ended."""
        if self._folder is None:
            return 0
        for path in self._tickets(self.name).iterdir():
            if path.stat().st_mtime + LEASE < time.time():
                path.unlink(missing_ok=True)
        return len(list(self._tickets(self.name).iterdir()))

    def clear(self) -> None:
        """Forgets tickets and counters."""
        self.failures.clear()
        if self._folder is not None:
            for path in self._tickets(self.name).iterdir():
                path.unlink(missing_ok=True)

    def discard(self, tickets: Sequence[str]) -> None:
        """Nobody will come for these."""
        for ticket in tickets if self._folder is not None else ():
            (self._tickets(self.name) / ticket).unlink(missing_ok=True)

    def publish(self, ticket: str, tokens: Sequence[int], full: bool, corrupt: bool) -> None:
        """Leaves the KV of these tokens."""
        if self._folder is None or full:
            self.failures["save", "full"] += 1
            return
        record = {"tokens": list(tokens), "generation": self.generation, "sum": sum(tokens) + corrupt}
        path = self._tickets(self.name) / ticket
        path.with_suffix(".part").write_text(json.dumps(record))
        os.replace(path.with_suffix(".part"), path)

    def load(self, load: Mapping[str, Any], context: Sequence[int]) -> int:
        """Tokens of the context whose KV came from the ticket; the ticket is consumed."""
        try:
            return self._load(load, context)
        except LookupError as err:
            self.failures["load", str(err.args[0])] += 1
            return 0

    def _load(self, load: Mapping[str, Any], context: Sequence[int]) -> int:
        record = self._take(load)
        if record["sum"] != sum(record["tokens"]):
            raise LookupError("corrupt")
        if load.get("generation") not in (None, 0, record["generation"]):
            raise LookupError("stale")
        same = 0
        for ours, theirs in zip(context, record["tokens"]):
            if ours != theirs:
                break
            same += 1
        return min(same, len(context) - 1)

    def _take(self, load: Mapping[str, Any]) -> dict[str, Any]:
        if self._folder is None:
            raise LookupError("no_pool")
        path = self._tickets(str(load["pool"])) / str(load["ticket"])
        try:
            record: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError as err:
            raise LookupError("missing") from err
        path.unlink(missing_ok=True)
        return record

    def write_stats(self, stats: Mapping[str, int]) -> None:
        """Rewrites the stats page."""
        if self._folder is None:
            return
        self.sequence += 1
        page = STATS.pack(120, 1, self.sequence, self.generation, time.monotonic_ns(), *stats.values())
        with open(self._folder / self.name, "r+b") as file:
            file.seek(STATS_OFFSET)
            file.write(page + struct.pack("<I", zlib.crc32(page)))


def pool_of(environment: Mapping[str, str]) -> Outbox:
    """From the environment that the daemon gives a unit."""
    return Outbox(environment.get("SYSHAX_POOL_DIR", ""), environment.get("SYSHAX_POOL_NAME", ""))


def ticket_of(body: Mapping[str, Any]) -> tuple[str | None, str, Mapping[str, Any] | None]:
    """save, save_on and load of a request; NIXL's parameters are taken for a ticket named as the request."""
    params = body.get("kv_transfer_params") or {}
    if params.get("do_remote_decode"):
        return params["remote_request_id"], "finish", None
    if params.get("do_remote_prefill"):
        return None, "finish", {"pool": params["remote_engine_id"], "ticket": params["remote_request_id"]}
    ours = params.get("syshax") or {}
    return ours.get("save"), ours.get("save_on", "finish"), ours.get("load")
