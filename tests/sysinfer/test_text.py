"""Detokeniser, stop strings and chat templates."""

from __future__ import annotations

import codecs

import jinja2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from syshax_contract.stop_strings import StopMatcher
from sysinfer.detok import Detokenizer
from sysinfer.engine_errors import ModelFileError, RequestError
from sysinfer.template import ChatTemplate

TEXTS = st.text(alphabet="ab <|中文é👋🏽👨‍👩‍👧́", max_size=12)


class Bytes:
    """Tokens that are single bytes."""

    def token_bytes(self, token: int, skip_special: bool = False) -> bytes:
        return bytes([token])


@given(context=TEXTS, output=TEXTS)
@settings(max_examples=300, deadline=None)
def test_a_continuation_says_only_what_is_new_and_only_whole_characters(context: str, output: str) -> None:
    detokenizer = Detokenizer(Bytes(), list(context.encode()))
    deltas = [detokenizer.push(b) for b in output.encode()]
    assert "".join(deltas) == output
    assert all(d == "" or "�" not in d for d in deltas)


@given(text=TEXTS, data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_cut_inside_a_character_gives_it_to_the_continuation(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cut = data.draw(st.integers(0, len(raw)))
    first, second = Detokenizer(Bytes(), []), Detokenizer(Bytes(), list(raw[:cut]))
    said = "".join(first.push(b) for b in raw[:cut]) + "".join(second.push(b) for b in raw[cut:])
    assert said == text


@given(raw=st.binary(max_size=30), cut=st.integers(0, 30))
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_no_text_never_repeat_the_context(raw: bytes, cut: int) -> None:
    detokenizer = Detokenizer(Bytes(), list(raw[:cut]))
    said = "".join(detokenizer.push(b) for b in raw[cut:])
    whole = codecs.getincrementaldecoder("utf-8")("replace").decode(raw)
    assert whole.endswith(said) or said.startswith("�")


@given(text=st.text("ab<|", max_size=20), stops=st.lists(st.text("ab<|", min_size=1, max_size=4), max_size=3),
       sizes=st.lists(st.integers(1, 4), min_size=20, max_size=20), include=st.booleans())  # fmt: skip
@example("aab", ["ab"], [1] * 20, False)
@settings(max_examples=500, deadline=None)
def test_stop_strings_end_at_the_same_place_however_text_arrives(
    text: str, stops: list[str], sizes: list[int], include: bool
) -> None:
    """Reference: the earliest end of a stop string as text grows by the same pieces."""
    machine, said, rest, seen, stop = StopMatcher(stops, include), "", text, "", ""
    for size in sizes:
        piece, rest = rest[:size], rest[size:]
        seen += piece
        said += machine.feed(piece)
        stop = machine.matched or ""
        if stop:
            break
        assert not any(s in seen for s in stops)
    if not stop:
        assert said + machine.flush() == text
    else:
        at = min(seen.find(s) for s in stops if s in seen)
        assert said == seen[: at + len(stop) if include else at]


def test_templates_have_the_usual_helpers() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}"
        "{{ m['content'] | trim }}{{ tools | tojson }}{% endfor %}{{ strftime_now('%Y')|length }}"
        "{% generation %}{{ eos_token }}{% endgeneration %}{% if add_generation_prompt %}!{% endif %}"
    )
    template = ChatTemplate(source, "<s>", "</s>")
    messages = [{"role": "user", "content": " 你好 "}, {"role": "user", "content": "x"}]
    assert template.render(messages, tools=[{"a": "é"}]) == '<s>你好[{"a": "é"}]4</s>!'
    assert template.render(messages, continue_final=False, add_generation_prompt=False).endswith("</s>")


def test_a_template_may_refuse_and_may_not_reach_out() -> None:
    messages = [{"role": "user", "content": "x"}]
    for source in (
        "{{ raise_exception('no system role') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages[0]['content'] + 1 }}",
    ):
        with pytest.raises(RequestError, match="chat template refuses"):
            ChatTemplate(source, "", "").render(messages)
    with pytest.raises(ModelFileError, match="not valid"):
        ChatTemplate("{% if %}", "", "")


def test_continuing_the_last_message_cuts_after_it() -> None:
    template = ChatTemplate("{% for m in messages %}[{{ m['content'] }}]{% endfor %}", "", "")
    messages = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "The sea"}]
    assert template.render(messages, continue_final=True) == "[say][The sea"


def test_the_template_agrees_with_jinja_as_hugging_face_sets_it_up() -> None:
    source = "{% for m in messages %}\n  {% if true %}\n{{ m['role'] }}\n  {% endif %}\n{% endfor %}\n"
    messages = [{"role": "user", "content": ""}]
    expected = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source).render(messages=messages)
    assert ChatTemplate(source, "", "").render(messages) == expected
