"""The fields of generating requests that both sides understand: what each may hold. One table for daemon and units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

from .error_form import BadBody
from .request_body import kind_of

MAX_TOKENS = 1 << 31
MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_STOPS, MAX_STOP_LENGTH = 16, 4096
MAX_WORDS = 256
MAX_BIASES = 1024
MAX_IDS = 1024
TIERS = ("auto", "default", "flex", "priority")


@dataclass(frozen=True)
class Check:
    """Whether a value may stand there, and what is expected, in words."""

    allows: Callable[[Any], bool]
    expected: str


def whole(low: int, high: int) -> Check:
    """A whole number within bounds."""

    def allows(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return Check(allows, f"a whole number from {low} to {high}")


def number(low: float, high: float) -> Check:
    """A number within bounds."""

    def allows(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high

    return Check(allows, f"a number from {low:g} to {high:g}")


def strings(most: int, length: int) -> Check:
    """A string, or a list of them."""

    def allows(value: Any) -> bool:
        texts = value if isinstance(value, list) else [value]
        return len(texts) <= most and all(isinstance(text, str) and len(text) <= length for text in texts)

    return Check(allows, f"a string or a list of at most {most} strings, of at most {length} characters each")


def _is_bias(value: Any) -> bool:
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        return False
    keys = all(len(key) < 10 and key.isascii() and key.isdecimal() for key in value)
    return keys and all(_BIAS.allows(bias) for bias in value.values())


_BIAS = number(-100, 100)
_TOKEN = whole(0, MAX_TOKENS)
_FLAG = Check(lambda value: isinstance(value, bool), "true or false")
_OBJECT = Check(lambda value: isinstance(value, dict), "an object")
_TEXT = Check(lambda value: isinstance(value, str), "a string")
_LIST = Check(lambda value: isinstance(value, list), "a list")
_IDS = Check(
    lambda value: isinstance(value, list) and len(value) <= MAX_IDS and all(map(_TOKEN.allows, value)),
    f"a list of at most {MAX_IDS} token ids",
)
_LOGIT_BIAS = f"at most {MAX_BIASES} token ids with numbers from -100 to 100"
FIELDS: Mapping[str, Check] = {
    "model": _TEXT,
    "stream": _FLAG,
    "stream_options": _OBJECT,
    "max_tokens": whole(1, MAX_TOKENS),
    "max_completion_tokens": whole(1, MAX_TOKENS),
    "min_tokens": whole(0, MAX_TOKENS),
    "n": whole(1, MAX_CHOICES),
    "best_of": whole(1, MAX_CHOICES),
    "temperature": number(0.0, 2.0),
    "top_p": Check(lambda value: number(0.0, 1.0).allows(value) and value > 0, "a number above 0, up to 1"),
    "top_k": whole(-1, MAX_TOKENS),
    "min_p": number(0.0, 1.0),
    "presence_penalty": number(-2.0, 2.0),
    "frequency_penalty": number(-2.0, 2.0),
    "repetition_penalty": Check(
        lambda value: number(0, 100).allows(value) and value > 0, "a number above 0, up to 100"
    ),
    "seed": whole(-(1 << 63), (1 << 64) - 1),
    "priority": whole(-(1 << 31), 1 << 31),
    "service_tier": Check(lambda value: isinstance(value, str) and value in TIERS, "auto, default, flex or priority"),
    "stop": strings(MAX_STOPS, MAX_STOP_LENGTH),
    "bad_words": strings(MAX_WORDS, MAX_STOP_LENGTH),
    "stop_token_ids": _IDS,
    "logit_bias": Check(_is_bias, _LOGIT_BIAS),
    "top_logprobs": whole(0, MAX_LOGPROBS),
    "prompt_logprobs": whole(0, MAX_LOGPROBS),
    "echo": _FLAG,
    "ignore_eos": _FLAG,
    "include_stop_str_in_output": _FLAG,
    "skip_special_tokens": _FLAG,
    "return_token_ids": _FLAG,
    "add_special_tokens": _FLAG,
    "add_generation_prompt": _FLAG,
    "continue_final_message": _FLAG,
    "kv_transfer_params": _OBJECT,
    "tools": _LIST,
    "response_format": _OBJECT,
    "chat_template_kwargs": _OBJECT,
}  # fmt: skip
CHAT_FIELDS: Mapping[str, Check] = {**FIELDS, "logprobs": _FLAG}
COMPLETION_FIELDS: Mapping[str, Check] = {**FIELDS, "logprobs": whole(0, MAX_LOGPROBS)}
_OPTIONS: Mapping[str, Check] = {"include_usage": _FLAG, "continuous_usage_stats": _FLAG}


def check_fields(body: Mapping[str, Any], chat: bool) -> None:
    """Raises BadBody naming the first field that holds what it may not. A field that is null counts as absent."""
    _check(body, CHAT_FIELDS if chat else COMPLETION_FIELDS, "")
    _check(body.get("stream_options") or {}, _OPTIONS, "stream_options.")
    if body.get("stream_options") and not body.get("stream"):
        raise BadBody("stream_options is allowed only with stream: true", "stream_options")
    if chat and body.get("top_logprobs") and not body.get("logprobs"):
        raise BadBody("top_logprobs is allowed only with logprobs: true", "top_logprobs")
    if body.get("add_generation_prompt") and body.get("continue_final_message"):
        text = "continue_final_message goes on with the last message; it is allowed only without add_generation_prompt"
        raise BadBody(text, "continue_final_message")
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    if most and (body.get("min_tokens") or 0) > most:
        raise wrong("min_tokens", body["min_tokens"], f"at most max_tokens, which is {most}")


def _check(body: Mapping[str, Any], checks: Mapping[str, Check], prefix: str) -> None:
    for name, check in checks.items():
        value = body.get(name)
        if value is not None and not check.allows(value):
            raise wrong(prefix + name, value, check.expected)


def wrong(name: str, value: object, expected: str) -> BadBody:
    """The error of a field; tells its type and, where short, its value; never long text of a prompt."""
    shown = kind_of(value)
    if isinstance(value, (bool, int, float)) and abs(value) < 1e18:
        shown = str(value).lower() if isinstance(value, bool) else str(value)
    elif isinstance(value, str) and len(value) <= 20:
        shown = f"a string ({value!r})"
    return BadBody(f"{name} is {shown}, expected {expected}", name)
