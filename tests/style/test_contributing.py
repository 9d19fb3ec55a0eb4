"""CONTRIBUTING.md: each "how to add" lists exactly the files of the code that name its example in place."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE = ("kernels/Makefile", "kernels/include", "kernels/src", "kernels/python", "syshaxd", ":!*.md")
SECTION = re.compile(r"^## (.*)\nExample: `(.*)`\n((?:- `.*\n)+)", re.M)
WANTED = {
    "An instruction set",
    "A weight format",
    "An architecture",
    "A kind of unit",
    "An endpoint",
    "A key of the configuration",
    "A signal for the scheduler",
}


def named(pattern: str) -> set[str]:
    """Files of the code in which it stands."""
    command = ("git", "grep", "--untracked", "-lE", pattern, "--", *CODE)
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines())


def test_every_kind_of_addition_is_told() -> None:
    assert {title for title, _, _ in SECTION.findall(TEXT)} == WANTED


@pytest.mark.parametrize(("title", "example", "files"), SECTION.findall(TEXT))
def test_the_list_is_whole(title: str, example: str, files: str) -> None:
    listed = set(re.findall(r"^- `([^`]+)`", files, re.M))
    found = named(example)
    assert listed == found, f"{title}: not listed {sorted(found - listed)}, no longer named in {sorted(listed - found)}"


def test_every_file_that_is_told_of_is_there() -> None:
    told = re.findall(r"`((?:kernels|syshaxd|tests|packaging|testbed)/[\w./]+)`", TEXT)
    assert len(told) > 40 and [path for path in told if not (ROOT / path).exists()] == []
