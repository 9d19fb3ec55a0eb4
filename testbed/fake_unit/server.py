"""The HTTP side of the fake unit."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from .engine import Emitted, Engine, Sequence
from .faults import Faults
from .language import decode, render
from .tickets import ticket_of

_CUTS = (
    "die_after",
    "reset_after",
    "close_after",
    "garbage_after",
    "not_json_after",
    "error_after",
    "stall_after",
    "unasked_abort_after",
)


class Server:
    """Handlers over one engine."""

    def __init__(self, engine: Engine, faults: Faults, name: str, model: str, max_model_len: int, key: str) -> None:
        self.engine, self.faults, self.name = engine, faults, name
        self.model, self.max_model_len, self.key = model, max_model_len, key
        self.started = time.monotonic()
        self.bodies: list[dict[str, Any]] = []
        self.request_ids: list[str] = []
        self.aborted: list[str] = []
        self.open_streams = 0

    def app(self) -> web.Application:
        """Routes."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        add = app.router.add_route
        add("GET", "/health", self.health)
        add("GET", "/v1/models", self.models)
        add("GET", "/metrics", self.metrics)
        add("POST", "/v1/completions", self.generate)
        add("POST", "/v1/chat/completions", self.generate)
        add("POST", "/tokenize", self.tokenize)
        add("POST", "/detokenize", self.detokenize)
        add("POST", "/inference/v1/abort_requests", self.abort)
        add("POST", "/fake/faults", self.set_faults)
        add("POST", "/fake/clear", self.clear)
        add("GET", "/fake/state", self.state)
        return app

    async def health(self, http: web.Request) -> web.Response:
        loading = time.monotonic() - self.started < float(self.faults.on("start_delay") or 0)
        return web.Response(status=503 if loading else 200)

    async def models(self, http: web.Request) -> web.Response:
        card = {"id": self.model, "object": "model", "max_model_len": self.max_model_len}
        return web.json_response({"object": "list", "data": [card]})

    async def tokenize(self, http: web.Request) -> web.Response:
        tokens = render(await http.json())
        return web.json_response({"tokens": tokens, "count": len(tokens), "max_model_len": self.max_model_len})

    async def detokenize(self, http: web.Request) -> web.Response:
        return web.json_response({"prompt": decode((await http.json())["tokens"])})

    async def abort(self, http: web.Request) -> web.Response:
        body = await http.json()
        ids = body["request_ids"]
        if self.faults.on("no_abort"):
            return web.json_response({"error": {"message": "not enabled"}}, status=404)
        self.aborted += ids
        if not self.faults.on("ignore_abort"):
            self.engine.abort(ids)
            self.engine.outbox.discard(body.get("discard") or [])
        return web.json_response({})

    async def set_faults(self, http: web.Request) -> web.Response:
        self.faults.set(await http.json())
        return web.json_response({})

    async def clear(self, http: web.Request) -> web.Response:
        self.faults.clear()
        self.engine.totals.clear()
        self.engine.outbox.clear()
        self.bodies, self.request_ids, self.aborted = [], [], []
        return web.json_response({})

    async def state(self, http: web.Request) -> web.Response:
        engine = self.engine
        return web.json_response(
            {
                "running": len(engine.running),
                "waiting": len(engine.waiting),
                "open_streams": self.open_streams,
                "kv_blocks_used": engine.used(),
                "tickets": engine.outbox.count(),
                "totals": dict(engine.totals),
                "failures": {".".join(key): count for key, count in engine.outbox.failures.items()},
                "bodies": self.bodies,
                "request_ids": self.request_ids,
                "aborted": self.aborted,
            }
        )

    async def metrics(self, http: web.Request) -> web.Response:
        if self.faults.on("wrong_metrics"):
            return web.Response(text="<html>nothing here</html>")
        engine, law = self.engine, self.engine.law
        label = f'{{model_name="{self.model}"}}'
        values = {
            f"vllm:num_requests_running{label}": len(engine.running),
            f"vllm:num_requests_waiting{label}": len(engine.waiting),
            f"vllm:kv_cache_usage_perc{label}": engine.used() / law.kv_blocks,
            f"vllm:num_preemptions_total{label}": engine.totals["preemptions"],
            f"vllm:prompt_tokens_total{label}": engine.totals["local"] + engine.totals["external"],
            f"vllm:generation_tokens_total{label}": engine.totals["generated"],
        }
        sources = {"local_compute": "local", "local_cache_hit": "cached", "external_kv_transfer": "external"}
        for source, key in sources.items():
            name = f'vllm:prompt_tokens_by_source_total{{model_name="{self.model}",source="{source}"}}'
            values[name] = engine.totals[key]
        for (what, reason), count in engine.outbox.failures.items():
            values[f'syshax_handoff_{what}_failures_total{{model_name="{self.model}",reason="{reason}"}}'] = count
        text = "".join(f"{name} {float(value)}\n" for name, value in values.items())
        return web.Response(text=text, content_type="text/plain")

    async def generate(self, http: web.Request) -> web.StreamResponse:
        if self.key and http.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "wrong key"}}, status=401)
        body = await http.json()
        self.bodies.append(body)
        status = self.faults.on("http_status")
        if status:
            self.faults.spend("http_status")
            return web.json_response({"error": {"message": "told to fail", "code": status}}, status=status)
        refusal = self.refusal(body)
        if refusal:
            error = {"message": refusal, "type": "BadRequestError", "param": None, "code": 400}
            return web.json_response({"error": error}, status=400)
        return await Generation(self, http, body).answer()

    def refusal(self, body: dict[str, Any]) -> str | None:
        """Why vLLM would say 400."""
        if body.get("model") not in (None, self.model):
            return f"the model {body['model']} does not exist"
        if len(render(body)) >= self.max_model_len:
            return f"maximum context length is {self.max_model_len} tokens"
        if (body.get("min_tokens") or 0) > (body.get("max_tokens") or 1 << 30):
            return "min_tokens must be less than or equal to max_tokens"
        return None


