"""Damage in a pool file (layout: docs/kv-handoff.md section 2), done from outside as no process may do it."""

from __future__ import annotations

import struct
from pathlib import Path

from testbed.processes import wait_for

READY = 2
COUNTS = struct.Struct("<4I")  # at 80: chunks, tickets, longest ticket, bytes of a ticket
PLACES = struct.Struct("<4Q")  # at 104: tickets, records, chunks, bytes of a chunk


def spoil(path: Path, ticket: str) -> None:
    """Changes one byte of KV in a ticket's first chunk, once the ticket is READY."""
    at = wait_for("a ticket", lambda: _find(path, bytes.fromhex(ticket)))
    data = path.read_bytes()
    chunks, stride = PLACES.unpack_from(data, 104)[2:]
    (number,) = struct.unpack_from("<I", data, at + 64)
    place = chunks + number * stride + 100
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(bytes([data[place] ^ 0x40]))


def _find(path: Path, ticket: bytes) -> int:
    """Where the READY ticket of that id is; 0: nowhere."""
    data = path.read_bytes()
    _, tickets, _, stride = COUNTS.unpack_from(data, 80)
    table = PLACES.unpack_from(data, 104)[0]
    for at in range(table, table + tickets * stride, stride):
        if data[at + 16 : at + 32] == ticket and data[at] == READY:
            return at
    return 0
