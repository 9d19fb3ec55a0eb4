"""The bytes of a plain event go to the client as they came, or as they are parsed and written again: the same bytes."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syshaxd.model.plan import Reason
from syshaxd.model.request import Endpoint, RequestInfo
from syshaxd.model.unit import BackendKind, Role, UnitState, UnitView
from syshaxd.runner import ClientRequest
from syshaxd.runner.parsed_path import ParsedPath
from syshaxd.runner.produced import Produced
from syshaxd.runner.render import StreamRenderer
from syshaxd.runner.steps import Step
from syshaxd.unitclient import Plain, PlainForm, parse_chunk
from syshaxd.unitclient.events import SseParser

UNIT = UnitView("gpu", Role.ACCELERATOR, "sysinfer", BackendKind.PROCESS, UnitState.READY, "http://g", 1, "m")
texts = st.text(max_size=8) | st.sampled_from(
    ["a", " the", "你好", '"', "\\", "\n", "\x7f", '"},"logprobs":', "\u2028"]
)
tokens = st.tuples(texts, st.lists(st.integers(0, 200_000), min_size=1, max_size=3))
WRITERS: dict[str, dict[str, Any]] = {
    "vllm": {"ensure_ascii": False, "separators": (",", ":")},
    "ascii": {"separators": (",", ":")},
    "spaces": {},
}


def events(endpoint: Endpoint, said: list[tuple[str, list[int]]], writer: str) -> bytes:
    made = []
    for index, (text, ids) in enumerate([*said, ("", [2])]):
        last = index == len(said)
        choice: dict[str, Any] = (
            {"index": 0, "delta": {"content": text}} if endpoint is Endpoint.CHAT else {"text": text}
        )
        choice.update(logprobs=None, finish_reason="stop" if last else None, token_ids=ids)
        message: dict[str, Any] = {"id": "x-1", "object": "chunk", "created": 1, "model": "m", "choices": [choice]}
        if index == 0:
            message["prompt_token_ids"] = [1, 2, 3]
        made.append(b"data: " + json.dumps(message, **WRITERS[writer]).encode("utf-8", "replace") + b"\n\n")
    return b"".join(made)


def told(endpoint: Endpoint, data: bytes, cuts: list[int], plain: bool) -> tuple[bytes, list[int], int]:
    """What the client reads, the ids that were kept, and how many events were cut as bytes."""
    info = RequestInfo("r", endpoint, "m", True, 1, None)
    request = ClientRequest(info, {}, 0.0, 7)
    produced, renderer, parser = Produced(request), StreamRenderer(request), SseParser()
    path = ParsedPath(Step(UNIT, True, Reason("t", "t")), produced, Mock(), Mock(), None, plain)
    out, fast = b"", 0
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in zip(edges, edges[1:]):
        for payload in parser.feed(data[start:end]):
            event = path.take(payload)
            fast += isinstance(event, Plain)
            if event is not None:
                out += renderer.render(event, produced.record.prompt_ids)
    for last in produced.ending(path.finish or "", path.stop_reason, 3):
        out += renderer.render(last)
    return out, produced.record.output_ids, fast


@given(
    st.sampled_from(list(Endpoint)),
    st.lists(tokens, max_size=12),
    st.sampled_from(sorted(WRITERS)),
    st.lists(st.integers(0, 3000), max_size=10),
)
def test_both_paths_give_the_same_bytes_over_any_chunking(
    endpoint: Endpoint, said: list[tuple[str, list[int]]], writer: str, cuts: list[int]
) -> None:
    data = events(endpoint, said, writer)
    cut, parsed = told(endpoint, data, cuts, True), told(endpoint, data, [], False)
    assert cut[:2] == parsed[:2]
    assert parsed[2] == 0 and (writer != "spaces" or cut[2] == 0)


@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_all_plain_events_but_the_first_two_are_cut(endpoint: Endpoint) -> None:
    said = [(word, [number]) for number, word in enumerate(["Hello", " 你好", ' "quoted"', "\n", "."])]
    _, ids, fast = told(endpoint, events(endpoint, said, "vllm"), [], True)
    assert fast == 3 and ids == [0, 1, 2, 3, 4, 2]


@pytest.mark.parametrize(
    "changed",
    [
        b'{"choices":[{"index":0,"text":"a\\q","token_ids":[5]}]}',  # no JSON string
        b'{"choices":[{"index":0,"text":"a\xff","token_ids":[5]}]}',  # no UTF-8
        b'{"choices":[{"index":0,"text":"a\x01","token_ids":[5]}]}',
        b'{"choices":[{"index":0,"text":"\\ud83d","token_ids":[5]}]}',
        b'{"choices":[{"index":0,"text":"a","token_ids":[05]}]}',
        b'{"choices":[{"index":0,"text":"a","token_ids":[-5]}]}',
        b'{"choices":[{"index":0,"text":"a","token_ids":[99999999999]}]}',
        b'{"choices":[{"index":0,"text":"a","token_ids":[]}]}',
        b'{"choices":[{"index":0,"text":"","token_ids":[5]}]}',
        b'{"choices":[{"index":1,"text":"a","token_ids":[5]}]}',
        b'{"choices":[{"index":0,"text":"a","token_ids":[5],"finish_reason":"stop"}]}',
    ],
)
def test_what_is_not_plain_is_left_to_the_parser(changed: bytes) -> None:
    form, first = PlainForm(), b'{"choices":[{"index":0,"text":"a","token_ids":[5]}]}'
    assert form.cut(first) is None
    form.learn(parse_chunk(first, "gpu"), "gpu")
    assert form.cut(first) == Plain(b"a", b"5")
    assert form.cut(changed) is None
