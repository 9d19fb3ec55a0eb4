"""docs/operations.md names every event id, docs/metrics.md every reason of a decision."""

from __future__ import annotations

import re
from pathlib import Path

from syshaxd import log

ROOT = Path(__file__).resolve().parents[3]
REFUSALS = ("ttft", "tpot", "kv")
TEXT = (ROOT / "docs/operations.md").read_text(encoding="utf-8")


def test_every_message_id_is_documented_and_unlike_the_others() -> None:
    ids = [value for name, value in vars(log).items() if name.isupper() and isinstance(value, str) and len(value) == 32]
    assert len(ids) == len(set(ids)) == 9
    assert all(f"`{value}`" in TEXT for value in ids)


def test_every_reason_is_documented() -> None:
    described = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "syshaxd/scheduler").glob("*.py"))
    codes = re.findall(r'Reason\(\s*"(\w+)"', sources) + [f"{k}_{w}" for k in ("queue", "refuse") for w in REFUSALS]
    assert len(codes) > 15 and [code for code in codes if f"`{code}`" not in described] == []
