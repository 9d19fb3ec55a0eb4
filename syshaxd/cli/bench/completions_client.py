"""A small streaming client of the OpenAI completions API: when each token came."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from syshaxd.errors import SysHaxError

SDK_RETRIES = 2
LINE_LIMIT = 1 << 20


class BenchError(SysHaxError):
    """The endpoint can't be used for a benchmark; says what was asked and what came."""


@dataclass(frozen=True)
class BenchRequest:
    """One request: its prompt (text or token ids) and how many tokens to make."""

    prompt: object
    prompt_tokens: int
    output_tokens: int


@dataclass
class Outcome:
    """What became of one request. Times in seconds; `gaps` between tokens after the first."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    ttft: float = 0.0
    gaps: list[float] = field(default_factory=list)
    latency: float = 0.0
    error: str = ""
    retries: int = 0
    route: str = ""

    @property
    def tpot(self) -> float:
        """Mean seconds per token after the first."""
        return (self.latency - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0


class CompletionsClient:
    """Calls against one base URL. Use as an async context manager."""

    def __init__(
        self, url: str, model: str, api_key: str = "", timeout: float = 3600.0, headers: Mapping[str, str] = {}
    ) -> None:
        self._url, self._model, self._timeout = url.rstrip("/"), model, timeout
        self._headers = {**headers, **({"Authorization": f"Bearer {api_key}"} if api_key else {})}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "CompletionsClient":
        limits = aiohttp.ClientTimeout(total=self._timeout, sock_connect=10.0)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=limits, headers=self._headers, read_bufsize=LINE_LIMIT
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open session."""
        if self._session is None:
            raise BenchError("the endpoint is not open")
        return self._session

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One JSON call; BenchError says what was asked and what came."""
        try:
            async with self.session.request(method, self._url + path, json=body) as answer:
                text = await answer.text()
                if answer.status != 200:
                    raise BenchError(f"{method} {self._url}{path}: expected 200, got {answer.status}: {text[:200]}")
                return json.loads(text)
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
            raise BenchError(f"{method} {self._url}{path}: {error or type(error).__name__}") from error

    async def first_model(self) -> str:
        """The model asked for, or the first one that the endpoint serves."""
        if not self._model:
            listed = (await self.call("GET", "/v1/models")).get("data") or []
            if not listed:
                raise BenchError(f"{self._url}/v1/models lists no model")
            self._model = str(listed[0]["id"])
        return self._model

    async def tokenize(self, text: str) -> Sequence[int]:
        """Token ids of a text, without special tokens."""
        body = {"model": await self.first_model(), "prompt": text, "add_special_tokens": False}
        return [int(token) for token in (await self.call("POST", "/tokenize", body))["tokens"]]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        body = {"model": await self.first_model(), "tokens": list(tokens)}
        return str((await self.call("POST", "/detokenize", body))["prompt"])

    async def generate(self, ask: BenchRequest, ignore_eos: bool = True) -> Outcome:
        """One streamed completion, with an SDK's two retries after 429."""
        outcome = Outcome(prompt_tokens=ask.prompt_tokens)
        begin = time.perf_counter()
        for attempt in range(SDK_RETRIES + 1):
            outcome.retries = attempt
            wait = await self._attempt(ask, ignore_eos, begin, outcome)
            if wait is None or attempt == SDK_RETRIES:
                break
            await asyncio.sleep(wait)
        outcome.latency = time.perf_counter() - begin
        return outcome

    async def _attempt(self, ask: BenchRequest, ignore_eos: bool, begin: float, outcome: Outcome) -> float | None:
        """None when it is over; seconds to wait before the next try after a 429."""
        body = {
            "model": await self.first_model(),
            "prompt": ask.prompt,
            "max_tokens": ask.output_tokens,
            "temperature": 0.0,
            "ignore_eos": ignore_eos,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        outcome.error = ""
        try:
            async with self.session.post(self._url + "/v1/completions", json=body) as answer:
                outcome.route = answer.headers.get("x-syshax-route", "")
                if answer.status != 200:
                    outcome.error = f"HTTP {answer.status}: {(await answer.text())[:200]}"
                    return _retry_after(answer.headers) if answer.status == 429 else None
                await _read(answer, begin, outcome)
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
            outcome.error = f"{type(error).__name__}: {error}"
        return None


def _retry_after(headers: Mapping[str, str]) -> float:
    try:
        if "retry-after-ms" in headers:
            return float(headers["retry-after-ms"]) / 1e3
        return float(headers.get("Retry-After", "1"))
    except ValueError:
        return 1.0


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[Mapping[str, Any]]:
    async for line in answer.content:
        text = line.strip()
        if text.startswith(b"data:") and text != b"data: [DONE]":
            yield json.loads(text[5:])


async def _read(answer: aiohttp.ClientResponse, begin: float, outcome: Outcome) -> None:
    last = 0.0
    async for event in _events(answer):
        now = time.perf_counter()
        if "error" in event:
            outcome.error = str(event["error"])[:200]
        if event.get("choices"):
            if not last:
                outcome.ttft = now - begin
            else:
                outcome.gaps.append(now - last)
            last = now
            outcome.output_tokens += 1
        usage = event.get("usage")
        if usage:
            outcome.output_tokens = int(usage["completion_tokens"])
            outcome.prompt_tokens = int(usage["prompt_tokens"])
