"""docs/operations.md names every event id."""

from __future__ import annotations

from pathlib import Path

from syshaxd import log

TEXT = (Path(__file__).resolve().parents[3] / "docs/operations.md").read_text(encoding="utf-8")


def test_every_message_id_is_documented_and_unlike_the_others() -> None:
    ids = [value for name, value in vars(log).items() if name.isupper() and isinstance(value, str) and len(value) == 32]
    assert len(ids) == len(set(ids)) == 9
    assert all(f"`{value}`" in TEXT for value in ids)
