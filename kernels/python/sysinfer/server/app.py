"""The web application: routes, authorisation, errors in the OpenAI form."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Mapping
from typing import Any, Callable, TypeVar

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from syshax_contract.error_form import BadBody, error_form
from syshax_contract.request_body import Bodies, decoded, parse_object, too_large
from syshax_contract.request_fields import wrong
from syshax_contract.transfer import TransferError, ticket_id
from sysinfer.engine_errors import RequestError
from sysinfer.server.fields import Fields
from sysinfer.server.frontend import Frontend
from sysinfer.server.generate import Generate, request_id
from sysinfer.server.replies import dump
from sysinfer.server.requests import parse_chat, parse_completion

log = logging.getLogger("sysinfer.server")

MAX_BODY = 32 << 20
BODY_BUDGET = 4 * MAX_BODY  # of all that are being read
T = TypeVar("T")
_OPEN = ("/health",)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _reply(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=dump(value), status=status, content_type="application/json", charset="utf-8")


def refusal(message: str, status: int, param: str | None = None, code: str = "") -> web.Response:
    """An error in the OpenAI form."""
    response = _reply(error_form(message, status, param, code), status)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if status == 429:
        response.headers["Retry-After"] = "1"
    return response


class Server:
    """The endpoints. `frontend` and `scrape` are None while the model loads: then everything is answered by 503."""

    def __init__(self, keys: list[bytes]) -> None:
        self._keys = keys
        self._bodies = Bodies(BODY_BUDGET)
        self.frontend: Frontend | None = None
        self.scrape: Callable[[], bytes] | None = None

    def app(self) -> web.Application:
        app = web.Application(client_max_size=0, middlewares=[self._errors])
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completion)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/detokenize", self._detokenize)
        app.router.add_post("/inference/v1/abort_requests", self._abort)
        return app

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The HTTP edge: every failure becomes the OpenAI error form."""
        try:
            self._authorise(request)
            return await handler(request)
        except BadBody as err:
            return refusal(str(err), err.status, err.param, err.code)
        except web.HTTPException as err:
            return refusal(f"{request.path}: {err.reason}", err.status)
        except ConnectionError:  # in the middle of its body; raised, aiohttp would log it with a stack trace
            return web.Response(status=499)
        except Exception:  # the edge: a fault of ours is told, with its trace in the log
            log.exception("request to %s failed", request.path)
            return refusal("internal error; see the log of the unit", 500)

    def _authorise(self, request: web.Request) -> None:
        if not self._keys or request.path in _OPEN:
            return
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not any([hmac.compare_digest(given, b"Bearer " + key) for key in self._keys]):
            raise RequestError("a valid API key is needed: Authorization: Bearer KEY", 401)

    def _ready(self) -> Frontend:
        if self.frontend is None:
            raise RequestError("the model is loading", 503)
        return self.frontend

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.frontend is not None else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        self._ready()
        body = self.scrape() if self.scrape is not None else b""
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _models(self, request: web.Request) -> web.Response:
        front = self._ready()
        entry = {"id": front.model, "object": "model", "created": front.started, "owned_by": "sysinfer",
                 "root": front.model, "parent": None, "max_model_len": front.limits.max_model_len,
                 "binding": front.binding}  # fmt: skip
        return _reply({"object": "list", "data": [entry]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        front = self._ready()
        return await Generate(front).chat(
            request, await self._read(request, lambda body: parse_chat(body, front.limits))
        )

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        front = self._ready()
        asked = await self._read(request, lambda body: parse_completion(body, front.limits))
        return await Generate(front).completion(request, asked)

    async def _read(self, request: web.Request, parse: Callable[[Mapping[str, Any]], T]) -> T:
        """What `parse` makes of the body; a large one is parsed beside the event loop."""
        encoding = request.headers.get("Content-Encoding", "")
        if (request.content_length or 0) > MAX_BODY:
            too_large(MAX_BODY)
        with self._bodies.share() as share:
            try:
                data = await share.read(request.content.iter_any(), MAX_BODY)
            except (HttpProcessingError, web.RequestPayloadError, ClientPayloadError) as err:
                raise RequestError("the body is not transferred as its headers say") from err
            return await self._bodies.run(len(data), lambda: parse(parse_object(decoded(data, encoding, MAX_BODY))))

    async def _tokenize(self, request: web.Request) -> web.Response:
        """vLLM's /tokenize: a prompt, or messages."""
        front = self._ready()
        body = await self._read(request, lambda body: body)
        fields = Fields(body)
        front.check_model(fields.text("model"))
        prompt = fields.text("prompt")
        if prompt is None:
            tokens = await front.encode(front.render(parse_chat(body, front.limits)), fields.flag("add_special_tokens"))
        else:
            tokens = await front.encode(prompt, fields.flag("add_special_tokens", True))
        reply = {"count": len(tokens), "max_model_len": front.limits.max_model_len, "tokens": tokens}
        if fields.flag("return_token_strs"):
            reply["token_strs"] = [front.tokenizer.tokens[t] for t in tokens]
        return _reply(reply)

    async def _detokenize(self, request: web.Request) -> web.Response:
        front = self._ready()
        fields = Fields(await self._read(request, lambda body: body))
        front.check_model(fields.text("model"))
        tokens = fields.tokens("tokens", front.limits.vocab)
        if tokens is None:
            raise wrong("tokens", None, "an array of token ids")
        return _reply({"prompt": front.tokenizer.decode(tokens)})

    async def _abort(self, request: web.Request) -> web.Response:
        front = self._ready()
        fields = Fields(await self._read(request, lambda body: body))
        ids = fields.strings("request_ids")
        try:
            tickets = tuple(ticket_id(text, "discard") for text in fields.strings("discard"))
        except TransferError as err:
            raise RequestError(str(err), param=err.param) from err
        front.calls.abort(ids, tickets)
        log.info("abort of %d request(s) asked by %s", len(ids), request_id(request))
        return web.Response(status=200)
