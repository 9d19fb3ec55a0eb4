"""Tokenizers built from GGUF metadata, against Hugging Face's and SentencePiece's own."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from sysinfer.chat_templates import template_source
from sysinfer.config import Metadata
from sysinfer.detok import Detokenizer
from sysinfer.engine_errors import ModelFileError
from sysinfer.gguf_tensors import GgufFile
from sysinfer.template import ChatTemplate
from sysinfer.tokenizer import ModelTokenizer
from tests.sysinfer.models import CORPUS

TEXTS = [
    "", " ", "\n", "Hello, world!", "  two  spaces   and\ttabs\r\n\r\nlines ", "I'll don't WE'VE it's",
    "1234567890 3.14 0x1F", "你好，世界！今天天气很好。", "日本語とひらがな、カタカナ", "한국어 문장입니다", "Привет, мир",
    "naïve café e\u0301 Å ﬁ", "👋🏽 👨‍👩‍👧 🇪🇺 ☃",
    "def f(x):\n    return x**2  # comment", "<|end|>text<|user|> more<|end|>",
    "a<|end|", "\u200b\u00a0\ufeff", "ع ربي", "ไทย", "\x00\x01\x7f", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "...!?;:--",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]  # fmt: skip
SPECIAL = ["<|end|>", "<|user|>"]
WORDS = list(CORPUS) + TEXTS


def qwen2_pattern() -> str:
    """As transformers states it."""
    from transformers.models.qwen2 import tokenization_qwen2

    return str(tokenization_qwen2.PRETOKENIZE_REGEX)


def llama3_pattern() -> str:
    import inspect

    return str(inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default)


def pattern(pre: str) -> str:
    """As transformers states it, for GLM-4 that of Llama 3."""
    stated = {"qwen2": qwen2_pattern(), "llama-bpe": llama3_pattern(), "chatglm-bpe": llama3_pattern()}
    return stated.get(pre) or str(GGUF_PRE_TOKENIZER_SPLITS[pre])


# What the published tokenizer.json of a model, or llama.cpp for `default`, does in turn.
STEPS = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
                r"\p{N}+", "[0-9][0-9][0-9]"],
    "deepseek-coder": ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
}  # fmt: skip


def byte_level(pre: str) -> Tokenizer:
    """A trained tokenizer as the model family's own tokenizer.json has it."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pre == "gpt-2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif pre in STEPS:
        steps = [pre_tokenizers.Split(Regex(step), "isolated") for step in STEPS[pre]]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, level])
    else:
        split = pre_tokenizers.Split(Regex(pattern(pre)), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    if pre in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        WORDS * 3, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
    return tokenizer


def as_gguf(path: Path, tokenizer: Tokenizer, pre: str) -> Path:
    out = gguf.GGUFWriter(path, "llama")
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(tokens)
    out.add_token_types([gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in tokens])
    out.add_token_merges([" ".join(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]])
    out.add_eos_token_id(vocab["<|end|>"])
    return finish(out, path)


def finish(out: Any, path: Path) -> Path:
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def opened(path: Path) -> ModelTokenizer:
    file = GgufFile(path)
    return ModelTokenizer(Metadata(file.path, file.metadata))


BYTE_LEVEL = ["gpt-2", "llama-bpe", "qwen2", "smollm", "tekken", "gpt-4o", "chatglm-bpe", "deepseek-r1-qwen", "dbrx",
              "default", "deepseek-coder"]  # fmt: skip


@pytest.fixture(scope="module", params=BYTE_LEVEL)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, ModelTokenizer]:
    theirs = byte_level(request.param)
    return theirs, opened(as_gguf(tmp_path_factory.mktemp("tok") / "t.gguf", theirs, request.param))


def test_byte_level_is_equal_both_ways(pair: tuple[Tokenizer, ModelTokenizer]) -> None:
    theirs, ours = pair
    for text in [*TEXTS, " ".join(TEXTS), *CORPUS]:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special=True) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
        assert ours.decode(ids, skip_special=True) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.fewest(text) <= len(ids)


