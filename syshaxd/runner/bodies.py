"""Bodies of upstream requests, made from the client's. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional

from syshaxd.model.request import Endpoint

Body = Mapping[str, Any]
_LIMITS = ("max_completion_tokens", "max_tokens")
_OURS = ("kv_transfer_params", "request_id")  # a client has no business with tickets, and ids are the daemon's
COMPLETIONS_DEFAULT = 16  # OpenAI's and vLLM's max_tokens of /v1/completions


@dataclass(frozen=True)
class Ticket:
    """KV that a unit left (or will leave) in its outbox."""

    id: str
    pool: str
    generation: int = 0


def max_tokens_of(body: Body, endpoint: Endpoint) -> Optional[int]:
    """Output tokens that the client allows; None: as many as fit."""
    for name in _LIMITS:
        if body.get(name) is not None:
            return int(body[name])
    return COMPLETIONS_DEFAULT if endpoint is Endpoint.COMPLETIONS else None


def stops_of(body: Body) -> List[str]:
    """The stop strings, without empty ones."""
    stop = body.get("stop")
    return [text for text in ([stop] if isinstance(stop, str) else stop or []) if text]


def relayed(body: Body, model: str) -> Dict[str, Any]:
    """The client's body with the unit's own model name."""
    return {**{key: value for key, value in body.items() if key not in _OURS}, "model": model}


def owned(body: Body, model: str) -> Dict[str, Any]:
    """For a request whose text the daemon makes: streamed, with token ids, stop strings left to the daemon."""
    made = relayed(body, model)
    for key in ("stop", "include_stop_str_in_output"):
        made.pop(key, None)
    made.update(stream=True, return_token_ids=True, stream_options={"include_usage": True})
    return made


def limited(body: Dict[str, Any], endpoint: Endpoint, tokens: int) -> Dict[str, Any]:
    """At most `tokens` more output tokens; both names where the client used both."""
    names = [name for name in _LIMITS if body.get(name) is not None] or ["max_tokens"]
    return {**body, **{name: tokens for name in names}}


def continued(body: Dict[str, Any], endpoint: Endpoint, context: List[int], produced: int) -> Dict[str, Any]:
    """Goes on after `context` (prompt and the first `produced` output tokens)."""
    made = with_context(body, endpoint, context)
    allowed = max_tokens_of(body, endpoint)
    if allowed is not None:
        made = limited(made, endpoint, allowed - produced)
    if made.get("min_tokens"):
        made["min_tokens"] = max(0, made["min_tokens"] - produced)
    return made


def with_context(body: Dict[str, Any], endpoint: Endpoint, context: List[int]) -> Dict[str, Any]:
    """Exactly these token ids instead of what the unit would render."""
    made = dict(body)
    if endpoint is Endpoint.COMPLETIONS:
        made["prompt"] = context
        made.pop("truncate_prompt_tokens", None)
    return with_transfer(made, prompt_token_ids=context)


def with_save(body: Dict[str, Any], ticket: Ticket, save_on: str) -> Dict[str, Any]:
    """The unit keeps the KV under this ticket."""
    return _with_syshax(body, save=ticket.id, save_on=save_on)


def with_load(body: Dict[str, Any], ticket: Ticket) -> Dict[str, Any]:
    """The unit takes the KV from this ticket before it computes."""
    load = {"ticket": ticket.id, "pool": ticket.pool, "generation": ticket.generation}
    return _with_syshax(body, load=load)


def kept_for_nixl(body: Dict[str, Any]) -> Dict[str, Any]:
    """The unit keeps the KV for another one, and says in its answer where; it says so in no stream. It does so for
    requests that end by their length only: the one token, which nobody uses, must not end it otherwise."""
    made = {key: value for key, value in body.items() if key not in ("stream_options", "stop", "stop_token_ids")}
    made = {**made, "stream": False, "ignore_eos": True}
    return with_transfer(made, do_remote_decode=True, do_remote_prefill=False)


def with_transfer(body: Dict[str, Any], **values: Any) -> Dict[str, Any]:
    """Adds to kv_transfer_params."""
    return {**body, "kv_transfer_params": {**body.get("kv_transfer_params", {}), **values}}


def _with_syshax(body: Dict[str, Any], **values: Any) -> Dict[str, Any]:
    mine = body.get("kv_transfer_params", {}).get("syshax", {})
    return with_transfer(body, syshax={**mine, **values})
