"""A model's tokenizer, built from GGUF metadata into a Hugging Face `tokenizers` object.

Two families: byte-level BPE (`tokenizer.ggml.model` gpt2; word splitting in pretokenizers.py) and SentencePiece BPE
(`llama`; byte fallback). Decoding is done here on bytes, since a stream has to know where characters end.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from sysinfer.config import Metadata
from sysinfer.engine_errors import ModelFileError
from sysinfer.pretokenizers import PRE_TOKENIZERS, Split

log = logging.getLogger("sysinfer.tokenizer")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"  # SentencePiece's visible space

END_TEXTS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "</s>",
             "<end_of_turn>", "<|return|>", "<｜end▁of▁sentence｜>", "<EOT>")  # fmt: skip
# Keys that change no token of a text.
TOLD_ONLY = (
    "unknown_token_id", "separator_token_id", "seperator_token_id", "padding_token_id", "mask_token_id",
    "cls_token_id", "fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id", "fim_pad_token_id",
    "fim_rep_token_id", "fim_sep_token_id", "prefix_token_id", "suffix_token_id", "middle_token_id",
    "token_type_count", "scores", "merges", "pre", "add_space_prefix",
)  # fmt: skip
NEUTRAL = {"remove_extra_whitespaces": False, "add_sep_token": False}
_RESERVED = re.compile(r"<reserved_\d+>")


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: character to byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {**{chr(b): b for b in plain}, **{chr(256 + i): b for i, b in enumerate(rest)}}


class ModelTokenizer:
    """Text to token ids and back.

    `bos`, `eos`: ids or None; `stops`: ids that end a generation; `add_bos`: a plain prompt starts with `bos`.
    """

    def __init__(self, meta: Metadata) -> None:
        """Raises ModelFileError for a tokenizer that is missing, malformed or of an unknown kind."""
        self.model = meta.need("tokenizer.ggml.model", str)
        self.tokens = meta.strings("tokenizer.ggml.tokens")
        self.kinds = _kinds(meta, self.tokens)
        self.bos, self.eos = self._id(meta, "bos"), self._id(meta, "eos")
        self.split = _split(meta) if self.model == "gpt2" else None
        adds = self.split.adds_bos if self.split is not None else self.model == "llama"
        self.add_bos = meta.flag("tokenizer.ggml.add_bos_token", adds) and self.bos is not None
        self.add_eos = meta.flag("tokenizer.ggml.add_eos_token", False) and self.eos is not None
        self.stops = self._stops(meta)
        self._alphabet = byte_alphabet() if self.model == "gpt2" else {}
        self._bytes: dict[int, bytes] = {}
        self._longest = max((len(t.encode("utf-8")) for t in self.tokens), default=1)
        self._tokenizer = _build(meta, self)
        meta.refuse_unread("tokenizer.ggml.", NEUTRAL, TOLD_ONLY)

    def _id(self, meta: Metadata, name: str) -> int | None:
        value = meta.find(f"tokenizer.ggml.{name}_token_id", int)
        if value is not None and not 0 <= value < len(self.tokens):
            raise ModelFileError(
                f"{meta.path}: tokenizer.ggml.{name}_token_id is {value}, of {len(self.tokens)} tokens"
            )
        return value

    def _stops(self, meta: Metadata) -> tuple[int, ...]:
        """The end ids the file names, and control tokens that models of these families end a turn with."""
        named = {self.eos, self._id(meta, "eot"), self._id(meta, "eom")} - {None}
        known = {i for i, kind in enumerate(self.kinds) if kind == CONTROL and self.tokens[i] in END_TEXTS}
        return tuple(sorted(i for i in named | known if i is not None))

    def __len__(self) -> int:
        return len(self.tokens)

    def fewest(self, text: str) -> int:
        """The least number of tokens `text` can have; to refuse far too long input without encoding it."""
        return len(text) // self._longest

    def encode(self, text: str, add_special: bool) -> list[int]:
        """Token ids of `text`; special tokens written out in it count as such. `add_special`: with BOS/EOS."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if add_special and self.add_bos and self.bos is not None:
            ids = [self.bos, *ids]
        if add_special and self.add_eos and self.eos is not None:
            ids = [*ids, self.eos]
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        text = b"".join(self.token_bytes(i, skip_special) for i in ids).decode("utf-8", "replace")
        spaced = self.model == "llama" and ids and self.kinds[ids[0]] not in (CONTROL, BYTE)
        return text[1:] if spaced and text.startswith(" ") else text

    def token_bytes(self, token: int, skip_special: bool = False) -> bytes:
        """The bytes `token` stands for; b"" for a special token to be skipped, and for ids without a token."""
        if not 0 <= token < len(self.tokens):
            return b""
        if skip_special and self.kinds[token] == CONTROL:
            return b""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._spell(token)
        return found

    def _spell(self, token: int) -> bytes:
        text, kind = self.tokens[token], self.kinds[token]
        if kind in (CONTROL, USER_DEFINED):
            return text.encode("utf-8")
        if self.model == "llama":
            return bytes([int(text[3:5], 16)]) if kind == BYTE else text.replace(SPACE, " ").encode("utf-8")
        if all(c in self._alphabet for c in text):
            return bytes(self._alphabet[c] for c in text)
        return text.encode("utf-8")

    def text_of(self, token: int) -> str:
        """A single token as logprobs show it."""
        return self.token_bytes(token).decode("utf-8", "replace")