class Generation:
    """One request: its stream, its stop strings, its faults."""

    def __init__(self, server: Server, http: web.Request, body: dict[str, Any]) -> None:
        self.server, self.http, self.body = server, http, body
        self.chat = "messages" in body
        request_id = http.headers.get("X-Request-Id", os.urandom(8).hex())
        server.request_ids.append(request_id)
        self.id = f"chatcmpl-{request_id}" if self.chat else f"cmpl-{request_id}"
        self.kept = bool((body.get("kv_transfer_params") or {}).get("do_remote_decode"))
        if self.kept:
            body["kv_transfer_params"]["remote_request_id"] = self.id
        prompt = render(body)
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or (1 << 20 if self.chat else 16)
        limit = min(limit, server.max_model_len - len(prompt))
        names = (self.id,) if self.chat else (self.id, f"{self.id}-0")
        self.sequence = Sequence(names, body, prompt, limit)
        self.stop_reason: str | None = None
        self.sent = 0

    async def answer(self) -> web.StreamResponse:
        """Streamed or whole."""
        engine = self.server.engine
        engine.submit(self.sequence)
        self.server.open_streams += 1
        try:
            if self.body.get("stream"):
                return await self.stream()
            return await self.whole()
        except ConnectionResetError:
            return web.Response(status=499)
        finally:
            self.server.open_streams -= 1
            engine.end(self.sequence, "abort", publish=False)

    async def pieces(self) -> AsyncIterator[Emitted]:
        """Tokens with the text that a client gets, stop strings applied as vLLM applies them."""
        given = self.body.get("stop") or []
        stops = [given] if isinstance(given, str) else given
        hold, text, out = max(map(len, stops), default=1) - 1, "", 0
        async for token, piece, finish in self.tokens():
            text += piece
            enough = len(self.sequence.output) > (self.body.get("min_tokens") or 0)
            hits = [(text.find(s, max(0, len(text) - len(piece) - len(s))), s) for s in stops if piece and enough]
            hits = [hit for hit in hits if hit[0] >= 0]
            if hits:
                at, self.stop_reason = min(hits)
                yield token, text[out:at], "stop"
                return
            end = len(text) if finish else max(out, len(text) - hold)
            yield token, text[out:end], finish
            out = end

    async def tokens(self) -> AsyncIterator[Emitted]:
        """From the engine, until a finish; faults strike here."""
        while True:
            if self.http.transport is None or self.http.transport.is_closing():
                raise ConnectionResetError
            try:
                event = await asyncio.wait_for(self.sequence.events.get(), 0.1)
            except asyncio.TimeoutError:
                continue
            if event[0] >= 0:
                self.misbehave()
                self.sent += 1
            yield event
            if event[2]:
                return

    def misbehave(self) -> None:
        """Before token number `sent`."""
        faults = self.server.faults
        for name in _CUTS:
            at = faults.on(name)
            if at is not None and at is not False and self.sent >= at:
                faults.spend(name)
                raise Strike(name)

    async def stream(self) -> web.StreamResponse:
        """Server-sent events."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        try:
            if self.chat:
                await response.prepare(self.http)
                await self.send(response, self.chunk({"role": "assistant", "content": ""}, first=True))
            await self.send_tokens(response)
        except Strike as strike:
            if not response.prepared and strike.name not in ("die_after", "reset_after", "stall_after"):
                await response.prepare(self.http)
            await self.strike(response, strike.name)
            return response
        if (self.body.get("stream_options") or {}).get("include_usage"):
            await self.send(response, {**self.common(), "choices": [], "usage": self.usage()})
        await self.raw(response, b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def send_tokens(self, response: web.StreamResponse) -> None:
        first = not self.chat
        async for token, text, finish in self.pieces():
            if not response.prepared:
                await response.prepare(self.http)
            delta = {"content": text} if text else {}
            chunk = self.chunk(delta if self.chat else {"text": text}, first)
            choice = chunk["choices"][0]
            choice["finish_reason"] = finish
            choice["stop_reason"] = self.stop_reason
            if token >= 0:
                self.annotate(choice, token)
            first = False
            await self.send(response, chunk)

    async def strike(self, response: web.StreamResponse, name: str) -> None:
        """Ends a stream the wrong way."""
        if name == "die_after":
            os.kill(os.getpid(), signal.SIGKILL)
        transport = self.http.transport
        assert transport is not None
        if name == "reset_after":
            transport.abort()
        elif name == "stall_after":
            while not transport.is_closing():
                await asyncio.sleep(0.02)
        elif name == "garbage_after":
            await self.raw(response, b"\x00\xff<html>garbage</html>\n\n")
            await response.write_eof()
        elif name == "not_json_after":
            await self.raw(response, b'data: {"choices": [\n\n')
            await response.write_eof()
        elif name == "error_after":
            error = {"message": "EngineCore encountered an issue", "type": "InternalServerError", "code": 500}
            await self.raw(response, b"data: " + json.dumps({"error": error}).encode() + b"\n\ndata: [DONE]\n\n")
            await response.write_eof()
        elif name == "unasked_abort_after":
            chunk = self.chunk({} if self.chat else {"text": ""}, False)
            chunk["choices"][0]["finish_reason"] = "abort"
            await self.send(response, chunk)
            await self.raw(response, b"data: [DONE]\n\n")
            await response.write_eof()
        else:
            await response.write_eof()

    async def whole(self) -> web.Response:
        """One JSON body; n choices are all alike."""
        text, finish, tokens = "", None, []
        try:
            async for token, piece, finish in self.pieces():
                text += piece
                tokens += [token] if token >= 0 else []
        except Strike as strike:
            if strike.name in ("die_after", "stall_after", "reset_after"):
                await self.strike(web.StreamResponse(), strike.name)
            return web.json_response({"error": {"message": "told to fail", "code": 500}}, status=500)
        content: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choices = [{"index": i, **content, "finish_reason": finish} for i in range(self.body.get("n") or 1)]
        made = {**self.common(), "choices": choices, "usage": self.usage()}
        if self.body.get("return_token_ids"):
            choices[0].update(token_ids=tokens)
            (made if self.chat else choices[0])["prompt_token_ids"] = self.sequence.prompt
        if self.kept and finish == "length" and not self.server.faults.on("no_remote"):  # vLLM frees the others' KV
            made["kv_transfer_params"] = self.remote()
        return web.json_response(made)

    def remote(self) -> dict[str, Any]:
        """What vLLM's NixlConnector says of the KV it keeps."""
        where = {"remote_host": "127.0.0.1", "remote_port": 5600, "remote_engine_id": self.server.engine.outbox.name}
        what = {"remote_block_ids": [[1]], "remote_request_id": self.id, "tp_size": 1}
        return {"do_remote_prefill": True, "do_remote_decode": False, **where, **what}

    def common(self) -> dict[str, Any]:
        return {"id": self.id, "object": "chunk", "created": 1, "model": self.server.model}

    def usage(self) -> dict[str, Any]:
        prompt, output = len(self.sequence.prompt), len(self.sequence.output)
        made = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
        if ticket_of(self.body)[2] is None:
            return made
        return {**made, "prompt_tokens_details": {"cached_tokens": max(0, self.sequence.loaded)}}

    def chunk(self, content: dict[str, Any], first: bool = False) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": None}
        choice.update({"delta": content} if self.chat else content)
        made = {**self.common(), "choices": [choice]}
        if first and self.body.get("return_token_ids") and not self.server.faults.on("no_token_ids"):
            if self.chat:
                made["prompt_token_ids"] = self.sequence.prompt
            else:
                choice["prompt_token_ids"] = self.sequence.prompt
        return made

    def annotate(self, choice: dict[str, Any], token: int) -> None:
        """Token ids and log-probabilities."""
        if self.body.get("return_token_ids") and not self.server.faults.on("no_token_ids"):
            choice["token_ids"] = [token]
        if self.body.get("logprobs") is None or self.body.get("logprobs") is False:
            return
        name = decode([token])
        if self.chat:
            choice["logprobs"] = {"content": [{"token": name, "logprob": -0.5, "bytes": [], "top_logprobs": []}]}
        else:
            offset = len(decode(self.sequence.output[: self.sent - 1]))
            choice["logprobs"] = {"tokens": [name], "token_logprobs": [-0.5], "text_offset": [offset]}

    async def send(self, response: web.StreamResponse, chunk: dict[str, Any]) -> None:
        await self.raw(response, b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n")

    async def raw(self, response: web.StreamResponse, data: bytes) -> None:
        ends = {"crlf": b"\r\n", "cr": b"\r"}
        data = data.replace(b"\n", ends.get(self.server.faults.on("line_end"), b"\n"))
        if not self.server.faults.on("dribble"):
            await response.write(data)
            return
        for index in range(0, len(data), 7):
            await response.write(data[index : index + 7])
            await asyncio.sleep(0)


class Strike(Exception):
    """A fault's moment has come."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name
