"""How many tokens a prompt has, asked of a unit where it matters: where the request may be too long for one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from syshaxd.admission import admit
from syshaxd.config.types import Config
from syshaxd.errors import UnitError
from syshaxd.model.ports import Units
from syshaxd.model.unit import UnitView
from syshaxd.runner import ClientRequest
from syshaxd.unitclient import Target, UnitClient

OVERHEAD = 512  # tokens that a chat template may add; a body has no more tokens than bytes besides
COUNT_TIMEOUT = 5.0  # seconds
LIMITS = ("max_tokens", "max_completion_tokens")
_PROMPT_FIELDS = (
    "messages",
    "tools",
    "chat_template",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
)


class PromptCounter:
    """Asks the unit with the longest context, then the others."""

    def __init__(self, client: UnitClient, units: Units) -> None:
        self._client = client
        self._units = units

    async def counted(self, request: ClientRequest, size: int, config: Config) -> ClientRequest:
        """The request with its exact prompt length where a unit's context, of those that serve it, may be too short for
        it; with the estimate where that is not so, or no unit could count. `size`: bytes of the body."""
        info, body = request.info, request.body
        views = [view for view in self._units.views() if view.ready and config.served.serves(view, info.model)]
        contexts = [view.max_model_len for view in views if view.max_model_len]
        if not contexts or size + OVERHEAD + (info.max_tokens or 1) <= min(contexts):
            return request
        count = info.prompt_tokens if _given_tokens(body) else await self._count(views, body, info.prompt_tokens)
        if count is None:
            return request
        info = replace(info, prompt_tokens=count, counted=True)
        if config.served.clips(info.model) and len(contexts) == len(views):
            info = admit.clipped(info, max(contexts))
        if info.clipped is not None:
            body = {**body, **{name: info.max_tokens for name in LIMITS if body.get(name) is not None}}
        return replace(request, info=info, body=body)

    async def _count(self, views: Sequence[UnitView], body: Any, estimate: int) -> int | None:
        question = _question(body)
        if question is None:
            return None
        for view in sorted(views, key=lambda view: -(view.max_model_len or 0)):
            count = await self._ask(view, question, estimate)
            if count is not None:
                return count
        return None

    async def _ask(self, view: UnitView, question: dict[str, Any], estimate: int) -> int | None:
        target = Target(view.name, view.url, self._units.api_key(view.name))
        try:
            return len((await self._client.tokenize(target, {**question, "model": view.model}, COUNT_TIMEOUT)).tokens)
        except UnitError as err:
            # What it will not even count, because that is longer than its context many times over, needs no counting.
            longer = view.max_model_len is not None and estimate > view.max_model_len
            return estimate if err.client_fault and longer else None


def _given_tokens(body: Any) -> bool:
    prompt = body.get("prompt")
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(token, int) for token in prompt)


def _question(body: Any) -> dict[str, Any] | None:
    """For /tokenize; None for what it does not take: embeddings, several prompts."""
    if body.get("messages") is not None:
        return {name: body[name] for name in _PROMPT_FIELDS if body.get(name) is not None}
    prompt: Any = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    return {"prompt": prompt} if isinstance(prompt, str) else None
