"""The two generating endpoints."""

from __future__ import annotations

import logging
import re
import uuid

from aiohttp import web

from syshax_contract.error_form import error_form
from sysinfer.engine_errors import RequestError
from sysinfer.output import ERROR, Output
from sysinfer.server.calls import Call, ClientGone
from sysinfer.server.frontend import Frontend
from sysinfer.server.replies import DONE, ChatReplies, CompletionReplies, Replies, dump, event
from sysinfer.server.requests import ChatRequest, CompletionRequest

log = logging.getLogger("sysinfer.server")

_ID = re.compile(r"[\x21-\x7e]{1,256}")


def failure(output: Output) -> RequestError:
    """What an output that ends with ERROR tells the client."""
    if output.error is None:
        return RequestError("the engine has failed; see its log", 500)
    return RequestError(str(output.error), output.error.status)


def request_id(request: web.Request) -> str:
    """X-Request-Id where it is usable, else a new one."""
    given = request.headers.get("X-Request-Id", "")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex


def alive(request: web.Request) -> bool:
    """Whether the client is still connected."""
    return request.transport is not None and not request.transport.is_closing()


class Generate:
    """Handlers of /v1/chat/completions and /v1/completions."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    async def chat(self, request: web.Request, asked: ChatRequest) -> web.StreamResponse:
        front = self._frontend
        front.check_model(asked.common.model)
        reply_id = f"chatcmpl-{request_id(request)}"
        context = await front.chat_context(asked)
        call = front.start(reply_id, [context], asked.common, lambda: alive(request))
        replies = ChatReplies(reply_id, front.model, asked.common, front.tokenizer, call.contexts)
        return await self._answer(request, call, replies)

    async def completion(self, request: web.Request, asked: CompletionRequest) -> web.StreamResponse:
        front = self._frontend
        front.check_model(asked.common.model)
        reply_id = f"cmpl-{request_id(request)}"
        contexts = await front.completion_contexts(asked)
        call = front.start(reply_id, contexts, asked.common, lambda: alive(request))
        echo = [front.tokenizer.decode(c, skip_special=True) for c in call.contexts] if asked.echo else []
        replies = CompletionReplies(reply_id, front.model, asked.common, front.tokenizer, call.contexts, echo=echo)
        return await self._answer(request, call, replies)

    async def _answer(self, request: web.Request, call: Call, replies: Replies) -> web.StreamResponse:
        try:
            if replies.common.stream:
                return await self._stream(request, call, replies)
            return await self._whole(call, replies)
        except (ClientGone, ConnectionResetError):
            log.info("client of %s left", call.request_id)
            return web.Response(status=499)
        finally:
            self._frontend.calls.close(call)

    async def _whole(self, call: Call, replies: Replies) -> web.Response:
        while parts := await call.parts():
            for part in parts:
                if part.output.finish == ERROR:
                    raise failure(part.output)
                replies.choices[part.index].add(part.output)
        return web.Response(body=dump(replies.whole()), content_type="application/json", charset="utf-8")

    async def _stream(self, request: web.Request, call: Call, replies: Replies) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )
        parts = await call.parts()
        if parts and parts[0].output.finish == ERROR:
            raise failure(parts[0].output)  # nothing has gone out: a refusal like any other
        await response.prepare(request)
        while parts:
            failed: bytes | None = None
            events = []
            for part in parts:
                if part.output.finish == ERROR:
                    error = failure(part.output)
                    failed = event(error_form(str(error), error.status))
                    break
                events.extend(replies.chunks(part.index, part.output))
            if failed is not None:
                await response.write(b"".join([*events, failed, DONE]))
                return response
            await response.write(b"".join(events))
            parts = await call.parts()
        await response.write(b"".join(replies.last()))
        await response.write_eof()
        return response
