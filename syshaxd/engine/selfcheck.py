"""Whether a split computes what the decode unit alone computes (PD self-check), tried out on the units themselves.

1. The prefill unit computes a prompt of its own and keeps the KV; the decode unit takes it over and generates greedily,
   with the log-probability of each token.
2. The decode unit alone is given prompt + those tokens (teacher forcing) and says how probable it finds each one.
Exact: each token is its first choice, which by induction means that its own greedy text is the same.
Mixed: first choices agree often enough and the median difference of the log-probabilities is small.
The second step asks for the log-probabilities of a prompt, which no engine answers from a prefix cache, so it can't be
answered from the KV that the first step handed over.
"""

from __future__ import annotations

import os
import re
import secrets
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from syshaxd.config.types import PdConfig
from syshaxd.errors import UnitError, UnitErrorKind
from syshaxd.model.request import Endpoint
from syshaxd.model.snapshot import PdStatus
from syshaxd.model.unit import UnitView
from syshaxd.unitclient import Target, UnitClient, remote_kv

TOKENS = 64
TIMEOUT = 120.0  # seconds of one call
LOADED = re.compile(r'vllm:prompt_tokens_by_source_total\{.*source="external_kv_transfer"')
LOST = re.compile(r'syshax_handoff_load_failures_total\{.*reason="(\w+)"')
LASTING = ("mismatch", "bad_request")  # why KV was not taken over that another try would find again
_SUBJECTS = (
    "rivers carry sand to the sea", "old maps show roads that nobody uses", "bread rises while the oven warms",
    "a clock keeps time for the whole street", "the harbour lights go out at dawn", "letters wait in a wooden box",
    "rain fills the cistern behind the house", "two painters share one ladder",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What was measured. `top1`: share of tokens that are the decode unit's own first choice; `difference`: median."""

    prefill: str
    decode: str
    top1: float | None  # None: not compared
    difference: float | None
    loaded: int  # prompt tokens whose KV the decode unit took over
    prompt: int  # tokens of the prompt
    outbox_fault: str = ""  # of the prefill unit
    lost: str = ""  # why the decode unit took nothing over, by its own count

    @property
    def passing(self) -> bool:
        """Whether it says nothing of the units, but of a moment: no KV came over, and the next try may find some."""
        return self.loaded <= 0 and self.lost not in LASTING


def judge(verdict: Verdict, config: PdConfig) -> PdStatus:
    """Whether this pair may split. Pure."""
    pair = f"{verdict.prefill}>{verdict.decode}"
    if verdict.loaded <= 0 and verdict.outbox_fault:
        return PdStatus(False, f"self-check {pair}: no KV can be handed over: {verdict.outbox_fault}")
    if verdict.loaded <= 0:
        why = f" ({verdict.lost}; its log says more)" if verdict.lost else ""
        return PdStatus(False, f"self-check {pair}: the decode unit recomputed the prompt; it took no KV over{why}")
    if verdict.top1 is None or verdict.difference is None:
        return PdStatus(True)
    if config.precision == "exact":
        if verdict.top1 < 1.0:
            return PdStatus(False, f"self-check {pair}: greedy text differs ({verdict.top1:.0%} of tokens agree)")
        return PdStatus(True)
    if verdict.top1 < config.top1_agreement:
        found = f"{verdict.top1:.3f} of first choices agree, {config.top1_agreement:g} needed (pd.top1_agreement)"
        return PdStatus(False, f"self-check {pair}: {found}")
    if verdict.difference > config.max_logprob_diff:
        found = f"median difference {verdict.difference:.3f}, at most {config.max_logprob_diff:g} (pd.max_logprob_diff)"
        return PdStatus(False, f"self-check {pair}: {found}")
    return PdStatus(True)


def outbox_fault(path: str) -> str:
    """Why a unit's outbox can hold nothing; "" where it can, or has none. Without room a unit leaves it empty."""
    if not path:
        return ""
    try:
        if os.stat(path).st_size:
            return ""
        room = os.statvfs(os.path.dirname(path))
    except OSError as err:
        return f"{path}: {err.strerror}"
    return f"no room for {path}: {room.f_bavail * room.f_frsize >> 20} MiB left there (pd.pool_size)"


def compare(split: Sequence[float], alone: Sequence[float], first: Sequence[float]) -> tuple[float, float]:
    """Top-1 agreement and median |difference|: log-probabilities of the same tokens by the split and by the decode
    unit alone, and of the latter's own first choices."""
    agreed = sum(own >= best - 1e-6 for own, best in zip(alone, first))
    return agreed / len(alone), statistics.median(abs(a - b) for a, b in zip(split, alone))


class SelfCheck:
    """Runs the two steps over a pair of READY units."""

    def __init__(self, client: UnitClient) -> None:
        self._client = client

    async def measure(
        self, prefill: UnitView, decode: UnitView, keys: Mapping[str, str], compared: bool = True
    ) -> Verdict:
        """Raises UnitError where a unit does not do its part. Not `compared`: only whether the KV goes over."""
        source = Target(prefill.name, prefill.url, keys.get(prefill.name, ""))
        target = Target(decode.name, decode.url, keys.get(decode.name, ""))
        prompt = await self._prompt(target, decode)
        before = await self._counts(target)
        kept = await self._kept(source, prefill, prompt)
        choice = await self._continue(target, decode.model, prompt, kept)
        grown = await self._counts(target) - before
        loaded = int(grown.pop("", 0))
        if not compared or loaded <= 0:
            fault, lost = outbox_fault(prefill.pool_file), next(iter(grown), "")
            return Verdict(prefill.name, decode.name, None, None, loaded, len(prompt), fault, lost)
        tokens, split = _generated(target, choice)
        alone, first = await self._teacher_forced(target, decode.model, prompt, tokens)
        top1, difference = compare(split, alone, first)
        return Verdict(prefill.name, decode.name, top1, difference, loaded, len(prompt))

    async def _prompt(self, target: Target, decode: UnitView) -> Sequence[int]:
        """Begins with a number that no earlier prompt had, so that no prefix cache knows it."""
        start = secrets.randbelow(len(_SUBJECTS))
        subjects = ". ".join(_SUBJECTS[start:] + _SUBJECTS[:start])
        text = f"{secrets.randbelow(10**9)}: {subjects}. {subjects}. And so"
        tokens = (await self._client.tokenize(target, {"model": decode.model, "prompt": text}, TIMEOUT)).tokens
        limit = (decode.max_model_len or len(tokens) + TOKENS + 1) - TOKENS - 1
        if limit < 1:
            text = f"max_model_len {decode.max_model_len} is too short for a self-check of {TOKENS} tokens"
            raise UnitError(decode.name, UnitErrorKind.STATUS, text)
        return tokens[:limit]

    async def _kept(self, source: Target, prefill: UnitView, prompt: Sequence[int]) -> Mapping[str, Any]:
        """Prefills; returns the kv_transfer_params with which another unit takes the KV."""
        ticket = secrets.token_hex(16)
        asked: Mapping[str, Any] = {"syshax": {"save": ticket, "save_on": "finish"}}
        if prefill.nixl:
            asked = {"do_remote_decode": True, "do_remote_prefill": False}
        body = _body(prefill.model, prompt, 1, asked)
        answer = await self._client.complete(source, Endpoint.COMPLETIONS, body, _request_id(), TIMEOUT)
        if prefill.nixl:
            return remote_kv(answer, prefill.name)
        return {"syshax": {"load": {"ticket": ticket, "pool": prefill.pool_file.rpartition("/")[2]}}}

    async def _continue(
        self, target: Target, model: str, prompt: Sequence[int], kept: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        body = {**_body(model, prompt, TOKENS, kept), "logprobs": 1, "return_token_ids": True}
        answer = await self._client.complete(target, Endpoint.COMPLETIONS, body, _request_id(), TIMEOUT)
        return _choice(target, answer)

    async def _teacher_forced(
        self, target: Target, model: str, prompt: Sequence[int], tokens: Sequence[int]
    ) -> tuple[Sequence[float], Sequence[float]]:
        body = {**_body(model, [*prompt, *tokens], 1, None), "echo": True, "logprobs": 1}
        answer = await self._client.complete(target, Endpoint.COMPLETIONS, body, _request_id(), TIMEOUT)
        choice = _choice(target, answer)
        end = len(prompt) + len(tokens)
        values = _values(choice, "token_logprobs")[len(prompt) : end]
        best = [max(top.values()) for top in _values(choice, "top_logprobs")[len(prompt) : end] if top]
        if len(values) != len(tokens) or len(best) != len(tokens) or None in values:
            raise _garbage(target, f"expected log-probabilities of {end} prompt tokens (echo)")
        return values, best

    async def _counts(self, target: Target) -> Counter[str]:
        """By the unit's own count so far: prompt tokens taken over under "", handoffs lost under their reasons."""
        found: Counter[str] = Counter()
        for line in (await self._client.metrics(target, TIMEOUT)).splitlines():
            lost = LOST.match(line)
            if lost is None and LOADED.match(line) is None:
                continue
            try:
                found[lost[1] if lost is not None else ""] += int(float(line.rpartition(" ")[2]))
            except (ValueError, OverflowError) as err:
                raise _garbage(target, f"expected numbers in its metrics, got {line[:120]}") from err
        return found


def _body(model: str, prompt: Sequence[int], max_tokens: int, transfer: Mapping[str, Any] | None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model, "prompt": list(prompt), "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True,
    }  # fmt: skip
    if transfer is not None:
        body["kv_transfer_params"] = dict(transfer)
    return body


def _choice(target: Target, answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _garbage(target, "expected one choice")
    return choices[0]


def _generated(target: Target, choice: Mapping[str, Any]) -> tuple[Sequence[int], Sequence[float]]:
    """Token ids of the split, and their log-probabilities."""
    tokens, values = choice.get("token_ids"), _values(choice, "token_logprobs")
    if not isinstance(tokens, list) or len(tokens) != TOKENS or len(values) != TOKENS:
        raise _garbage(target, f"expected {TOKENS} token_ids with log-probabilities")
    return tokens, values


def _values(choice: Mapping[str, Any], name: str) -> list[Any]:
    logprobs = choice.get("logprobs")
    values = logprobs.get(name) if isinstance(logprobs, dict) else None
    return values if isinstance(values, list) else []


def _garbage(target: Target, text: str) -> UnitError:
    return UnitError(target.name, UnitErrorKind.GARBAGE, f"self-check: {text}")


def _request_id() -> str:
    return f"selfcheck-{secrets.token_hex(8)}"
