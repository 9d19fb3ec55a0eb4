"""How byte-level BPE tokenizers split text into words before they merge: one entry a name of `tokenizer.ggml.pre`.

A split is a list of expressions, each applied to the pieces that those before it left. Sources: the models' own
tokenizer.json; for `default`, and for which name means which, llama.cpp's vocabulary (ggml-org).
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _ENDS
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+%s|" + r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*%s"
_SYMBOLS = r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _ENDS
# Letters as DeepSeek LLM lists them: the Latin, Greek, Cyrillic and Georgian ones and their like.
_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽ"
    "Ა-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼ"
    "ℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⲲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_HAN = "[一-龥ࠀ-一가-퟿]+"


@dataclass(frozen=True)
class Split:
    """`whole_words`: a word that is a token is taken without merging. `adds_bos`: unless the file says otherwise."""

    expressions: tuple[str, ...]
    whole_words: bool = False
    adds_bos: bool = False
    nfc: bool = False  # text is brought to Unicode's form C first
    guess: bool = False  # nobody says that it is the model's own

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        steps: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(expression), "isolated") for expression in self.expressions
        ]
        return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_LLAMA3 = Split((_ENGLISH + "|" + _WORDS % "{1,3}",), whole_words=True, adds_bos=True)
_PLAIN_GPT2, _DIGITS = Split((_GPT2,)), Split((r"\p{N}", _GPT2))
_QWEN2 = Split((_ENGLISH + "|" + _WORDS % "",), nfc=True)
_THREE_DIGITS = Split((_ENGLISH + "|" + _WORDS % "{1,3}",))
_GPT4O = Split((_CASED % (_ENGLISH + "?", _ENGLISH + "?") + _SYMBOLS % "{1,3}",))

_NAMES: dict[Split, str] = {
    _LLAMA3: "llama-bpe llama3 llama-v3 falcon3 pixtral lfm2",
    _PLAIN_GPT2: "gpt-2 gpt2 phi-2 mpt olmo jais exaone4",
    _DIGITS: "smollm starcoder refact command-r codeshell exaone minerva-7b",
    _QWEN2: "qwen2 deepseek-r1-qwen megrez",
    _THREE_DIGITS: "dbrx smaug-bpe glm4 chatglm-bpe",
    _GPT4O: "gpt-4o llama4",
    Split((_CASED % ("", "") + _SYMBOLS % "",), whole_words=True, adds_bos=True): "tekken",
    Split(("[\r\n]", rf"\s?[{_LETTERS}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _HAN, r"\p{N}")): "deepseek-llm",
    Split(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}")): "deepseek-coder",
    Split((
        r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|" + _ENDS,
    )): "deepseek-v3",
    Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"), guess=True): "default",
}  # fmt: skip
PRE_TOKENIZERS: dict[str, Split] = {name: split for split, names in _NAMES.items() for name in names.split()}
