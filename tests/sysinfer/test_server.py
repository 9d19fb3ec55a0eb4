"""The server as clients see it: a real process, real sockets."""

from __future__ import annotations

import concurrent.futures
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from tests.sysinfer import models
from tests.sysinfer.conftest import Tiny
from tests.sysinfer.process import Unit, wait_for

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
MESSAGES = [{"role": "user", "content": "the cat 你好 👋"}]


@pytest.fixture(scope="module")
def unit(tiny_llama: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unit]:
    with Unit.start(tiny_llama.path, tmp_path_factory.mktemp("unit"), "--threads", "1", "--kv-dtype", "f32") as started:
        yield started
        wait_for("no request and no block left", started.idle)


def text_of(events: list[Any], index: int = 0) -> str:
    parts = []
    for event in events:
        for choice in event["choices"]:
            if choice["index"] == index:
                parts.append(choice["text"] if "text" in choice else choice["delta"].get("content", ""))
    return "".join(parts)


def ids_of(events: list[Any]) -> list[int]:
    return [t for e in events for c in e["choices"] for t in c.get("token_ids", [])]


def test_greedy_tokens_are_those_of_transformers(unit: Unit, tiny_llama: Tiny) -> None:
    prompt = [5, 9, 200, 17, 33, 250]
    expected = models.greedy(tiny_llama.hf, prompt, 12)
    whole = unit.post(COMPLETION, {**GREEDY, "prompt": prompt, "return_token_ids": True})
    choice = whole["choices"][0]
    assert choice["token_ids"] == expected and choice["prompt_token_ids"] == prompt
    assert choice["finish_reason"] == "length"
    assert whole["usage"] == {"prompt_tokens": 6, "completion_tokens": 12, "total_tokens": 18}
    told = unit.post(CHAT, {**GREEDY, "kv_transfer_params": {"prompt_token_ids": prompt}, "return_token_ids": True})
    assert told["choices"][0]["token_ids"] == expected and told["prompt_token_ids"] == prompt


@pytest.mark.parametrize("path, ask", [(CHAT, {"messages": MESSAGES}), (COMPLETION, {"prompt": "the moon é"})])
def test_streaming_says_the_same(unit: Unit, path: str, ask: dict[str, Any]) -> None:
    body = {**GREEDY, **ask, "max_tokens": 40, "return_token_ids": True, "stream_options": {"include_usage": True}}
    whole, events = unit.post(path, {k: v for k, v in body.items() if k != "stream_options"}), unit.stream(path, body)
    choice = whole["choices"][0]
    assert text_of(events) == (choice["text"] if path == COMPLETION else choice["message"]["content"])
    assert ids_of(events) == choice["token_ids"]
    assert events[-1]["choices"] == [] and events[-1]["usage"] == whole["usage"]
    assert len({(e["id"], e["created"], e["object"]) for e in events}) == 1
    first = events[0] if path == CHAT else events[0]["choices"][0]
    told = whole if path == CHAT else choice
    assert first["prompt_token_ids"] == told["prompt_token_ids"]
    assert [c["finish_reason"] for e in events for c in e["choices"]][-1] == "length"
    if path == CHAT:
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_eight_at_once_equal_to_alone(unit: Unit) -> None:
    asks = [{**GREEDY, "prompt": [7 + i] * (1 + 37 * i), "max_tokens": 30, "return_token_ids": True} for i in range(8)]
    alone = [unit.post(COMPLETION, a)["choices"] for a in asks]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda a: unit.post(COMPLETION, a)["choices"], asks)) == alone


def test_several_prompts_and_choices(unit: Unit) -> None:
    body = {
        "max_tokens": 6,
        "temperature": 1.0,
        "seed": 4,
        "n": 2,
        "prompt": ["the cat", "the sea"],
        "ignore_eos": True,
    }
    whole = unit.post(COMPLETION, body)
    texts = [c["text"] for c in whole["choices"]]
    assert [c["index"] for c in whole["choices"]] == [0, 1, 2, 3] and texts[0] != texts[1]
    assert [c["text"] for c in unit.post(COMPLETION, body)["choices"]] == texts
    events = unit.stream(COMPLETION, body)
    assert [text_of(events, i) for i in range(4)] == texts
    single = unit.post(COMPLETION, {**body, "n": 1, "prompt": "the cat"})
    assert single["choices"][0]["text"] == texts[0]
    assert whole["usage"]["prompt_tokens"] == sum(
        unit.post("/tokenize", {"prompt": p})["count"]
        for p in body["prompt"]  # type: ignore[attr-defined]
    )


