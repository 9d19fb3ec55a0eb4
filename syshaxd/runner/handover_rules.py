"""Which requests may be handed over (docs/kv-handoff.md, "Which k"). Pure, over the raw OpenAI body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, NamedTuple

from syshaxd.model.abilities import Feature

Body = Mapping[str, Any]
Rule = tuple[str, Callable[[Body], bool]]

_GUIDED = (
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "guided_decoding_backend",
    "structured_outputs",
    "structural_tag",
)
_SAMPLER = ("bad_words", "logits_processors", "thinking_token_budget")


class Handover(NamedTuple):
    """`stays`: rule by which the request can't be handed over at all; `first_token_stays`: only at k = 0."""

    stays: str | None
    first_token_stays: str | None


def _more_than_one(name: str) -> Callable[[Body], bool]:
    return lambda body: isinstance(body.get(name), int) and body[name] > 1


def _set(*names: str) -> Callable[[Body], bool]:
    return lambda body: any(body.get(name) not in (None, False, [], {}) for name in names)


def _several_prompts(body: Body) -> bool:
    prompt = body.get("prompt")
    return isinstance(prompt, list) and any(not isinstance(part, int) for part in prompt)


def _multimodal(body: Body) -> bool:
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list) and any(_not_text(part) for part in content):
            return True
    return _set("prompt_embeds", "audio", "modalities", "mm_processor_kwargs")(body)


def _not_text(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") not in ("text", "refusal")


def _format(body: Body) -> bool:
    wanted = body.get("response_format")
    return isinstance(wanted, Mapping) and wanted.get("type") != "text"


def _tools(body: Body) -> bool:
    return bool(body.get("tools") or body.get("functions")) and body.get("tool_choice") != "none"


def _penalties(body: Body) -> bool:
    added = any(body.get(name) not in (None, 0, 0.0) for name in ("presence_penalty", "frequency_penalty"))
    return added or body.get("repetition_penalty") not in (None, 1, 1.0)


def _seeded(body: Body) -> bool:
    return body.get("seed") is not None and body.get("temperature") != 0


_NEVER: tuple[Rule, ...] = (
    ("n", _more_than_one("n")),
    ("best_of", _more_than_one("best_of")),
    ("beam_search", _set("use_beam_search")),
    ("echo", _set("echo")),
    ("prompt_logprobs", lambda body: body.get("prompt_logprobs") is not None),
    ("several_prompts", _several_prompts),
    ("multimodal", _multimodal),
    ("no_text", lambda body: body.get("detokenize") is False),
)
_ONLY_BEFORE_THE_FIRST: tuple[Rule, ...] = (
    ("response_format", _format),
    ("guided_decoding", _set(*_GUIDED)),
    ("tools", _tools),
    ("penalties", _penalties),
    ("seed", _seeded),
    ("sampler_state", _set(*_SAMPLER)),
)
REASONS = tuple(name for name, _ in _NEVER + _ONLY_BEFORE_THE_FIRST)


def handover_rules(body: Body) -> Handover:
    """The first rule of each kind that applies."""
    return Handover(_first(_NEVER, body), _first(_ONLY_BEFORE_THE_FIRST, body))


_FEATURES: tuple[tuple[Feature, Callable[[Body], bool]], ...] = (
    (Feature.STRUCTURED_OUTPUT, lambda body: _format(body) or _set(*_GUIDED)(body)),
    (Feature.FORCED_TOOLS, lambda body: _tools(body) and body.get("tool_choice") not in (None, "auto")),
    (Feature.PROMPT_LOGPROBS, lambda body: body.get("prompt_logprobs") is not None),
    (Feature.SEVERAL_PROMPTS, lambda body: _several_prompts(body) and len(body["prompt"]) > 1),
    (Feature.IMAGES, _multimodal),
)


def features_of(body: Body) -> frozenset[Feature]:
    """What a unit must be able to do for it, besides its endpoint."""
    return frozenset(feature for feature, asked in _FEATURES if asked(body))


def _first(rules: tuple[Rule, ...], body: Body) -> str | None:
    return next((name for name, applies in rules if applies(body)), None)
