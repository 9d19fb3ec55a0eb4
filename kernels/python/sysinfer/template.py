"""Chat templates: Jinja as Hugging Face tokenizers carry it, in a sandbox."""

from __future__ import annotations

import datetime
import json
from typing import Any, List, Mapping, Optional, Sequence

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sysinfer.errors import ModelFileError, RequestError

Message = Mapping[str, Any]  # a message of the raw OpenAI body


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(value: object, ensure_ascii: bool = False, indent: Optional[int] = None,
            separators: Optional[Any] = None, sort_keys: bool = False) -> str:  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Generation(Extension):
    """`{% generation %}`, a mark for training tools: here only its content counts."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class ChatTemplate:
    """A compiled template with the special tokens it may name."""

    def __init__(self, source: str, bos: str, eos: str) -> None:
        """Raises ModelFileError when `source` is not a template."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_raise, strftime_now=_now)
        self._tokens = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as err:
            raise ModelFileError(f"the chat template is not valid: {err}") from err

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, tools: Optional[List[Any]] = None,
        continue_final: bool = False, extra: Optional[Mapping[str, Any]] = None,
    ) -> str:  # fmt: skip
        """The prompt text. Raises RequestError when the template refuses the messages."""
        values = {**self._tokens, "messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:
            text = self._template.render({**(extra or {}), **values})
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, OverflowError) as err:
            raise RequestError(f"the model's chat template refuses these messages: {err}", param="messages") from err
        return _cut_after_final(text, messages) if continue_final else text


def _cut_after_final(text: str, messages: Sequence[Message]) -> str:
    """The text up to the end of the last message, so that the model goes on with it."""
    final = str(messages[-1].get("content") or "").strip()
    at = text.rfind(final)
    if not final or at < 0:
        raise RequestError(
            "continue_final_message needs a last message whose content the template shows", param="messages"
        )
    return text[: at + len(final)]
