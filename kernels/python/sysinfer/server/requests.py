"""What a client asks for: the bodies of the two generating endpoints, checked."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Union

from syshax_contract.request_fields import MAX_CHOICES, check_fields, wrong
from syshax_contract.transfer import HandoffParams, TransferError, parse_transfer
from sysinfer.engine_errors import RequestError
from sysinfer.sampling import SamplingParams
from sysinfer.server.fields import Fields, check_tokens

_REFUSED = (
    "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "grammar", "suffix",
    "audio", "use_beam_search", "bad_words", "allowed_token_ids", "logits_processors", "prompt_logprobs",
    "prompt_embeds", "truncate_prompt_tokens", "return_tokens_as_token_ids", "chat_template", "functions",
    "function_call", "n_predict",
)  # fmt: skip

Prompt = Union[str, list[int]]


@dataclass(frozen=True)
class Limits:
    """What this server allows, and its defaults (`-t`, `-n`)."""

    vocab: int
    max_model_len: int
    end_ids: tuple[int, ...] = ()
    default_temperature: float = 1.0
    default_max_tokens: int | None = None


@dataclass(frozen=True)
class Common:
    """What both endpoints share. `max_tokens` None: as much as the context allows."""

    model: str | None
    params: SamplingParams
    max_tokens: int | None
    explicit_max: bool  # the client named it
    n: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    context: list[int] | None  # kv_transfer_params.prompt_token_ids
    handoff: HandoffParams


@dataclass(frozen=True)
class CompletionRequest:
    common: Common
    prompts: list[Prompt]
    echo: bool
    add_special: bool


@dataclass(frozen=True)
class ChatRequest:
    common: Common
    messages: list[Mapping[str, Any]]
    add_generation_prompt: bool
    continue_final: bool
    tools: list[Any] | None
    template_values: Mapping[str, Any] = field(default_factory=dict)


def choice_seed(seed: int, index: int) -> int:
    """The seed of a request's choice `index`; the request's own for the first."""
    return (seed + index * 0x9E3779B97F4A7C15) & ((1 << 64) - 1)


def parse_completion(body: Mapping[str, Any], limits: Limits) -> CompletionRequest:
    """Body of /v1/completions; BadBody names what is wrong."""
    check_fields(body, chat=False)
    fields = Fields(body)
    logprobs = fields.integer("logprobs", -1)
    echo = fields.flag("echo")
    common = _common(fields, limits, None if logprobs < 0 else logprobs, 16, "max_tokens")
    if echo and logprobs >= 0:
        common = replace(common, params=replace(common.params, prompt_logprobs=logprobs))
    if common.handoff.save is not None or common.handoff.load is not None or common.context is not None:
        _only_one(common, len(_prompts(body.get("prompt"), limits.vocab)) if common.context is None else 1)
    prompts: list[Prompt] = (
        [common.context] if common.context is not None else _prompts(body.get("prompt"), limits.vocab)
    )
    if len(prompts) * common.n > MAX_CHOICES:
        raise RequestError(f"{len(prompts)} prompts with n = {common.n}, at most {MAX_CHOICES} choices", param="n")
    return CompletionRequest(common, prompts, echo, fields.flag("add_special_tokens", True))


def _only_one(common: Common, n_prompts: int) -> None:
    if common.n * n_prompts != 1:
        raise RequestError("kv_transfer_params needs a single prompt and n = 1", param="kv_transfer_params")


def _prompts(value: Any, vocab: int) -> list[Prompt]:
    """A string, token ids, or a list of either."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise wrong("prompt", value, "a string, token ids, or a list of these")
    if isinstance(value[0], int):
        check_tokens("prompt", value, vocab)
        return [value]
    for item in value:
        if isinstance(item, list):
            check_tokens("prompt", item, vocab)
        elif not isinstance(item, str):
            raise wrong("prompt", item, "a string, token ids, or a list of these")
    return list(value)


def parse_chat(body: Mapping[str, Any], limits: Limits) -> ChatRequest:
    """Body of /v1/chat/completions; BadBody names what is wrong."""
    check_fields(body, chat=True)
    fields = Fields(body)
    top = fields.integer("top_logprobs", 0)
    logprobs = top if fields.flag("logprobs") else None
    common = _common(fields, limits, logprobs, None, "max_completion_tokens")
    if common.handoff.save is not None or common.handoff.load is not None or common.context is not None:
        _only_one(common, 1)
    if fields.flag("echo"):
        raise RequestError("echo is not there for chat", param="echo")
    messages = _messages(fields) if common.context is None else []
    _check_tools(fields)
    extra = fields.object("chat_template_kwargs")
    return ChatRequest(
        common, messages, fields.flag("add_generation_prompt", True), fields.flag("continue_final_message"),
        fields.array("tools"), extra.body if extra else {},
    )  # fmt: skip


def _messages(fields: Fields) -> list[Mapping[str, Any]]:
    messages = fields.array("messages")
    if not messages:
        raise wrong("messages", messages, "an array of messages")
    return [_message(m, f"messages[{i}]") for i, m in enumerate(messages)]


