"""Bodies of upstream requests, made from the client's. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from syshax_contract.transfer import load_values, save_values
from syshaxd.model.request import Endpoint

from .client_request import ClientRequest
from .produced import Record
from .steps import Step

Body = Mapping[str, Any]
_LIMITS = ("max_completion_tokens", "max_tokens")
_OURS = ("kv_transfer_params", "request_id")  # a client has no business with tickets, and ids are the daemon's
COMPLETIONS_DEFAULT = 16  # OpenAI's and vLLM's max_tokens of /v1/completions


def max_tokens_of(body: Body, endpoint: Endpoint) -> int | None:
    """Output tokens that the client allows; None: as many as fit."""
    for name in _LIMITS:
        if body.get(name) is not None:
            return int(body[name])
    return COMPLETIONS_DEFAULT if endpoint is Endpoint.COMPLETIONS else None


def relayed(body: Body, model: str) -> dict[str, Any]:
    """The client's body with the unit's own model name."""
    return {**{key: value for key, value in body.items() if key not in _OURS}, "model": model}


def owned(body: Body, model: str) -> dict[str, Any]:
    """For a request whose text the daemon makes: streamed, with token ids, stop strings left to the daemon."""
    made = relayed(body, model)
    for key in ("stop", "include_stop_str_in_output"):
        made.pop(key, None)
    made.update(stream=True, return_token_ids=True, stream_options={"include_usage": True})
    return made


def limited(body: dict[str, Any], endpoint: Endpoint, tokens: int) -> dict[str, Any]:
    """At most `tokens` more output tokens; both names where the client used both."""
    names = [name for name in _LIMITS if body.get(name) is not None] or ["max_tokens"]
    return {**body, **{name: tokens for name in names}}


def continued(
    body: dict[str, Any], endpoint: Endpoint, context: list[int], produced: int, longest: int | None = None
) -> dict[str, Any]:
    """Goes on after `context` (prompt and the first `produced` output tokens); `longest`: the unit's own context."""
    made = with_context(body, endpoint, context)
    allowed = max_tokens_of(body, endpoint)
    if allowed is not None:
        left = allowed - produced
        # A default is clipped to what fits, as a unit does itself; what a client asks for is not.
        if longest is not None and all(body.get(name) is None for name in _LIMITS):
            left = min(left, max(1, longest - len(context)))
        made = limited(made, endpoint, left)
    if made.get("min_tokens"):
        made["min_tokens"] = max(0, made["min_tokens"] - produced)
    return made


def with_context(body: dict[str, Any], endpoint: Endpoint, context: list[int]) -> dict[str, Any]:
    """Exactly these token ids instead of what the unit would render."""
    made = dict(body)
    if endpoint is Endpoint.COMPLETIONS:
        made["prompt"] = context
        made.pop("truncate_prompt_tokens", None)
    return with_transfer(made, prompt_token_ids=context)


def kept_for_nixl(body: dict[str, Any]) -> dict[str, Any]:
    """The unit keeps the KV for another one, and says in its answer where; it says so in no stream. It does so for
    requests that end by their length only: the one token, which nobody uses, must not end it otherwise."""
    made = {key: value for key, value in body.items() if key not in ("stream_options", "stop", "stop_token_ids")}
    made = {**made, "stream": False, "ignore_eos": True}
    return with_transfer(made, do_remote_decode=True, do_remote_prefill=False)


def with_transfer(body: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Adds to kv_transfer_params."""
    return {**body, "kv_transfer_params": {**body.get("kv_transfer_params", {}), **values}}


def _with_syshax(body: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    mine = body.get("kv_transfer_params", {}).get("syshax", {})
    return with_transfer(body, syshax={**mine, **values})


def body_of(step: Step, request: ClientRequest, record: Record) -> dict[str, Any]:
    """The upstream body of a step, from what the request has produced so far."""
    endpoint = request.info.endpoint
    model = step.unit.model or request.info.model
    if step.prefill_only:
        made = _prefill(request, endpoint, model)
        if step.unit.nixl:
            made = kept_for_nixl(made)
    elif step.owned:
        made = owned(request.body, model)
        if record.prompt_ids is not None:
            made = continued(made, endpoint, record.context(), record.output_tokens, step.unit.max_model_len)
    else:
        made = relayed(request.body, model)
        if record.prompt_ids is not None:
            made = with_context(made, endpoint, record.context())
    if step.save is not None:
        # A first token that ends the request (k = 1) leaves nothing to hand over.
        save_on = "abort" if not step.prefill_only else "finish" if step.k == 0 else "length"
        made = _with_syshax(made, save_values(step.save.id, save_on))
    if step.remote is not None:
        made = with_transfer(made, **step.remote)
    if step.load is not None:
        made = _with_syshax(made, load_values(step.load.id, step.load.pool, step.load.generation))
    return made


def _prefill(request: ClientRequest, endpoint: Endpoint, model: str) -> dict[str, Any]:
    made = limited(owned(request.body, model), endpoint, 1)
    # A minimum above the maximum would be refused; any keeps the first token from being one that ends the answer.
    if made.get("min_tokens"):
        made["min_tokens"] = 1
    for key in ("logprobs", "top_logprobs") if request.info.first_token_stays else ():
        made.pop(key, None)
    return made


def response_ids(endpoint: Endpoint, leg_id: str) -> tuple[str, ...]:
    """Names under which a unit knows the request (docs/kv-handoff.md section 1)."""
    if endpoint is Endpoint.CHAT:
        return (f"chatcmpl-{leg_id}",)
    return (f"cmpl-{leg_id}-0", f"cmpl-{leg_id}")