def test_echo_and_logprobs(unit: Unit) -> None:
    body = {**GREEDY, "prompt": "the cat sat", "echo": True, "logprobs": 2, "max_tokens": 3, "return_token_ids": True}
    choice = unit.post(COMPLETION, body)["choices"][0]
    plain = unit.post(COMPLETION, {**GREEDY, "prompt": "the cat sat", "max_tokens": 3})["choices"][0]["text"]
    assert choice["text"] == "the cat sat" + plain
    form = choice["logprobs"]
    count = len(choice["prompt_token_ids"]) + 3
    assert {len(v) for v in form.values()} == {count}
    assert form["token_logprobs"][0] is None and all(x < 0 for x in form["token_logprobs"][1:])
    assert "".join(form["tokens"]).startswith("the cat sat")


def test_chat_logprobs(unit: Unit) -> None:
    body = {**GREEDY, "messages": MESSAGES, "logprobs": True, "top_logprobs": 3}
    entries = unit.post(CHAT, body)["choices"][0]["logprobs"]["content"]
    assert len(entries) == 12
    for entry in entries:
        assert entry["token"] == entry["top_logprobs"][0]["token"] and len(entry["top_logprobs"]) == 3
        assert bytes(entry["bytes"]).decode("utf-8", "replace") == entry["token"]
    streamed = unit.stream(CHAT, body)
    found = [e for event in streamed for c in event["choices"] if c["logprobs"] for e in c["logprobs"]["content"]]
    assert found == entries


def test_stop_strings_and_end_tokens(unit: Unit) -> None:
    base = {**GREEDY, "prompt": "a prefill and", "max_tokens": 40}
    text = unit.post(COMPLETION, base)["choices"][0]["text"]
    stop = text[8:11]
    at = text.index(stop)
    for extra, expected in (({}, text[:at]), ({"include_stop_str_in_output": True}, text[: at + len(stop)])):
        choice = unit.post(COMPLETION, {**base, "stop": [stop, "never"], **extra})["choices"][0]
        assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (expected, "stop", stop)
        assert text_of(unit.stream(COMPLETION, {**base, "stop": stop, **extra})) == expected
    ids = unit.post(COMPLETION, {**base, "return_token_ids": True})["choices"][0]["token_ids"]
    choice = unit.post(COMPLETION, {**base, "stop_token_ids": [ids[4]], "return_token_ids": True})["choices"][0]
    assert choice["token_ids"] == ids[: ids.index(ids[4]) + 1] and choice["stop_reason"] == ids[4]


def test_tokenize_and_detokenize(unit: Unit) -> None:
    reply = unit.post("/tokenize", {"prompt": "the cat é"})
    assert unit.post("/detokenize", {"tokens": reply["tokens"]}) == {"prompt": "the cat é"}
    assert reply["count"] == len(reply["tokens"]) and reply["max_model_len"] == models.CONTEXT
    told = unit.post("/tokenize", {"messages": MESSAGES, "add_generation_prompt": True})
    chat = unit.post(CHAT, {**GREEDY, "messages": MESSAGES, "return_token_ids": True})
    assert told["tokens"] == chat["prompt_token_ids"]
    assert told["tokens"][0] == models.BEGIN


def test_models_health_and_metrics(unit: Unit) -> None:
    assert unit.ask("GET", "/health")[0] == 200
    (entry,) = json.loads(unit.ask("GET", "/v1/models")[1])["data"]
    assert (entry["id"], entry["max_model_len"]) == ("demo", models.CONTEXT)
    bound = entry["binding"]
    assert (bound["pinned"], bound["nodes"], bound["unbound"]) == (bound["threads"], 1, 0) and bound["isa"]
    before = unit.metrics()
    unit.post(COMPLETION, {**GREEDY, "prompt": [99] * 70})
    unit.post(COMPLETION, {**GREEDY, "prompt": [99] * 70})
    after = unit.metrics()

    def grown(name: str) -> float:
        return after[name] - before[name]

    assert grown("vllm:generation_tokens_total") == 24 and grown("vllm:prompt_tokens_total") == 140
    assert grown('vllm:prompt_tokens_by_source_total{source="local_cache_hit"}') == 64
    assert grown('vllm:prompt_tokens_by_source_total{source="local_compute"}') == 76
    assert grown("vllm:time_to_first_token_seconds_count") == 2
    assert grown("vllm:inter_token_latency_seconds_count") == 22
    assert grown("vllm:e2e_request_latency_seconds_count") == 2


