"""Calls to a unit. Every call has a deadline; every failure is a UnitError."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import aiohttp

from syshaxd.errors import UnitError, UnitErrorKind
from syshaxd.model.request import Endpoint
from syshaxd.model.unit import Granted
from syshaxd.tasks import within

from .events import parse_usage
from .failures import FAILURES, from_exception, status_error
from .unit_stream import AnswerStream, Call, Deadlines, UnitStream

_LARGE = 256 * 1024
_JSON = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
MAX_ANSWER = 64 * 1024 * 1024  # bytes of a whole answer


@dataclass(frozen=True)
class Target:
    """Where a unit is: name for messages, base URL without /v1, secret ("" for none)."""

    name: str
    url: str
    api_key: str = ""


class ModelCard(NamedTuple):
    """One entry of /v1/models; `max_model_len` in tokens."""

    id: str
    max_model_len: int | None
    granted: Granted | None = None


class Tokenized(NamedTuple):
    """Answer of /tokenize."""

    tokens: tuple[int, ...]
    max_model_len: int | None


class Generated(NamedTuple):
    """A short generation: its text and how many tokens it took."""

    text: str
    completion_tokens: int


class Answer(NamedTuple):
    """A whole HTTP answer, for what is passed through as it is."""

    status: int
    content_type: str
    body: bytes


class UnitClient:
    """One per daemon. `start` before use, `close` at the end.

    Connections are not kept: a connection that a unit closes while idle looks like a dead unit, and a new one on
    loopback costs a tenth of a millisecond.
    """

    def __init__(self, connect_timeout: float = 5.0) -> None:
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Opens the session (needs the running loop)."""
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        )

    def reconfigure(self, connect_timeout: float) -> None:
        """Seconds that the next connections may take."""
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout)

    async def close(self) -> None:
        """Closes every connection."""
        if self._session is not None:
            await self._session.close()

    async def __aenter__(self) -> "UnitClient":
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def health(self, target: Target, timeout: float) -> bool:
        """True for 200, False for 503 (still loading)."""
        answer = await self.forward(target, "GET", "/health", None, timeout)
        if answer.status in (200, 503):
            return answer.status == 200
        raise status_error(target.name, answer.status, answer.body)

    async def models(self, target: Target, timeout: float) -> tuple[ModelCard, ...]:
        """The models that the unit serves."""
        message = await self._json(target, "GET", "/v1/models", None, timeout)
        with _Reading(target, "/v1/models"):
            return tuple(_card(card) for card in message["data"])

    async def metrics(self, target: Target, timeout: float) -> str:
        """Prometheus text."""
        answer = await self.forward(target, "GET", "/metrics", None, timeout)
        if answer.status != 200:
            raise status_error(target.name, answer.status, answer.body)
        with _Reading(target, "/metrics"):
            return answer.body.decode()

    async def tokenize(self, target: Target, body: Mapping[str, Any], timeout: float) -> Tokenized:
        """Token ids of a prompt or of rendered messages."""
        message = await self._json(target, "POST", "/tokenize", body, timeout)
        with _Reading(target, "/tokenize"):
            return Tokenized(tuple(message["tokens"]), message.get("max_model_len"))

    async def detokenize(self, target: Target, model: str, tokens: Sequence[int], timeout: float) -> str:
        """Text of token ids."""
        message = await self._json(target, "POST", "/detokenize", {"model": model, "tokens": list(tokens)}, timeout)
        with _Reading(target, "/detokenize"):
            return str(message["prompt"])

    async def generate_once(
        self, target: Target, model: str, max_tokens: int, timeout: float, more: Mapping[str, Any] = {}
    ) -> Generated:
        """A real generation, as canary and warm-up: `max_tokens` greedy tokens after "Hello", unless `more` differs."""
        body = {
            "model": model,
            "prompt": "Hello",
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            **more,
        }
        message = await self.complete(target, Endpoint.COMPLETIONS, body, "canary", timeout)
        with _Reading(target, "a generation"):
            usage = parse_usage(message["usage"])
            tokens = usage.completion_tokens if usage else 0
            text = str(message["choices"][0]["text"])
        if tokens < 1:
            raise UnitError(target.name, UnitErrorKind.GARBAGE, f"expected {max_tokens} tokens, got none")
        return Generated(text, tokens)

    async def complete(
        self, target: Target, endpoint: Endpoint, body: Mapping[str, Any], request_id: str, timeout: float
    ) -> Mapping[str, Any]:
        """A generation without streaming; the raw OpenAI response. `request_id` "canary" is not sent."""
        own_id = "" if request_id == "canary" else request_id
        return await self._json(target, "POST", endpoint.value, body, timeout, own_id)

    def stream(
        self, target: Target, endpoint: Endpoint, body: Mapping[str, Any], request_id: str, deadlines: Deadlines
    ) -> UnitStream:
        """A generation with streaming; use as a context (see UnitStream)."""
        headers = self._headers(target, request_id)
        return UnitStream(Call(target.name, target.url + endpoint.value, headers, json.dumps(body).encode()), deadlines)

    def call(
        self, target: Target, endpoint: Endpoint, body: Mapping[str, Any], request_id: str, timeout: float
    ) -> AnswerStream:
        """A generation without streaming, its body as it came; can be given up (see AnswerStream)."""
        return AnswerStream(target.name, lambda: self._raw(target, endpoint, body, request_id, timeout))

    async def _raw(
        self, target: Target, endpoint: Endpoint, body: Mapping[str, Any], request_id: str, timeout: float
    ) -> bytes:
        data = json.dumps(body).encode()
        answer = await self.forward(target, "POST", endpoint.value, data, timeout, request_id)
        if answer.status != 200:
            raise status_error(target.name, answer.status, answer.body)
        return answer.body

    async def abort(
        self, target: Target, request_ids: Sequence[str], timeout: float, discard: Sequence[str] = ()
    ) -> None:
        """Ends requests by id; their streams deliver what is made and finish with "abort". Then frees these tickets."""
        named = {"request_ids": list(request_ids), **({"discard": list(discard)} if discard else {})}
        body = json.dumps(named).encode()
        answer = await self.forward(target, "POST", "/inference/v1/abort_requests", body, timeout)
        if answer.status >= 300:
            raise status_error(target.name, answer.status, answer.body)

    async def forward(
        self, target: Target, method: str, path: str, body: bytes | None, timeout: float, request_id: str = ""
    ) -> Answer:
        """One call as it is; HTTP error statuses are answers, not errors."""
        try:
            return await within(timeout, path, self._call(target, method, path, body, request_id))
        except FAILURES as err:
            raise from_exception(err, target.name, path) from err

    async def _call(self, target: Target, method: str, path: str, body: bytes | None, request_id: str) -> Answer:
        headers = self._headers(target, request_id)
        async with self._opened().request(
            method,
            target.url + path,
            data=_payload(body),
            headers=headers,
            allow_redirects=False,
            timeout=self._timeout,
        ) as response:
            data = await _whole(response)
            return Answer(response.status, response.headers.get("Content-Type", ""), data)

    async def _json(
        self,
        target: Target,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        timeout: float,
        request_id: str = "",
    ) -> Mapping[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        answer = await self.forward(target, method, path, data, timeout, request_id)
        if answer.status != 200:
            raise status_error(target.name, answer.status, answer.body)
        with _Reading(target, path):
            message = json.loads(answer.body)
            if not isinstance(message, dict):
                raise TypeError(f"expected a JSON object, got {type(message).__name__}")
            return message

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("UnitClient.start() was not awaited")
        return self._session

    @staticmethod
    def _headers(target: Target, request_id: str) -> Mapping[str, str]:
        headers = dict(_JSON)
        if target.api_key:
            headers["Authorization"] = f"Bearer {target.api_key}"
        if request_id:
            headers["X-Request-Id"] = request_id
        return headers


class _Reading:
    """Maps a malformed answer to a UnitError that says of what."""

    def __init__(self, target: Target, what: str) -> None:
        self._target, self._what = target, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if isinstance(err, (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)):
            text = f"{self._what}: not the answer that the contract describes ({type(err).__name__}: {err})"
            raise UnitError(self._target.name, UnitErrorKind.GARBAGE, text) from err


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    """The body, as it came and no more of it than is sane."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MAX_ANSWER:
            raise aiohttp.ClientError(f"an answer of more than {MAX_ANSWER} bytes")
        parts.append(part)
    return b"".join(parts)


def _payload(body: bytes | None) -> None | bytes | io.BytesIO:
    """aiohttp writes large bytes in one go, which holds up the loop; a file it sends in pieces."""
    return io.BytesIO(body) if body is not None and len(body) > _LARGE else body


def _card(card: Mapping[str, Any]) -> ModelCard:
    return ModelCard(str(card["id"]), card.get("max_model_len"), _granted(card.get("binding")))


def _granted(said: Any) -> Granted | None:
    """What our own engine adds to its card; None for other servers."""
    values = said if isinstance(said, dict) else {}
    numbers = {name: values.get(name) for name in ("threads", "pinned", "nodes", "unbound")}
    whole = {name: number for name, number in numbers.items() if isinstance(number, int)}
    return Granted(**whole, isa=str(values.get("isa", ""))[:32]) if len(whole) == 4 else None
