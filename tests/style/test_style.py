"""House rules that a machine can hold: lengths, words of unfinished work, paths of a machine, links."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FUNCTION_LINES = 60
FUNCTION_MEDIAN = 10
FILE_LINES = 500
TEST_FILE_LINES = 800
TEXT = {".py", ".md", ".sh", ".spec", ".cfg", ".toml", ".yaml", ".service", ".socket", ".json", ".map", ""}
NATIVE = {".cpp", ".c", ".h"}
# Built of parts, so that this file does not match itself.
UNFINISHED = re.compile("TO" "DO|FIX" r"ME|XX" r"X\b|HA" r"CK\b|NotImplemented" "Error")
MACHINE = re.compile(r"(?<![\w.-])/(work|root|home/\w+)" r"/|/tmp" "/bash")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def tracked() -> list[Path]:
    """Every text file of the project: tracked, or new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    paths = [ROOT / line for line in listing.stdout.splitlines()]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:8000]]


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """The project's text files."""
    return tracked()


def name(path: Path) -> str:
    """Path inside the project."""
    return str(path.relative_to(ROOT))


def python_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length in lines of each function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{name(path)}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def without_text(line: str) -> str:
    """A line of C++ without string, character and line-comment contents."""
    return re.sub(r'"(\\.|[^"\\])*"|\'(\\.|[^\'\\])\'|//.*', "", line)


def native_functions(path: Path) -> Iterator[tuple[str, int]]:
    """First line and length of each function body, by counting braces; namespaces and types are looked into."""
    depth, start, head, base = 0, 0, "", 0
    for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = without_text(raw)
        opens_scope = re.match(r"\s*(inline )?(namespace|struct|class|union|enum|extern)\b(?!.*\))", line)
        if start == 0 and "{" in line and opens_scope:
            base += line.count("{") - line.count("}")
        elif start == 0 and depth == base and "{" in line and ("(" in line or ")" in head):
            start = number
        if start == 0 and line.strip():
            head = line
        depth += line.count("{") - line.count("}")
        base = min(base, depth)
        if start and depth <= base:
            yield f"{name(path)}:{start}", number - start + 1
            start = 0


def functions(files: list[Path], suffixes: set[str]) -> list[tuple[str, int]]:
    """Functions of all files with one of the suffixes."""
    walk = python_functions if ".py" in suffixes else native_functions
    return [item for path in files if path.suffix in suffixes for item in walk(path)]


@pytest.mark.parametrize("suffixes", [{".py"}, NATIVE], ids=["python", "native"])
def test_functions_are_short(files: list[Path], suffixes: set[str]) -> None:
    found = functions(files, suffixes)
    median = statistics.median(length for _, length in found) if found else 0
    print(f"{len(found)} functions, median {median} lines")
    assert [f"{where}: {length} lines" for where, length in found if length > FUNCTION_LINES] == []
    assert median < FUNCTION_MEDIAN


def test_files_are_short(files: list[Path]) -> None:
    def limit(path: Path) -> int:
        return TEST_FILE_LINES if name(path).startswith(("tests/", "kernels/tests/")) else FILE_LINES

    sources = [path for path in files if path.suffix in NATIVE | {".py"} or path.name == "Makefile"]
    lengths = {path: path.read_bytes().count(b"\n") for path in sources}
    print(f"{len(lengths)} files, median {statistics.median(lengths.values())} lines")
    assert [f"{name(path)}: {lines} lines" for path, lines in lengths.items() if lines > limit(path)] == []


@pytest.mark.parametrize("pattern", [UNFINISHED, MACHINE], ids=["unfinished", "machine-paths"])
def test_no_words_that_do_not_belong(files: list[Path], pattern: re.Pattern[str]) -> None:
    sources = [path for path in files if path.suffix in NATIVE | TEXT]
    found = [
        f"{name(path)}:{number}: {line.strip()[:100]}"
        for path in sources
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_links_resolve(files: list[Path]) -> None:
    broken = []
    for path in files:
        if path.suffix != ".md":
            continue
        for target in LINK.findall(path.read_text(encoding="utf-8")):
            local = target.split("#")[0]
            outside = "://" in target or target.startswith("mailto:")
            if local and not outside and not (path.parent / local).exists():
                broken.append(f"{name(path)}: {target}")
    assert broken == []