TYPES = {400: "invalid_request_error", 404: "not_found_error"}
BAD = [
    (COMPLETION, {"prompt": 5}, 400, "prompt"),
    (COMPLETION, {}, 400, "prompt is a null"),
    (COMPLETION, {"prompt": []}, 400, "prompt"),
    (COMPLETION, {"prompt": [1, "a"]}, 400, "token ids"),
    (COMPLETION, {"prompt": [100000]}, 400, "token ids from 0"),
    (COMPLETION, {"prompt": "x", "model": "other"}, 404, "other"),
    (COMPLETION, {"prompt": "x", "temperature": "hot"}, 400, "temperature is a string"),
    (COMPLETION, {"prompt": "x", "temperature": -1}, 400, "temperature is -1"),
    (COMPLETION, {"prompt": "x", "top_p": 0}, 400, "top_p"),
    (COMPLETION, {"prompt": "x", "max_tokens": 0}, 400, "max_tokens is 0"),
    (COMPLETION, {"prompt": "x", "max_tokens": 5000}, 400, "max_tokens"),
    (COMPLETION, {"prompt": [1] * 3000}, 400, "3000 tokens"),
    (COMPLETION, {"prompt": "x " * 400000}, 400, "context"),
    (COMPLETION, {"prompt": "x", "n": 500}, 400, "n is 500"),
    (COMPLETION, {"prompt": "x", "stop": [1]}, 400, "stop"),
    (COMPLETION, {"prompt": "x", "logit_bias": {"x": 1}}, 400, "logit_bias"),
    (COMPLETION, {"prompt": "x", "best_of": 3}, 400, "best_of"),
    (COMPLETION, {"prompt": "x", "stream": "yes"}, 400, "stream"),
    (CHAT, {"messages": []}, 400, "messages"),
    (CHAT, {"messages": ["hi"]}, 400, "messages[0]"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "text only"),
    (CHAT, {"messages": MESSAGES, "response_format": {"type": "json_object"}}, 400, "response_format"),
    (CHAT, {"messages": MESSAGES, "tool_choice": "required"}, 400, "tool_choice"),
    (CHAT, {"messages": MESSAGES, "kv_transfer_params": {"syshax": {"save": "xyz"}}}, 400, "32 hex digits"),
    (CHAT, {"messages": MESSAGES, "kv_transfer_params": {"syshax": {"load": {"pool": "a"}}}}, 400, "needs ticket"),
    (CHAT, {"messages": MESSAGES, "kv_transfer_params": {"syshax": {"save": "0" * 32}}, "n": 2}, 400, "n = 1"),
    ("/detokenize", {"tokens": "x"}, 400, "tokens"),
    ("/nowhere", {}, 404, "Not Found"),
    # one string of half an emoji, wherever it stands
    (CHAT, {"messages": [{"role": "user", "content": "a\ud83d"}]}, 400, "surrogate"),
    (COMPLETION, {"prompt": "x", "stop": ["\ud83d"]}, 400, "surrogate"),
    (COMPLETION, {"prompt": "x", "\udc00": 1}, 400, "surrogate"),
    (COMPLETION, {"prompt": "x", "logit_bias": {"1" * 5000: 1}}, 400, "logit_bias"),
    (COMPLETION, {"prompt": "x", "stop": ["x"] * 17}, 400, "stop"),
    (COMPLETION, {"prompt": "x", "service_tier": []}, 400, "service_tier"),
    (COMPLETION, {"prompt": "x", "stream_options": {"include_usage": True}}, 400, "stream_options"),
    (COMPLETION, {"prompt": "x", "stream": True, "stream_options": {"include_usage": "yes"}}, 400, "include_usage"),
    (COMPLETION, {"prompt": "x", "min_tokens": 9, "max_tokens": 8}, 400, "min_tokens"),
    # accepted once, without effect
    (COMPLETION, {"prompt": "x", "prompt_logprobs": 1}, 400, "prompt_logprobs"),
    (COMPLETION, {"prompt": "x", "truncate_prompt_tokens": 4}, 400, "truncate_prompt_tokens"),
    (COMPLETION, {"prompt": "x", "return_tokens_as_token_ids": True}, 400, "return_tokens_as_token_ids"),
    (COMPLETION, {"prompt": "x", "detokenize": False}, 400, "detokenize"),
    (COMPLETION, {"prompt": "x", "grammar": "root ::= x"}, 400, "grammar"),
    (COMPLETION, {"prompt": "x", "n_predict": 4}, 400, "n_predict"),
    (CHAT, {"messages": MESSAGES, "chat_template": "x"}, 400, "chat_template"),
    (CHAT, {"messages": MESSAGES, "functions": [{}]}, 400, "functions"),
    (CHAT, {"messages": MESSAGES, "tools": [{"type": "function"}]}, 400, "tools[0]"),
    (CHAT, {"messages": MESSAGES, "tool_choice": "auto"}, 400, "tool_choice"),
    (CHAT, {"messages": MESSAGES, "top_logprobs": 2}, 400, "top_logprobs"),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content"),
    (
        CHAT,
        {"messages": MESSAGES, "add_generation_prompt": True, "continue_final_message": True},
        400,
        "continue_final",
    ),
]


