"""House rules of the native core that `make check` holds beside clang-format and lizard: line length."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"
LINE = 120


def sources() -> list[Path]:
    """Every C and C++ file of the native core and its tests."""
    return sorted(path for path in KERNELS.rglob("*") if path.suffix in {".cpp", ".c", ".h"})


def test_lines_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > LINE
    ]
    assert long == []
