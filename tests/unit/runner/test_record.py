"""Tokens are committed only where the text is whole characters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from syshaxd.runner.produced import Record, join_logprobs
from syshaxd.unitclient import Chunk
from testbed.fake_unit.language import Detokenizer, decode, encode


def chunks(text: str) -> list[Chunk]:
    detokenizer = Detokenizer([])
    return [Chunk(b"", detokenizer.feed(token), (token,), has_choice=True) for token in encode(text)]


@given(st.text(max_size=20), st.integers(0, 100))
def test_a_cut_anywhere_keeps_whole_characters_only(text: str, cut: int) -> None:
    record = Record()
    record.take(Chunk(b"", prompt_token_ids=(1, 2), has_choice=True))
    made = chunks(text)
    cut = min(cut, len(made))
    segments = [segment for chunk in made[:cut] if (segment := record.take(chunk))]
    delivered = "".join(segment.text for segment in segments)
    assert decode(record.output_ids) == delivered
    assert text.startswith(delivered)
    assert record.context() == [1, 2, *record.output_ids]
    record.begin_leg()  # the rest comes from another unit
    rest = [segment for chunk in made[len(record.output_ids) :] if (segment := record.take(chunk))]
    assert delivered + "".join(segment.text for segment in rest) == text
    assert record.output_ids == encode(text)


def test_what_is_pending_at_the_end_is_committed() -> None:
    record = Record()
    assert record.take(Chunk(b"", "", (0xE4,))) is None
    segment = record.flush()
    assert segment is not None
    assert (segment.text, segment.token_ids) == ("", (0xE4,))


def test_half_a_character_forced_out_by_an_abort_is_dropped() -> None:
    record = Record()
    assert record.take(Chunk(b"", "\ufffd", (0xE4,), finish_reason="abort")) is None
    assert record.output_ids == []


def test_without_token_ids_nothing_can_go_on_elsewhere() -> None:
    record = Record()
    record.take(Chunk(b"", "text", ()))
    assert not record.can_continue
    assert record.output_tokens == 1


def test_text_offsets_go_on_after_a_cut() -> None:
    record = Record()
    record.take(Chunk(b"", "four", (1,), logprobs={"tokens": ["four"], "text_offset": [0]}))
    record.begin_leg()
    segment = record.take(Chunk(b"", "more", (2,), logprobs={"tokens": ["more"], "text_offset": [0]}))
    assert segment is not None and segment.logprobs is not None
    assert segment.logprobs["text_offset"] == [4]


def test_logprobs_are_joined() -> None:
    parts = [{"content": [1], "refusal": None}, None, {"content": [2, 3], "refusal": None}]
    assert join_logprobs(parts) == {"content": [1, 2, 3], "refusal": None}
    assert join_logprobs([None]) is None
