"""Two real units of different contexts: every request gets all its tokens, or a 400 at once, whatever the load."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from testbed.daemon_demo_model import LIBRARY, MODEL, Daemon, demo_config

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(not LIBRARY.exists(), reason="needs the native core: make native"),
]
WORDS = "tokens of the prompt " * 400


async def sized(daemon: Daemon, tokens: int) -> str:
    """A prompt of that many tokens."""
    low, high = 1, len(WORDS)
    while low < high:
        middle = (low + high) // 2
        async with daemon.http.post(daemon.url + "/tokenize", json={"prompt": WORDS[:middle]}) as response:
            count = (await response.json())["count"]
        low, high = (middle + 1, high) if count < tokens else (low, middle)
    return WORDS[:low]


async def ask(daemon: Daemon, body: dict[str, Any], **headers: str) -> Any:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    async with daemon.http.post(daemon.url + path, json={"model": MODEL, **body}, headers=headers) as response:
        return response.status, response.headers.copy(), await response.json()


async def context_of(daemon: Daemon) -> int:
    async with daemon.http.get(daemon.url + "/v1/models") as response:
        cards = (await response.json())["data"]
    return int(cards[0]["max_model_len"])


@pytest.mark.parametrize("decider", ["predictive", "threshold"])
@pytest.mark.parametrize("longer", ["gpu", "cpu"])
async def test_no_answer_is_cut_short_by_load(tmp_path: Path, decider: str, longer: str) -> None:
    sizes: dict[str, Any] = {longer: {"kv_blocks": 64}, "cpu" if longer == "gpu" else "gpu": {"max_model_len": 384}}
    scheduler = {"decider": decider, "slo": {"default": {"ttft": "60s"}}}
    config = demo_config(sizes["gpu"], sizes["cpu"], scheduler=scheduler)
    async with Daemon(tmp_path, config) as daemon:
        assert await context_of(daemon) == 2048
        body = {"prompt": await sized(daemon, 400), "max_tokens": 300, "ignore_eos": True, "temperature": 0}
        answers = await asyncio.gather(*(ask(daemon, body) for _ in range(5)))
        assert [status for status, _, _ in answers] == [200] * 5, answers
        assert [answer["usage"]["completion_tokens"] for _, _, answer in answers] == [300] * 5
        assert {answer["choices"][0]["finish_reason"] for _, _, answer in answers} == {"length"}
        short = [ask(daemon, {**body, "prompt": "A short one.", "max_tokens": 200}) for _ in range(4)]
        assert [answer["usage"]["completion_tokens"] for _, _, answer in await asyncio.gather(*short)] == [200] * 4


async def test_what_no_unit_holds_is_400_at_once_and_clipped_where_that_is_wanted(tmp_path: Path) -> None:
    config = demo_config({"kv_blocks": 64}, {"max_model_len": 384}, scheduler={"decider": "threshold"})
    async with Daemon(tmp_path, config) as daemon:
        for body in ({"messages": [{"role": "user", "content": await sized(daemon, 2100)}]}, {"prompt": WORDS * 50}):
            status, headers, answer = await ask(daemon, body)
            error = answer["error"]
            assert (status, error["code"]) == (400, "context_length_exceeded"), answer
            assert error["param"] == ("messages" if "messages" in body else "prompt")
            assert "maximum context length is 2048 tokens" in error["message"] and "Retry-After" not in headers
        chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8192}
        status, _, answer = await ask(daemon, chat)
        assert status == 400 and "8192 of output" in answer["error"]["message"]
        longer = {"prompt": await sized(daemon, 500), "max_tokens": 20}
        status, _, answer = await ask(daemon, longer, **{"x-syshax-route": "cpu"})
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        config["models"][MODEL] = {"clip_max_tokens": True}
        daemon.rewrite(config)
        await asyncio.to_thread(daemon.control, "reload")
        status, headers, answer = await ask(daemon, {**chat, "ignore_eos": True})
        usage = answer["usage"]
        assert status == 200 and usage["prompt_tokens"] + usage["completion_tokens"] == 2048
        assert headers["x-syshax-clipped"] == f"max_tokens={usage['completion_tokens']}; asked for 8192"
