"""House rules of the native core that `make check` holds beside clang-format and lizard: line length and layers."""

from __future__ import annotations

import re
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


LAYERS: list[set[str]] = [
    {"syshax"},
    {"formats"},
    {"core"},
    {"simd", "kv_pages", "pool"},
    {"scalar", "avx2", "avx512", "neon", "i8mm", "sve", "model", "vllm_pages"},
]
"""Folders of kernels/src, lowest first: a file includes its own folder and those of lower layers."""


def test_folders_include_lower_ones_only() -> None:
    level = {folder: number for number, folders in enumerate(LAYERS) for folder in folders}
    wrong = []
    for path in sorted((KERNELS / "src").rglob("*")):
        if path.suffix not in {".cpp", ".h"}:
            continue
        own = path.parent.name
        for folder in re.findall(r'^#include "([^/"]+)/', path.read_text(encoding="utf-8"), re.MULTILINE):
            if folder != own and level[folder] >= level[own]:
                wrong.append(f"{path.relative_to(ROOT)} includes {folder}/")
    assert wrong == []
