"""What stands at the edge of the API: paths, cards, encodings, keys of other bytes, large and odd bodies."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from testbed.daemon_in_process import CONFIG, House

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODY = {"model": "fake-model", "prompt": "x", "max_tokens": 3, "temperature": 0}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with House(tmp_path_factory.mktemp("pool")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def house(shared: House) -> AsyncIterator[House]:
    yield shared
    await shared.clear()


async def ask(house: House, method: str, path: str, data: bytes = b"", **headers: str) -> tuple[int, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with house.http.request(method, house.url + path, data=io.BytesIO(data), headers=named) as response:
        text = await response.read()
        return response.status, json.loads(text) if text else None


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "//v1/models", "/v1//models"])
async def test_slashes_do_not_matter(house: House, path: str) -> None:
    status, listing = await ask(house, "GET", path)
    assert status == 200 and listing["object"] == "list"


@pytest.mark.parametrize("path", ["/health", "/health/", "/ping"])
async def test_health_by_its_usual_names(house: House, path: str) -> None:
    assert (await ask(house, "GET", path))[0] == 200


async def test_a_models_card_is_whole_and_can_be_asked_for_alone(house: House) -> None:
    _, listing = await ask(house, "GET", "/v1/models")
    card = listing["data"][0]
    assert card["root"] == card["id"] and card["parent"] is None and abs(card["created"] - time.time()) < 3600
    assert await ask(house, "GET", f"/v1/models/{card['id']}") == (200, card)
    status, told = await ask(house, "GET", "/v1/models/other")
    assert (status, told["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/audio/speech", "/nowhere"])
async def test_what_is_not_there_is_404_which_clients_do_not_try_again(house: House, path: str) -> None:
    status, told = await ask(house, "POST", path, b"{}")
    assert status == 404 and told["error"]["type"] == "not_found_error"


async def test_content_encodings(house: House) -> None:
    data = json.dumps(BODY).encode()
    assert (await ask(house, "POST", COMPLETIONS, gzip.compress(data), Content_Encoding="gzip"))[0] == 200
    status, told = await ask(house, "POST", COMPLETIONS, data, Content_Encoding="gzip")
    assert (status, told["error"]["param"]) == (400, "content-encoding")
    assert (await ask(house, "POST", COMPLETIONS, data, Content_Encoding="br"))[0] == 415
    bomb = gzip.compress(bytes(300 << 20))
    assert (await ask(house, "POST", COMPLETIONS, bomb, Content_Encoding="gzip"))[0] == 413


async def test_one_prompt_in_a_list_is_one_prompt(house: House) -> None:
    for prompt in (["x"], [[120]]):
        reply = await house.post(COMPLETIONS, {**BODY, "prompt": prompt}, {"x-syshax-route": "accelerator>cpu"})
        assert (reply.status, reply.headers["x-syshax-route"]) == (200, "accelerator>cpu"), reply.data


ODD = [
    {"messages": [{"role": "user", "content": "a\ud83d"}]}, {"stop": ["\udc00"]}, {"\ud800": 1},
    {"logit_bias": {"1" * 5000: 1}}, {"service_tier": []}, {"stop": ["x"] * 900_000}, {"n": 1 << 60},
    {"metadata": {"a": [[[["\ud83d"]]]]}},
]  # fmt: skip


@pytest.mark.parametrize("more", ODD, ids=lambda more: str(more)[:30])
async def test_a_clients_fault_is_told_at_once_and_no_unit_is_suspected(house: House, more: dict[str, Any]) -> None:
    for path in (CHAT, COMPLETIONS):
        body = {**BODY, "messages": [{"role": "user", "content": "x"}], **more}
        status, told = await ask(house, "POST", path, json.dumps(body).encode())
        assert status == 400 and told["error"]["type"] == "invalid_request_error", told
    assert house.world.suspected == []
    assert (await house.post(COMPLETIONS, BODY)).status == 200


LARGE = [b"[1" + b",1" * (7 << 20) + b"]", b"[[]" + b",[]" * (4 << 20) + b"]"]


@pytest.mark.parametrize("value", LARGE, ids=["numbers", "arrays"])
async def test_large_bodies_do_not_keep_others_waiting(house: House, value: bytes) -> None:
    """Eight at once: refused, and the daemon answers meanwhile."""
    data = b'{"max_tokens": 1, "prompt": ' + value + b"}"
    calls = [asyncio.ensure_future(ask(house, "POST", COMPLETIONS, data)) for _ in range(8)]
    slowest = 0.0
    while not all(call.done() for call in calls):
        begun = time.monotonic()
        assert (await ask(house, "GET", "/health/live"))[0] == 200
        slowest = max(slowest, time.monotonic() - begun)
    assert {(await call)[0] for call in calls} <= {400, 429}
    assert slowest < 2.0


async def test_a_key_that_is_no_text_is_no_valid_key(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "keys").write_bytes("s\u00e9cret\n".encode())
    (folder / "keys").chmod(0o600)
    conductor = replace(CONFIG.conductor, api_keys_file=str(folder / "keys"))
    async with House(folder, replace(CONFIG, conductor=conductor)) as house:
        address = urlsplit(house.url)
        for key, status in ((b"s\xe9cret", b"401"), ("s\u00e9cret".encode(), b"200")):
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n")
            writer.write(b"Authorization: Bearer " + key + b"\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 30)
            writer.close()
            assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
            assert (b"\r\nWWW-Authenticate: Bearer\r\n" in answer) == (status == b"401")
