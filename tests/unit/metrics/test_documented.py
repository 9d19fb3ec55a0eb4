"""docs/metrics.md against the code: every metric with its type and labels, every value of a closed set of labels."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from syshaxd.metrics import MetricsService
from syshaxd.runner.handover_rules import REASONS

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(syshax_\w+)` \| (\w+) \|([^|]*)\|", re.M)
# Methods of the Runner and of MetricsService that are handed a value of `result` or of a move's `reason`.
TELLERS = {"handed_over", "handoff_ended", "over", "stays", "_stays"}
WHY_NOT = ("str | None", "Optional[str]")
WORD = re.compile(r"[a-z]+(_[a-z]+)*")

Metrics = dict[str, tuple[str, frozenset[str]]]


def paragraph(start: str) -> str:
    """The paragraph of docs/metrics.md that begins so."""
    return next(part for part in TEXT.split("\n\n") if part.startswith(start))


def quoted(text: str) -> set[str]:
    """What stands in backticks there."""
    return set(re.findall(r"`([a-z_]+)`", text))


def constants(node: ast.AST) -> Iterator[str]:
    """Words that are string constants below a node."""
    for found in ast.walk(node):
        if isinstance(found, ast.Constant) and isinstance(found.value, str) and WORD.fullmatch(found.value):
            yield found.value


def told_by_the_runner() -> set[str]:
    """Constants handed to one of TELLERS, and those a `-> str | None` returns: why not."""
    told: set[str] = set()
    for path in (ROOT / "syshaxd/runner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in TELLERS:
                told.update(value for argument in node.args for value in constants(argument))
            if isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns) in WHY_NOT:
                returned = [found for found in ast.walk(node) if isinstance(found, ast.Return) and found.value]
                told.update(value for found in returned for value in constants(found))
    return told


def test_every_metric_is_described_as_it_is() -> None:
    described: Metrics = {
        name: (kind, frozenset(re.findall(r"\w+", labels))) for name, kind, labels in ROW.findall(TEXT)
    }
    there: Metrics = {}
    for collector in {*vars(MetricsService()).values()}:
        for family in getattr(collector, "describe", list)():
            name = family.name + ("_total" if family.type == "counter" else "")
            there[name] = (family.type, frozenset(getattr(collector, "_labelnames", ())))
    assert described == there


def test_every_value_of_result_and_reason_is_described_and_used() -> None:
    described = quoted(paragraph("`result` of a handoff")) | quoted(paragraph("`reason` of a refusal"))
    described -= {"result", "reason"}
    assert sorted((told_by_the_runner() | set(REASONS)) - described) == []
    used = {value for path in (ROOT / "syshaxd").rglob("*.py") for value in constants(ast.parse(path.read_text()))}
    assert sorted(described - used) == []