@pytest.mark.parametrize("path, body, status, text", BAD, ids=[f"{b[3]}-{i}" for i, b in enumerate(BAD)])
def test_bad_requests(unit: Unit, path: str, body: dict[str, Any], status: int, text: str) -> None:
    error = unit.post(path, body, status)["error"]
    assert error["type"] == TYPES[status] and text in error["message"] and len(error["message"]) < 400
    assert set(error) == {"message", "type", "param", "code"}


def test_bodies_that_are_not_json_or_huge(unit: Unit) -> None:
    for data in (b"", b"{", b"[1]", b"[" * 100000, b"\xff\xfe", b'"x"'):
        status, reply = unit.ask("POST", CHAT, data)
        assert status == 400 and json.loads(reply)["error"]["type"] == "invalid_request_error"
    status, reply = unit.ask("POST", CHAT, b'{"a":"' + b"x" * (33 << 20) + b'"}')
    assert status == 413 and json.loads(reply)["error"]["code"] == "request_too_large"
    assert unit.ask("GET", CHAT)[0] == 405


def test_openai_client(unit: Unit) -> None:
    client = openai.OpenAI(base_url=unit.url + "/v1", api_key="none", max_retries=0)
    with client:
        whole = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "hi"}], temperature=0, max_completion_tokens=8
        )
        parts = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "hi"}],
            temperature=0,
            max_completion_tokens=8,
            stream=True,
        )
        said = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
        assert said == whole.choices[0].message.content
        assert whole.usage is not None and whole.usage.completion_tokens <= 8
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="absent", prompt="x")
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="demo", prompt="x", max_tokens=-1)


LONG = {"prompt": [8], "max_tokens": 2000, "temperature": 0, "ignore_eos": True, "stream": True, "model": "demo"}


def open_stream(unit: Unit, request_id: str, **extra: object) -> socket.socket:
    """A raw connection on which an answer streams."""
    host, port = urlsplit(unit.url).netloc.split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    data = json.dumps({**LONG, **extra}).encode()
    head = f"POST {COMPLETION} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {request_id}\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request(unit: Unit, stream: bool) -> None:
    connection = open_stream(unit, "leaver", stream=stream)
    wait_for("it runs", lambda: unit.metrics()["vllm:num_requests_running"] == 1)
    connection.close()
    wait_for("the request ended", unit.idle, 1.0)