def _kinds(meta: Metadata, tokens: Sequence[str]) -> list[int]:
    """Baichuan's reserved tokens, which its chat template spells, are tokens of their own whatever the file says."""
    count = len(tokens)
    if "tokenizer.ggml.token_type" not in meta.values:
        return [NORMAL] * count
    kinds = [int(k) for k in meta.numbers("tokenizer.ggml.token_type")]
    if len(kinds) != count:
        raise ModelFileError(f"{meta.path}: {len(kinds)} entries in tokenizer.ggml.token_type for {count} tokens")
    return [USER_DEFINED if k == NORMAL and _RESERVED.fullmatch(t) else k for k, t in zip(kinds, tokens)]


def _build(meta: Metadata, own: ModelTokenizer) -> Tokenizer:
    if own.model not in ("gpt2", "llama"):
        raise ModelFileError(f"{meta.path}: tokenizer.ggml.model is {own.model!r}, expected gpt2 or llama")
    try:
        tokenizer = _byte_level(meta, own, own.split) if own.split is not None else _sentencepiece(meta, own)
    except ModelFileError:
        raise
    except Exception as err:  # the library raises bare Exception for merges that don't fit the vocabulary
        raise ModelFileError(f"{meta.path}: the tokenizer's tokens and merges don't fit together: {err}") from err
    special = (CONTROL, UNKNOWN) if own.model == "llama" else (CONTROL,)
    tokenizer.add_tokens(
        [
            AddedToken(text, special=kind in special, normalized=False)
            for text, kind in zip(own.tokens, own.kinds)
            if kind in special or kind == USER_DEFINED
        ]
    )
    return tokenizer


def _split(meta: Metadata) -> Split:
    """How the file says that words are split; told where nobody knows whether it is the model's own way."""
    name = meta.find("tokenizer.ggml.pre", str)
    split = PRE_TOKENIZERS.get(name or "default")
    if split is None:
        raise ModelFileError(
            f"{meta.path}: tokenizer.ggml.pre is {name!r}, expected one of {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    if split.guess:
        log.warning(
            "%s: tokenizer.ggml.pre is %s: words are split as llama.cpp does it then; where that is not how the "
            "model learned them its answers get worse: convert the model again",
            meta.path, "missing" if name is None else name,
        )  # fmt: skip
    return split


def _byte_level(meta: Metadata, own: ModelTokenizer, split: Split) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(_vocab(own), _merges(meta), ignore_merges=split.whole_words))
    tokenizer.pre_tokenizer = split.pre_tokenizer()
    if split.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _vocab(own: ModelTokenizer) -> dict[str, int]:
    return {token: index for index, token in enumerate(own.tokens)}


def _merges(meta: Metadata) -> list[tuple[str, str]]:
    pairs = []
    for text in meta.strings("tokenizer.ggml.merges"):
        cut = text.find(" ", 1)
        if cut < 0:
            raise ModelFileError(f"{meta.path}: tokenizer.ggml.merges has {text!r}, expected two tokens and a space")
        pairs.append((text[:cut], text[cut + 1 :]))
    return pairs


def score_merges(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """BPE merges that act as SentencePiece's: the pair whose joint piece scores best first, longer left parts first."""
    found = []
    for piece, index in vocab.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                found.append((-scores[index], -len(left), -len(right), left, right))
    found.sort(key=lambda f: f[:3])
    return [(left, right) for _, _, _, left, right in found]


def _sentencepiece(meta: Metadata, own: ModelTokenizer) -> Tokenizer:
    scores = meta.numbers("tokenizer.ggml.scores")
    if len(scores) != len(own.tokens):
        raise ModelFileError(f"{meta.path}: {len(scores)} tokenizer.ggml.scores for {len(own.tokens)} tokens")
    vocab = _vocab(own)
    mergeable = {t: i for t, i in vocab.items() if own.kinds[i] in (NORMAL, USER_DEFINED)}
    unknown = next((t for t, k in zip(own.tokens, own.kinds) if k == UNKNOWN), None)
    model = models.BPE(vocab, score_merges(mergeable, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    if meta.flag("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    return tokenizer