def _message(message: Any, name: str) -> dict[str, Any]:
    """A message with its content as one string; text parts are joined by line ends, as vLLM does it."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestError(f"{name} is not an object with a role", param="messages")
    content = message.get("content")
    if content is None and message["role"] != "assistant":
        raise wrong(f"{name}.content", content, "a string or an array of text parts")
    if isinstance(content, list):
        content = "\n".join(_part(p, f"{name}.content[{i}]") for i, p in enumerate(content))
    elif content is not None and not isinstance(content, str):
        raise wrong(f"{name}.content", content, "a string or an array of text parts")
    made = {**message, "content": content if content is not None else ""}
    calls = message.get("tool_calls")
    return {**made, "tool_calls": [_call(c, f"{name}.tool_calls[{i}]") for i, c in enumerate(calls)]} if calls else made


def _call(call: Any, name: str) -> dict[str, Any]:
    """A tool call of the history with its arguments as an object: templates of Qwen and Hermes print them as JSON."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise wrong(f"{name}.function", function, "an object")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        raise wrong(f"{name}.function.arguments", function.get("arguments"), "an object, or its JSON as a string")
    return {**call, "function": {**function, "arguments": arguments}}


def _part(part: Any, name: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, dict) else None
        raise RequestError(f"{name} has type {kind!r}; this model takes text only", param="messages")
    text: str = part["text"]
    return text


def _check_tools(fields: Fields) -> None:
    tools, choice = fields.array("tools") or [], fields.get("tool_choice")
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or not isinstance(tool.get("function"), dict):
            raise RequestError(f"tools[{index}] has no function object", param="tools")
    if choice not in (None, "none", "auto"):
        text = "tool_choice can be none or auto here: calls are not forced on the model"
        raise RequestError(text, param="tool_choice")
    if choice == "auto" and not tools:
        raise RequestError("tool_choice is allowed only with tools", param="tool_choice")


def _common(fields: Fields, limits: Limits, logprobs: int | None, default_max: int | None, max_name: str) -> Common:
    _refuse(fields)
    options = fields.object("stream_options") or Fields({})
    context, handoff = _transfer(fields, limits.vocab)
    given = fields.integer(max_name, fields.integer("max_tokens", 0))
    return Common(
        model=fields.text("model"), params=_sampling(fields, limits, logprobs),
        max_tokens=given or limits.default_max_tokens or default_max, explicit_max=given > 0,
        n=fields.integer("n", 1), stream=fields.flag("stream"),
        include_usage=options.flag("include_usage"), continuous_usage=options.flag("continuous_usage_stats"),
        return_token_ids=fields.flag("return_token_ids"), context=context, handoff=handoff,
    )  # fmt: skip


def _refuse(fields: Fields) -> None:
    """What would change the answer and is not there yet is an error, not ignored."""
    for name in _REFUSED:
        if fields.get(name):
            raise RequestError(f"{name} is not supported by this unit", param=name)
    if fields.get("detokenize") is False:
        raise RequestError("detokenize: false is not supported by this unit", param="detokenize")
    form = fields.object("response_format")
    if form is not None and form.text("type", "text") != "text":
        raise RequestError("response_format other than text is not supported by this unit", param="response_format")
    if fields.integer("best_of", 1) > fields.integer("n", 1):
        raise RequestError("best_of greater than n is not supported by this unit", param="best_of")


def _sampling(fields: Fields, limits: Limits, logprobs: int | None) -> SamplingParams:
    seed = fields.integer("seed", 0) if fields.get("seed") is not None else None
    return SamplingParams(
        temperature=fields.number("temperature", limits.default_temperature),
        top_p=fields.number("top_p", 1.0), top_k=max(fields.integer("top_k", 0), 0),
        min_p=fields.number("min_p", 0), seed=secrets.randbits(63) if seed is None else seed,
        presence_penalty=fields.number("presence_penalty", 0),
        frequency_penalty=fields.number("frequency_penalty", 0),
        repetition_penalty=fields.number("repetition_penalty", 1.0), logit_bias=_bias(fields, limits.vocab),
        logprobs=logprobs, min_tokens=fields.integer("min_tokens", 0),
        stop_ids=tuple(fields.tokens("stop_token_ids", limits.vocab) or ()),
        end_ids=() if fields.flag("ignore_eos") else limits.end_ids, stops=fields.strings("stop"),
        include_stop=fields.flag("include_stop_str_in_output"), skip_special=fields.flag("skip_special_tokens", True),
    )  # fmt: skip


def _bias(fields: Fields, vocab: int) -> dict[int, float]:
    bias = {int(key): float(value) for key, value in (fields.body.get("logit_bias") or {}).items()}
    foreign = next((token for token in bias if token >= vocab), None)
    if foreign is not None:
        raise RequestError(f"logit_bias names token {foreign}, expected 0 to {vocab - 1}", param="logit_bias")
    return bias


def _transfer(fields: Fields, vocab: int) -> tuple[list[int] | None, HandoffParams]:
    """kv_transfer_params: the exact context, and what to save and load (docs/kv-handoff.md)."""
    given = fields.object("kv_transfer_params")
    if given is None:
        return None, HandoffParams()
    try:
        return given.tokens("prompt_token_ids", vocab), parse_transfer(given.body, any_pool=True)
    except TransferError as err:
        raise RequestError(str(err), param=err.param) from err