@pytest.mark.parametrize("suffix", ["", "-0"])
def test_abort_by_id_delivers_what_is_there_and_ends(unit: Unit, suffix: str) -> None:
    with open_stream(unit, f"r{suffix}x") as connection:
        data = connection.recv(1 << 16)
        assert b"200 OK" in data
        unit.post("/inference/v1/abort_requests", {"request_ids": [f"cmpl-r{suffix}x{suffix}"]})
        while b"[DONE]" not in data:
            data += connection.recv(1 << 16)
    events = [json.loads(line[6:]) for line in data.decode().splitlines() if line.startswith("data: {")]
    assert [e["choices"][0]["finish_reason"] for e in events][-1] == "abort"
    assert events[0]["id"] == f"cmpl-r{suffix}x"
    wait_for("the request ended", unit.idle, 1.0)


def test_abort_of_unknown_ids_is_fine(unit: Unit) -> None:
    assert unit.post("/inference/v1/abort_requests", {"request_ids": ["cmpl-none"]}) is None


def test_keys_are_asked_for(tiny_llama: Tiny, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\nother\n")
    with Unit.start(tiny_llama.path, tmp_path, "--threads", "1", "--api-key-file", str(tmp_path / "keys")) as unit:
        assert unit.ask("GET", "/health")[0] == 200
        for path in ("/v1/models", "/metrics"):
            status, body = unit.ask("GET", path)
            assert status == 401 and json.loads(body)["error"]["type"] == "authentication_error"
            assert unit.ask("GET", path, headers={"Authorization": "Bearer other"})[0] == 200


def test_sigterm_ends_running_streams_with_an_error_event(tiny_llama: Tiny, tmp_path: Path) -> None:
    with Unit.start(tiny_llama.path, tmp_path, "--threads", "1") as unit:
        with open_stream(unit, "x") as connection:
            data = bytearray(connection.recv(1 << 16))

            def read() -> None:
                while part := connection.recv(1 << 16):
                    data.extend(part)

            reader = threading.Thread(target=read)
            reader.start()
            assert unit.stop(3.0) == 0
            reader.join(5)
        assert b'data: {"error":' in data and b"data: [DONE]" in data


@pytest.mark.parametrize("outbox", ["", "own.pool"])
def test_few_blocks_show_preemptions_and_the_same_text(
    tiny_llama: Tiny, tmp_path: Path, unit: Unit, outbox: str
) -> None:
    """Preempted sequences are computed again; with a pool they are resumed with the KV that was kept there."""
    asks = [{**GREEDY, "prompt": [20 + i] * 40, "max_tokens": 100, "return_token_ids": True} for i in range(6)]
    expected = [unit.post(COMPLETION, a)["choices"] for a in asks]
    options = ("--threads", "1", "--kv-blocks", "12", "--kv-dtype", "f32")
    with (
        Unit.start(tiny_llama.path, tmp_path, *options, pool=outbox) as small,
        concurrent.futures.ThreadPoolExecutor(6) as pool,
    ):
        assert list(pool.map(lambda a: small.post(COMPLETION, a)["choices"], asks)) == expected
        counts = small.metrics()
        assert counts["vllm:num_preemptions_total"] > 0
        assert (counts["syshax_handoff_restored_tokens_total"] > 0) == bool(outbox)
        assert json.loads(small.ask("GET", "/v1/models")[1])["data"][0]["max_model_len"] == 12 * 32
        wait_for("nothing left", small.idle)


def test_a_cache_of_8_bits_is_not_kept_over_a_preemption(tiny_llama: Tiny, tmp_path: Path) -> None:
    """The pool has no 8-bit form: what came back would differ a little, so that it is computed again."""
    asks = [{**GREEDY, "prompt": [20 + i] * 40, "max_tokens": 100, "return_token_ids": True} for i in range(6)]
    options = ("--threads", "1", "--kv-dtype", "q8_0")
    with Unit.start(tiny_llama.path, tmp_path, *options) as roomy:
        expected = [roomy.post(COMPLETION, a)["choices"] for a in asks]
    with Unit.start(tiny_llama.path, tmp_path, *options, "--kv-blocks", "12", pool="own.pool") as small:
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            assert list(pool.map(lambda a: small.post(COMPLETION, a)["choices"], asks)) == expected
        counts = small.metrics()
        assert counts["vllm:num_preemptions_total"] > 0
        assert counts["syshax_handoff_restored_tokens_total"] == 0
        wait_for("nothing left", small.idle)
