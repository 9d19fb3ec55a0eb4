"""Manual pages and completions say what the schema and the parsers say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import manuals
import pytest

MANUAL_PAGES = sorted((manuals.ROOT / "packaging/rpm/man").glob("*.[1-8]"))


def test_generated_files_are_current() -> None:
    stale = [path.name for path, text in manuals.generated().items() if not path.exists() or path.read_text() != text]
    assert stale == [], "run `make manuals`"


@pytest.mark.parametrize("page", MANUAL_PAGES, ids=lambda page: page.name)
def test_pages_have_the_sections_man_expects(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f".TH {page.stem.upper()} {page.suffix[1:]} ")
    assert ".SH NAME\n" in text and " \\- " in text


def test_bash_takes_its_completion() -> None:
    bash = shutil.which("bash")
    assert bash is not None
    script = manuals.ROOT / "packaging/rpm/completion/syshax.bash"
    ask = f'. {script}; COMP_WORDS=(syshax un); COMP_CWORD=1; _syshax; echo "${{COMPREPLY[@]}}"'
    assert subprocess.run([bash, "-c", ask], capture_output=True, text=True, check=True).stdout.split() == ["units"]
