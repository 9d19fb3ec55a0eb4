"""The chat template of a model: the file's own, or a built-in one for files of models that are known to have none."""

from __future__ import annotations

import logging

from sysinfer.config import Metadata

log = logging.getLogger("sysinfer.template")

# As Meta's reference code puts a dialogue: the system text within the first question, each answer closed.
LLAMA2 = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set first = loop.index0 == (1 if system else 0) %}"
    "{{ bos_token + '[INST] ' + ('<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if system and first else '')"
    " + m['content'] | trim + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}"
    "{% elif not loop.first %}{{ raise_exception('a system message can only come first') }}{% endif %}{% endfor %}"
)
# As Baichuan 2's generation code does it: a reserved token before each question and each answer.
BAICHUAN2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<reserved_106>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '<reserved_107>' + m['content'] }}"
    "{% elif loop.first %}{{ m['content'] }}"
    "{% else %}{{ raise_exception('a system message can only come first') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<reserved_107>' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n'"
    " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


def template_source(meta: Metadata) -> str | None:
    """The file's template, or the built-in one of the family that the file's tokens show, which is told; None where
    neither is there."""
    own = meta.find("tokenizer.chat_template", str)
    if own is not None:
        return own
    name, source = _family(meta)
    if source is not None:
        log.warning("the model file has no chat template: that of %s is used; --chat-template FILE gives another", name)
    return source


def _family(meta: Metadata) -> "tuple[str, str | None]":
    tokens = set(meta.strings("tokenizer.ggml.tokens"))
    arch, model = meta.find("general.architecture", str), meta.find("tokenizer.ggml.model", str)
    if arch == "baichuan" and {"<reserved_106>", "<reserved_107>"} <= tokens:
        return "Baichuan 2", BAICHUAN2
    if {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"} <= tokens:
        return "Llama 3", LLAMA3
    if {"<|im_start|>", "<|im_end|>"} <= tokens:
        return "ChatML", CHATML
    if arch == "llama" and model == "llama":
        return "Llama 2", LLAMA2
    return "", None
