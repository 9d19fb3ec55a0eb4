"""One answer out of deltas, streamed and whole; timelines."""

from __future__ import annotations

import json
from typing import Any

import pytest

from syshaxd.model.request import Endpoint, RequestInfo
from syshaxd.runner import ClientRequest
from syshaxd.runner.client_request import Delta, Event, Finish, Raw
from syshaxd.runner.render import Collector, StreamRenderer
from syshaxd.runner.timeline import MAX_EVENTS, Timeline, Timelines
from syshaxd.unitclient import Usage

EVENTS: list[Event] = [
    Delta("", "think\n", (1,)),
    Delta('a "quote" \u2028 你', "", (2,), {"content": [1]}),
    Delta("b", "", (3, 4), {"content": [2, 3]}),
    Finish("stop", "END", Usage(5, 4)),
]


def client_request(endpoint: Endpoint, **body: Any) -> ClientRequest:
    return ClientRequest(RequestInfo("R", endpoint, "m", True, 1, None), {"model": "m", **body}, 0.0, 123)


def streamed(request: ClientRequest, events: list[Event]) -> list[dict[str, Any]]:
    renderer = StreamRenderer(request)
    data = b"".join(renderer.render(event, (9, 9)) for event in events)
    return [json.loads(block[6:]) for block in data.decode().split("\n\n") if block]


@pytest.mark.parametrize("endpoint", list(Endpoint))
@pytest.mark.parametrize("ids", [False, True])
def test_stream_and_body_say_the_same(endpoint: Endpoint, ids: bool) -> None:
    request = client_request(endpoint, return_token_ids=ids, stream_options={"include_usage": True})
    chunks = streamed(request, EVENTS)
    collector = Collector(request)
    for event in EVENTS:
        collector.add(event)
    whole = json.loads(collector.body((9, 9)))
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    choice = whole["choices"][0]
    if endpoint is Endpoint.CHAT:
        deltas = [part["delta"] for part in choices]
        assert [delta["role"] for delta in deltas if "role" in delta] == ["assistant"]
        for name in ("content", "reasoning_content"):
            assert "".join(delta.get(name) or "" for delta in deltas) == choice["message"][name]
    else:
        assert "".join(part["text"] for part in choices) == choice["text"]
    assert [part["finish_reason"] for part in choices if part["finish_reason"]] == [choice["finish_reason"]] == ["stop"]
    assert choice["stop_reason"] == "END"
    assert chunks[-1]["usage"] == whole["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks} == {(whole["id"], 123, "m")}
    assert choice["logprobs"] == {"content": [1, 2, 3]}
    assert [token for part in choices for token in part.get("token_ids", ())] == ([1, 2, 3, 4] if ids else [])
    assert whole.get("prompt_token_ids") == chunks[0].get("prompt_token_ids") == ([9, 9] if ids else None)


def test_what_the_unit_said_is_passed_on_as_it_is() -> None:
    request = client_request(Endpoint.CHAT)
    assert StreamRenderer(request).render(Raw(b'{"a":1}')) == b'data: {"a":1}\n\n'
    collector = Collector(request)
    collector.add(Raw(b'{"a": 1}'))
    assert collector.body() == b'{"a": 1}'


def test_timeline_in_its_three_forms() -> None:
    timeline = Timelines().begin("R", 10.0)
    timeline.add(10.0, "leg", unit="gpu", kind="whole")
    timeline.add(10.5, "leg", unit="cpu", kind="offload", with_kv=True)
    timeline.add(11.0, "end", status=200)
    told = timeline.as_json()
    assert [event["ms"] for event in told["events"]] == [0.0, 500.0, 1000.0]
    assert "500.0 ms  leg          unit=cpu kind=offload with_kv=True" in told["text"]
    spans = [entry for entry in told["trace"]["traceEvents"] if entry["ph"] == "X"]
    assert [(span["name"], span["ts"], span["dur"]) for span in spans] == [("gpu", 0, 500000), ("cpu", 500000, 500000)]
    json.dumps(told)


def test_timelines_are_bounded() -> None:
    timelines = Timelines(size=3)
    for index in range(5):
        timelines.begin(str(index), 0.0)
    assert timelines.ids() == ("2", "3", "4")
    timeline = Timeline("R", 0.0)
    for index in range(MAX_EVENTS + 10):
        timeline.add(float(index), "e")
    timeline.add(999.0, "end")
    assert len(timeline.events) == MAX_EVENTS and timeline.events[-1].what == "end"


@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_the_tier_is_echoed_where_one_was_named(endpoint: Endpoint) -> None:
    request = client_request(endpoint, service_tier="auto")
    assert all(event["service_tier"] == "default" for event in streamed(request, EVENTS))
    collector = Collector(request)
    collector.add(Raw(b'{"id": 1, "service_tier": null}'))
    assert json.loads(collector.body()) == {"id": 1, "service_tier": "default"}
    assert "service_tier" not in streamed(client_request(endpoint), EVENTS)[0]
