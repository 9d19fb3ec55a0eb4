"""Small random models of both architectures: as Hugging Face objects and as GGUF files that say the same.

Files are written with the `gguf` package, and with the row order that llama.cpp's converter gives `llama` models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

VOCAB = 384
CONTEXT = 2048
SPECIAL = ("<|begin|>", "<|end|>", "<|user|>", "<|assistant|>")
BEGIN, END = 0, 1
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = (
    "the cat sat on the mat and looked at the moon over the sea",
    "a prefill and a decode are not the same thing, are they?",
    "中文的文字和标点。你好，世界！",
    "emoji 👋🏽 👨‍👩‍👧 🇪🇺 and naïve café",
)
KINDS = {"f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0, "q4_0": Kind.Q4_0, "q4_1": Kind.Q4_1}

Array = NDArray[Any]


@dataclass(frozen=True)
class Shape:
    arch: str  # llama or qwen2
    d_model: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    d_ff: int = 128
    tied: bool = False
    scaling: bool = False  # Llama 3's rope scaling
    seed: int = 1

    @property
    def head(self) -> int:
        return self.d_model // self.heads


def small_tokenizer() -> Tokenizer:
    """Byte-level BPE with a few merges; every byte has a token, so any text goes through."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.add_tokens(
        [AddedToken(f"<extra{i}>", normalized=False) for i in range(VOCAB - tokenizer.get_vocab_size())]
    )
    return tokenizer


def build(shape: Shape) -> Any:
    """The Hugging Face model, float32, weights large enough that greedy text does not settle on one token."""
    torch.manual_seed(shape.seed)
    common = dict(
        hidden_size=shape.d_model, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, intermediate_size=shape.d_ff, vocab_size=VOCAB, rms_norm_eps=1e-5,
        max_position_embeddings=CONTEXT, tie_word_embeddings=shape.tied, initializer_range=0.12,
        bos_token_id=BEGIN, eos_token_id=END, attn_implementation="eager",
    )  # fmt: skip
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    if shape.scaling:
        rope.update(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                    original_max_position_embeddings=256)  # fmt: skip
    kind = (LlamaForCausalLM, LlamaConfig) if shape.arch == "llama" else (Qwen2ForCausalLM, Qwen2Config)
    model = kind[0](kind[1](rope_parameters=rope, **common))
    for name, value in model.named_parameters():
        if "norm" in name:
            value.data.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            value.data.normal_(0, 0.3)
    return model.eval()


def interleave(rows: Array, heads: int) -> Array:
    """Rotate-half order to pairs side by side, as llama.cpp's convert script does for `llama`."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


NAMES = {
    "input_layernorm.weight": "attn_norm.weight", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "post_attention_layernorm.weight": "ffn_norm.weight",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """Hugging Face parameter name to GGUF's."""
    name = (
        name.replace("model.embed_tokens", "token_embd")
        .replace("model.norm", "output_norm")
        .replace("lm_head", "output")
    )
    if name.startswith("model.layers."):
        layer, rest = name[len("model.layers.") :].split(".", 1)
        for theirs, ours in NAMES.items():
            rest = rest.replace(theirs, ours)
        return f"blk.{layer}.{rest}"
    return name


def tensors(shape: Shape, model: Any) -> Iterator[tuple[str, Array]]:
    for name, value in model.state_dict().items():
        array = value.float().numpy()
        if name == "lm_head.weight" and shape.tied:
            continue
        if shape.arch == "llama" and ("q_proj" in name or "k_proj" in name):
            array = interleave(array, shape.heads if "q_proj" in name else shape.kv_heads)
        yield gguf_name(name), array


def requantised(model: Any, kind: Kind) -> None:
    """Rounds the model's matrices to what a file of that type holds."""
    for value in model.parameters():
        if value.ndim == 2:
            array = value.detach().numpy()
            value.data = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind).copy())


def write(path: Path, shape: Shape, model: Any, kind: str, tokenizer: Tokenizer) -> Path:
    """The model as a GGUF file."""
    out = gguf.GGUFWriter(path, shape.arch)
    out.add_context_length(CONTEXT)
    out.add_embedding_length(shape.d_model)
    out.add_block_count(shape.layers)
    out.add_feed_forward_length(shape.d_ff)
    out.add_head_count(shape.heads)
    out.add_head_count_kv(shape.kv_heads)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(10000.0)
    out.add_rope_dimension_count(shape.head)
    add_tokenizer(out, tokenizer)
    if shape.scaling:
        out.add_tensor("rope_freqs.weight", rope_divisors(model))
    for name, array in tensors(shape, model):
        stored = KINDS[kind] if array.ndim == 2 else Kind.F32
        out.add_tensor(name, gguf.quants.quantize(array, stored), raw_dtype=stored)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def rope_divisors(model: Any) -> Array:
    """What llama.cpp stores for Llama 3: unscaled over scaled inverse frequencies."""
    scaled = model.model.rotary_emb.inv_freq.numpy()
    plain = 1.0 / 10000.0 ** (np.arange(0, 2 * len(scaled), 2) / (2 * len(scaled)))
    return np.asarray(plain / scaled, np.float32)


def add_tokenizer(out: gguf.GGUFWriter, tokenizer: Tokenizer, pre: str = "gpt-2") -> None:
    import json

    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    control, user = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED
    kinds = [control if t in SPECIAL else user if t.startswith("<extra") else gguf.TokenType.NORMAL for t in tokens]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(tokens)
    out.add_token_types(kinds)
    out.add_token_merges([" ".join(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]])
    out.add_bos_token_id(BEGIN)
    out.add_eos_token_id(END)
    out.add_add_bos_token(False)
    out.add_chat_template(TEMPLATE)


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """What transformers generates greedily, end tokens not obeyed."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=END,
        )
    result: list[int] = made[0, len(prompt) :].tolist()
    return result


def is_greedy(model: Any, prompt: list[int], made: list[int]) -> bool:
    """Whether transformers would say `made` after `prompt`: one pass over all of it, each token the likeliest next."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + made])).logits[0]
    likeliest: list[int] = logits.argmax(1).tolist()
    return likeliest[len(prompt) - 1 : -1] == made
