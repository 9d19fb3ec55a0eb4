"""Chat templates: Jinja as Hugging Face tokenizers carry it, in a sandbox that bounds what a template may cost."""

from __future__ import annotations

import datetime
import functools
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from sysinfer.engine_errors import ModelFileError, RequestError

Message = Mapping[str, Any]  # a message of the raw OpenAI body

MAX_SOURCE = 1 << 20  # characters
MAX_STEPS = 500_000  # rounds of loops, calls of macros, elements made
MAX_SECONDS = 2.0  # of a CPU
MAX_TEXT = 64 << 20  # characters of a string, elements of a list
MAX_BITS = 1 << 12  # of a whole number
_WIDE = re.compile(r"\d{4}|\*")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(value: object, ensure_ascii: bool = False, indent: int | None = None,
            separators: Any | None = None, sort_keys: bool = False) -> str:  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Generation(Extension):
    """`{% generation %}`, a mark for training tools: here only its content counts."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


@jinja2.pass_context
def _as_it_is(context: object, value: object) -> object:
    """Makes Jinja compute constants while rendering, where steps are counted, and not while it compiles."""
    return value


class _Sandbox(ImmutableSandboxedEnvironment):
    """Counts what a rendering does, and refuses values that would fill the memory."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], optimized=False,
            finalize=_as_it_is,
        )  # fmt: skip
        self.filters.update(tojson=_tojson, format=_format)
        for name in ("batch", "slice", "center", "wordwrap"):  # as costly as their arguments say; no template has them
            del self.filters[name]
        self.filters = {name: self._priced(function) for name, function in self.filters.items()}
        del self.globals["lipsum"]
        self.globals.update(raise_exception=_raise, strftime_now=_now, range=self._range)
        self._used = threading.local()

    def begin(self) -> None:
        """Before each rendering."""
        self._used.steps = 0
        self._used.end = time.thread_time() + MAX_SECONDS

    def spend(self, steps: int = 1) -> bool:
        """Counts; always true, so that it can stand in a condition."""
        self._used.steps += steps
        if self._used.steps > MAX_STEPS:
            raise jinja2.TemplateError(f"it does more than {MAX_STEPS} steps")
        if self._used.steps % 64 == 0 and time.thread_time() > self._used.end:
            raise jinja2.TemplateError(f"it computes for more than {MAX_SECONDS} seconds")
        return True

    def _range(self, *bounds: int) -> range:
        made = range(*bounds)
        self.spend(len(made))
        return made

    def joined(self, *parts: object) -> Any:
        return self._small("".join([str(p) for p in parts]))

    def _priced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that costs as many steps as what it is given has elements."""

        @functools.wraps(function)  # with the marks for what Jinja is to pass
        def run(*given: Any, **named: Any) -> Any:
            for value in given:
                if isinstance(value, (str, list, tuple, dict, range)):
                    self.spend(len(value) >> 12 if isinstance(value, str) else len(value))
            return self._small(function(*given, **named))

        return run

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (_bits(left) * abs(float(right)) <= MAX_BITS):
            raise jinja2.TemplateError(f"a number of more than {MAX_BITS} bits")
        if operator == "*":
            self._check_product(left, right)
        if operator == "%":
            _check_format(left)
        return self._small(super().call_binop(context, operator, left, right))

    def _check_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            if _bits(left) + _bits(right) > MAX_BITS:
                raise jinja2.TemplateError(f"a number of more than {MAX_BITS} bits")
            return
        for value, times in ((left, right), (right, left)):
            if isinstance(times, int) and hasattr(value, "__len__"):
                self.spend(len(value) * max(times, 0))

    def _small(self, value: Any) -> Any:
        if isinstance(value, (str, list, tuple)):
            if len(value) > MAX_TEXT:
                raise jinja2.TemplateError(f"a text of more than {MAX_TEXT} characters")
            self.spend(len(value) >> 12)
        return value


def _check_format(form: object) -> None:
    if isinstance(form, str) and _WIDE.search(form):
        raise jinja2.TemplateError("a format with a width of more than three digits")


def _format(form: str, *values: Any, **named: Any) -> str:
    _check_format(form)
    return jinja2.filters.do_format(form, *values, **named)


def _bits(value: Any) -> float:
    return value.bit_length() if isinstance(value, int) else 64.0


class _Concats(NodeTransformer):
    """`a ~ b`, which Jinja lets nobody look at, becomes a call."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Call(nodes.EnvironmentAttribute("joined"), list(node.nodes), [], None, None, lineno=node.lineno)


def _counted(tree: nodes.Template) -> nodes.Template:
    """The template with a step at the head of each loop's and macro's body, and before each loop's condition."""
    _Concats().visit(tree)
    step = nodes.Call(nodes.EnvironmentAttribute("spend"), [], [], None, None)
    for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        body: list[nodes.Node] = getattr(node, "body")
        body.insert(0, nodes.ExprStmt(step).set_lineno(node.lineno))
        if isinstance(node, nodes.For) and node.test is not None:
            node.test = nodes.And(step, node.test)
    return tree


class ChatTemplate:
    """A compiled template with the special tokens it may name."""

    def __init__(self, source: str, bos: str, eos: str) -> None:
        """Raises ModelFileError when `source` is not a template."""
        if len(source) > MAX_SOURCE:
            raise ModelFileError(f"the chat template has {len(source)} characters, expected at most {MAX_SOURCE}")
        self._sandbox = _Sandbox()
        self._tokens = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = self._sandbox.from_string(_counted(self._sandbox.parse(source)))
        except Exception as err:  # whatever a compiler of foreign text may raise
            raise ModelFileError(f"the chat template is not valid: {err}") from err

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, tools: list[Any] | None = None,
        continue_final: bool = False, extra: Mapping[str, Any] | None = None,
    ) -> str:  # fmt: skip
        """The prompt text. Raises RequestError when the template refuses the messages or costs too much."""
        values = {**self._tokens, "messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        self._sandbox.begin()
        try:
            text = self._template.render({**(extra or {}), **values})
        except Exception as err:  # whatever foreign code may raise: 1/0, endless recursion, a wrong type
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
