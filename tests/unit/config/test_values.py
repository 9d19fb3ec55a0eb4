"""Durations, sizes, scalars and their text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syshaxd.config.emit import human, scalar_text
from syshaxd.config.nodes import Map, Scalar
from syshaxd.config.quantities import duration, format_duration, format_size, size
from syshaxd.config.strict import parse

VALUES = st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("5m", 300), ("5min", 300), ("1.5 h", 5400), ("2d", 172800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "count"), [("64g", 64 << 30), ("16MiB", 16 << 20), ("16MB", 16 << 20), ("1.5k", 1536), ("7b", 7)]
)
def test_sizes(text: str, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize("text", ["", "s", "5 minutes", "-3s", "1h30m", "5S", "1,5s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="500ms"):
        duration(text)


@pytest.mark.parametrize("text", ["", "g", "64gg", "-1m", "64 gigabytes"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="16MiB"):
        size(text)


@settings(deadline=None)
@given(count=st.integers(0, 2**50))
def test_formatted_sizes_read_as_themselves(count: int) -> None:
    assert size(format_size(count)) == count


@settings(deadline=None)
@given(millis=st.integers(1, 10**9))
def test_formatted_durations_read_as_themselves(millis: int) -> None:
    seconds = millis / 1000
    assert duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-12)
    text = human(seconds, {"x-unit": "duration"})
    assert text is None or duration(text) == seconds


@settings(deadline=None)
@given(key=TEXT, value=VALUES | TEXT)
def test_any_value_in_yaml_reads_as_itself(key: str, value: object) -> None:
    root, problems = parse("x", f"{scalar_text(key)}: {scalar_text(value)}\n".encode())
    assert not problems
    assert isinstance(root, Map)
    node = root.items[key]
    assert isinstance(node, Scalar)
    assert node.value == value


PLAIN = ["8001:8001", "/a:/b:ro", "2026-11-20", "1_000", "0x1F", "1.2.3", "-x", "~x", "null2", "=~"]


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_stays_text(text: str) -> None:
    root, problems = parse("x", f"a: {text}\n".encode())
    assert not problems
    assert isinstance(root, Map)
    node = root.items["a"]
    assert isinstance(node, Scalar)
    assert node.value == text


WORDS = ["-", "--", "---", "...", "-x", ".", "?", ":", "a:", "a: b", "a #b", "yes", "010", "1:30", ""]


@pytest.mark.parametrize("text", WORDS)
def test_words_that_mean_something_to_yaml_are_written_so_that_they_read_as_themselves(text: str) -> None:
    for line in (f"a: {scalar_text(text)}\n", f"a: [{scalar_text(text)}]\n"):
        root, problems = parse("x", line.encode())
        assert not problems, line
        assert isinstance(root, Map)
        node = root.items["a"]
        assert isinstance(node, Scalar) or [getattr(item, "value", None) for item in node.items] == [text]