@given(text=st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_byte_level_is_equal_on_any_text(pair: tuple[Tokenizer, ModelTokenizer], text: str) -> None:
    theirs, ours = pair
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, add_special=False) == ids
    detokenizer = Detokenizer(ours, ids[: len(ids) // 2])
    said = "".join(detokenizer.push(i) for i in ids[len(ids) // 2 :])
    assert theirs.decode(ids, skip_special_tokens=True).endswith(said)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> tuple[sentencepiece.SentencePieceProcessor, ModelTokenizer]:
    """A SentencePiece BPE model with byte fallback, as Llama 2's, and its GGUF."""
    stored = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20), model_writer=stored, vocab_size=420, model_type="bpe", byte_fallback=True,
        character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=True, split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=stored.getvalue())
    path = tmp_path_factory.mktemp("spm") / "s.gguf"
    out = gguf.GGUFWriter(path, "llama")
    count = theirs.get_piece_size()
    kinds = [
        gguf.TokenType.UNKNOWN if theirs.is_unknown(i) else gguf.TokenType.CONTROL if theirs.is_control(i)
        else gguf.TokenType.BYTE if theirs.is_byte(i) else gguf.TokenType.NORMAL for i in range(count)
    ]  # fmt: skip
    out.add_tokenizer_model("llama")
    out.add_token_list([theirs.id_to_piece(i) for i in range(count)])
    out.add_token_scores([theirs.get_score(i) for i in range(count)])
    out.add_token_types(kinds)
    out.add_bos_token_id(theirs.bos_id())
    out.add_eos_token_id(theirs.eos_id())
    return theirs, opened(finish(out, path))


def test_sentencepiece_is_equal_both_ways(
    sentences: tuple[sentencepiece.SentencePieceProcessor, ModelTokenizer],
) -> None:
    theirs, ours = sentences
    for text in [*CORPUS, *(t for t in TEXTS if t and "\0" not in t)]:
        ids = theirs.encode(text)
        assert ours.encode(text, add_special=False) == ids, text
        assert ours.encode(text, add_special=True) == [theirs.bos_id(), *ids]
        assert ours.decode(ids) == theirs.decode(ids), text
    byte = ours.tokens.index("<0xE4>")
    assert ours.token_bytes(byte) == b"\xe4"


def test_every_token_of_the_family_has_its_bytes(pair: tuple[Tokenizer, ModelTokenizer]) -> None:
    theirs, ours = pair
    for token in range(theirs.get_vocab_size()):
        assert ours.text_of(token) == theirs.decode([token], skip_special_tokens=False)
    assert ours.token_bytes(theirs.get_vocab_size() + 5) == b""


def test_broken_tokenizers_are_refused(tmp_path: Path) -> None:
    def refused(message: str, **values: Any) -> None:
        metadata: dict[str, Any] = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b"], "merges": [], **values}
        keys = {f"tokenizer.ggml.{k}": v for k, v in metadata.items() if v is not None}
        with pytest.raises(ModelFileError, match=message):
            ModelTokenizer(Metadata("file", keys))

    refused("tokenizer.ggml.model is 'rwkv', expected gpt2 or llama", model="rwkv")
    refused("tokenizer.ggml.pre is 'odd', expected one of", pre="odd")
    refused("tokens is None", tokens=None)
    refused("expected two tokens and a space", merges=["ab"])
    refused("don't fit together", merges=["a c"])
    refused("eos_token_id is 2, of 2 tokens", eos_token_id=2)
    refused("1 entries in tokenizer.ggml.token_type", token_type=[1])
    refused("scores is None", model="llama")


def plain_file(path: Path, pre: str | None, **more: Any) -> Path:
    """A byte-level vocabulary with BOS and further keys; `pre` None: the file does not say how words are split."""
    out = gguf.GGUFWriter(path, "llama")
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "zz"]
    out.add_tokenizer_model("gpt2")
    if pre is not None:
        out.add_tokenizer_pre(pre)
    out.add_token_list(tokens)
    out.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(tokens) - 2))
    out.add_token_merges(["z z"])
    out.add_bos_token_id(0)
    for key, value in more.items():
        (out.add_bool if isinstance(value, bool) else out.add_uint32)(f"tokenizer.ggml.{key}", value)
    return finish(out, path)


@pytest.mark.parametrize("pre, key, expected", [
    ("llama-bpe", None, True), ("tekken", None, True), ("qwen2", None, False), ("gpt-2", None, False),
    ("smollm", None, False), ("llama-bpe", False, False), ("qwen2", True, True), (None, None, False),
])  # fmt: skip
def test_a_prompt_begins_with_bos_where_the_model_was_trained_so(
    pre: str | None, key: bool | None, expected: bool, tmp_path: Path
) -> None:
    more = {} if key is None else {"add_bos_token": key}
    tokenizer = opened(plain_file(tmp_path / "t.gguf", pre, **more))
    assert (tokenizer.encode("a", add_special=True)[0] == 0) is expected
    assert tokenizer.encode("a", add_special=False)[0] != 0


@pytest.mark.parametrize("pre, told", [(None, "missing"), ("default", "default"), ("qwen2", "")])
def test_a_guess_of_how_words_are_split_is_told(
    pre: str | None, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(plain_file(tmp_path / "t.gguf", pre))
    assert [r.getMessage().count(f"tokenizer.ggml.pre is {told}") for r in caplog.records] == ([1] if told else [])


def test_a_way_to_split_or_a_key_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="tokenizer.ggml.pre is 'klingon', expected one of"):
        opened(plain_file(tmp_path / "t.gguf", "klingon"))
    for key, value in (("remove_extra_whitespaces", True), ("add_sep_token", True), ("suppress_runs", 3)):
        with pytest.raises(ModelFileError, match=f"tokenizer.ggml.{key} is {value}"):
            opened(plain_file(tmp_path / "t.gguf", "gpt-2", **{key: value}))
    assert opened(plain_file(tmp_path / "t.gguf", "gpt-2", remove_extra_whitespaces=False, padding_token_id=1))


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi "},
            {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Go"}]  # fmt: skip


@pytest.mark.parametrize("values, name, expected", [
    ({"general.architecture": "llama", "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<s>", "</s>"]},
     "Llama 2", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Yes? </s><s>[INST] Go [/INST]"),
    ({"general.architecture": "baichuan", "tokenizer.ggml.model": "llama",
      "tokenizer.ggml.tokens": ["<reserved_106>", "<reserved_107>"]},
     "Baichuan 2", "Be brief.<reserved_106> Hi <reserved_107>Yes?<reserved_106>Go<reserved_107>"),
    ({"general.architecture": "qwen2", "tokenizer.ggml.model": "gpt2",
      "tokenizer.ggml.tokens": ["<|im_start|>", "<|im_end|>"]},
     "ChatML", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
     "<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nGo<|im_end|>\n<|im_start|>assistant\n"),
    ({"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"]}, "", None),
])  # fmt: skip
def test_files_without_a_chat_template_get_that_of_their_family(
    values: dict[str, Any], name: str, expected: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """And it is told; a file's own goes first, and no family means no template."""
    source = template_source(Metadata("m.gguf", values))
    assert (source is None) == (expected is None)
    if source is not None:
        assert ChatTemplate(source, "<s>", "</s>").render(MESSAGES) == expected
        assert f"no chat template: that of {name} is used" in caplog.text
    assert template_source(Metadata("m.gguf", {**values, "tokenizer.chat_template": "own"})) == "own"
