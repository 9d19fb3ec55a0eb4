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

from sysinfer.config import Metadata
from sysinfer.detok import Detokenizer
from sysinfer.errors import ModelFileError
from sysinfer.gguf import GgufFile
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


def byte_level(pre: str) -> Tokenizer:
    """A trained tokenizer as the model family's own tokenizer.json has it."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    if pre == "gpt-2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(qwen2_pattern() if pre == "qwen2" else llama3_pattern()), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    if pre == "qwen2":
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


@pytest.fixture(scope="module", params=["gpt-2", "llama-bpe", "qwen2"])
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
