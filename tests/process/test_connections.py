"""The front against connections that say nothing, say no HTTP, or come from a browser's foreign page."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from syshaxd.conductor.connections import RESERVED, Connections
from syshaxd.conductor.listeners import Listeners
from testbed.daemon_fake_units import TERM, Daemon
from testbed.daemon_in_process import CONFIG, House

SECRET = "sk-a-secret-key"


@asynccontextmanager
async def front(most: int) -> AsyncIterator[tuple[Connections, int]]:
    """A server that answers "ok", with so many connections at most; its port."""

    async def answer(request: web.Request) -> web.Response:
        with connections.answering(request):
            return web.Response(text="ok")

    connections = Connections(RESERVED + 2 * most)
    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    server, loop = runner.server, asyncio.get_running_loop()
    assert server is not None
    listeners = Listeners(lambda: connections.protocol(server, loop))
    await listeners.listen("127.0.0.1", 0)
    try:
        yield connections, listeners.addresses[0][1]
    finally:
        listeners.close()
        await runner.cleanup()


async def test_silent_connections_make_room_and_keep_descriptors_free() -> None:
    async with front(20) as (connections, port):
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(60)]
        async with aiohttp.ClientSession() as session:
            for _ in range(5):
                async with session.get(f"http://127.0.0.1:{port}/") as response:
                    assert await response.text() == "ok"
        assert len(connections) <= connections.most == 20
        closed = 0
        for reader, writer in opened:
            try:
                closed += await asyncio.wait_for(reader.read(1), 0.02) == b""
            except (asyncio.TimeoutError, ConnectionError) as err:
                closed += isinstance(err, ConnectionError)
            writer.close()
        assert closed >= 40, "the first ones went"


async def raw(url: str, data: bytes) -> bytes:
    """All that comes back."""
    port = int(url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


@pytest.mark.parametrize(
    "data",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + SECRET.encode() + b"\x01\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + SECRET.encode() + b"\r\n\r\n",
        b"\x16\x03\x01" + SECRET.encode() + b"\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        b"zz" + SECRET.encode() + b"\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nConnection: close\r\n"
        b"Content-Length: 15\r\n\r\n" + SECRET.encode(),
    ],
    ids=["key", "header", "tls", "chunk", "gzip"],
)
async def test_broken_http_is_400_and_neither_logged_nor_echoed(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with House(tmp_path, gpu=()) as house:
            answer = await raw(house.url, data)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") or head.startswith(b"HTTP/1.0 400 "), answer
    assert b"application/json" in head and b'"error"' in body
    assert SECRET.encode() not in answer and SECRET not in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_key_that_is_no_ascii_is_401_and_says_what_is_wanted(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n")
    file.chmod(0o600)
    config = replace(CONFIG, conductor=replace(CONFIG.conductor, api_keys_file=str(file)))
    async with House(tmp_path, config, gpu=()) as house:
        for key in (b"s\xe9cret", b"two"):
            answer = await raw(
                house.url,
                b"GET /v1/models HTTP/1.1\r\nHost: x.example\r\nConnection: close\r\n"
                b"Authorization: Bearer " + key + b"\r\n\r\n",
            )
            assert answer.startswith(b"HTTP/1.1 401 ") and b"WWW-Authenticate: Bearer" in answer


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Host": "localhost"}, 200),
        ({"Host": "127.0.0.1:8010"}, 200),
        ({"Host": "[::1]:8010"}, 200),
        ({"Host": "10.1.2.3"}, 200),
        ({"Host": "attacker.example:8010"}, 403),
        ({"Host": "box.lan:8010"}, 200),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "https://attacker.example"}, 403),
        ({"Origin": "http://10.1.2.3"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://box.lan"}, 200),
    ],
)
async def test_foreign_names_and_origins_are_refused(shared: House, headers: dict[str, str], status: int) -> None:
    async with shared.http.get(shared.url + "/v1/models", headers=headers) as response:
        assert response.status == status
        if status == 403:
            assert (await response.json())["error"]["code"] == "host_not_allowed"


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[House]:
    config = replace(CONFIG, conductor=replace(CONFIG.conductor, allowed_hosts=("box.lan",)))
    async with House(tmp_path, config, gpu=()) as house:
        yield house


@pytest.fixture
def soft_limit() -> Iterator[None]:
    """The usual one of 1,024 descriptors for what the test starts."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.timeout(120)
async def test_a_thousand_silent_connections_hurt_nobody(tmp_path: Path, soft_limit: None) -> None:
    daemon = Daemon(tmp_path)
    await daemon.start()
    try:
        await daemon.ready()
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        pids = [(await daemon.unit(name))["pid"] for name in ("gpu", "cpu")]
        silent = [await asyncio.open_connection("127.0.0.1", daemon.port) for _ in range(1100)]
        async with aiohttp.ClientSession() as session:
            for _ in range(20):
                body = {"prompt": "x", "max_tokens": 2}
                async with session.post(f"http://127.0.0.1:{daemon.port}/v1/completions", json=body) as response:
                    assert response.status == 200, await response.text()
        assert [(await daemon.unit(name))["pid"] for name in ("gpu", "cpu")] == pids
        assert b"Too many open files" not in daemon.output and b"Traceback" not in daemon.output
        for _, writer in silent:
            writer.close()
    finally:
        daemon.signal(TERM)
        await daemon.ended()
        await daemon.close()
