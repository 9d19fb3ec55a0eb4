"""The endpoints that generate: from an HTTP request to a stream of the Runner, and its bytes to the client."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from aiohttp import web

from syshax_contract.request_body import Bodies
from syshaxd.log import Log
from syshaxd.model.request import Endpoint, RequestInfo, Route
from syshaxd.runner import ClientRequest, Head, RequestError, Runner, Stream, features_of

from .answers import error_events, reason_of
from .disconnects import DisconnectWatch
from .event_stream import EventStream
from .parsing import parse_body, parse_request
from .retries import Refusals

CLIENT_GONE = 499  # nginx's status for a client that left before its answer


class Generation:
    """Serves one request after another; keeps nothing of them but when a refused one came first."""

    def __init__(self, runner: Runner, watch: DisconnectWatch, log: Log, bodies: Bodies) -> None:
        self._bodies = bodies
        self._runner = runner
        self._watch = watch
        self._log = log
        self._refusals = Refusals()

    async def parse(
        self,
        data: bytes,
        endpoint: Endpoint,
        http: web.Request,
        request_id: str,
        forced: Route | None,
        keyed: bool,
    ) -> ClientRequest:
        """Checks the body and the headers; raises BadRequest. `forced`: the path itself asks for a route; `keyed`:
        clients have keys, which tell them apart."""
        config = self._runner.config
        key = http.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        limits = config.conductor.max_body, config.served.default
        work = functools.partial(_checked, data, key, endpoint, http.headers, request_id, *limits)
        body, info, digest = await self._bodies.run(len(data), work)
        client = hashlib.blake2b(key, digest_size=6).hexdigest() if keyed else ""
        now = asyncio.get_running_loop().time()
        waited = self._refusals.waited(digest, http.headers, now)
        info = replace(info, route=forced or info.route, waited=waited, client=client, features=features_of(body))
        return ClientRequest(info, body, now, int(time.time()), digest)

    async def serve(self, http: web.Request, request: ClientRequest) -> web.StreamResponse:
        """The answer; raises RequestError when nothing has been sent yet."""
        stream = self._runner.submit(request)
        until = request.arrived + self._runner.config.limits.request_timeout
        status, refusal = CLIENT_GONE, None
        try:
            with self._watch.over(http, until):
                if request.info.stream:
                    response, status, refusal = await self._stream(http, stream)
                    return response
                headers = _headers(stream, await stream.open())
                answer = await stream.body()
                status = 200
                return web.Response(body=answer, content_type="application/json", headers=headers)
        except RequestError as err:
            status, refusal = err.status, reason_of(err)
            if status == 429:
                self._refusals.note(request.digest, request.arrived - request.info.waited)
            raise
        finally:
            await self._finish(stream, status, refusal)

    async def _stream(self, http: web.Request, stream: Stream) -> tuple[web.StreamResponse, int, str | None]:
        """The answer, the status that it came to, and why it is none."""
        request_id, silence = stream.entry.info.request_id, self._runner.config.limits.max_silence
        events, status, refusal = EventStream(http, request_id, silence), 200, None
        try:
            try:
                await events.begin(_headers(stream, await stream.open()))
                while data := await stream.next_bytes():
                    await events.write(data)
            except RequestError as err:
                if not events.begun:
                    raise
                status, refusal = err.status, reason_of(err)
                await events.begin({})
                await events.write(error_events(err))
            await events.close()
            await events.response.write_eof()
        except ConnectionError:  # the client is gone: said in the request's line; aiohttp would add a stack trace
            status = CLIENT_GONE
        finally:
            await events.close()
        return events.response, status, refusal

    async def _finish(self, stream: Stream, status: int, refusal: str | None) -> None:
        await self._runner.finish(stream, status)
        if self._runner.config.log.access:
            entry, now = stream.entry, asyncio.get_running_loop().time()
            arrived = datetime.fromtimestamp(time.time() - (now - entry.started), timezone.utc)
            about = {"request_id": entry.info.request_id, "arrived": arrived.isoformat(timespec="milliseconds")}
            known = dict(stream.summary())
            self._log.info("request", **about, status=status, **{**known, "reason": known["reason"] or refusal})


def _checked(
    data: bytes,
    key: bytes,
    endpoint: Endpoint,
    headers: Mapping[str, str],
    request_id: str,
    most: int,
    default_model: str,
) -> tuple[dict[str, Any], RequestInfo, bytes]:
    """Body, what the daemon reads of it, and its digest. Pure: a large body is done beside the event loop."""
    body = parse_body(data, headers, most)
    info = parse_request(body, endpoint, headers, request_id, default_model)
    return body, info, hashlib.blake2b(key + b"\0" + data, digest_size=16).digest()


def _headers(stream: Stream, head: Head) -> dict[str, str]:
    headers = {
        "x-request-id": stream.entry.info.request_id,
        "x-syshax-route": head.route.value,
        "x-syshax-reason": f"{head.reason.code}: {head.reason.text}",
    }
    info = stream.entry.info
    if info.clipped is not None:
        headers["x-syshax-clipped"] = f"max_tokens={info.max_tokens}; asked for {info.clipped}"
    for name, value in (("ttft", head.prediction.ttft), ("tpot", head.prediction.tpot)):
        if value is not None:
            headers[f"x-syshax-predicted-{name}-ms"] = f"{value * 1000:.1f}"
    return headers
