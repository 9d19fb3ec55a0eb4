"""A small random model of each architecture: as Hugging Face object and as a GGUF file that says the same, with the
names, orders and keys of llama.cpp's converter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from tests.sysinfer.models import BEGIN, END, VOCAB, add_tokenizer, interleave, small_tokenizer

Array = NDArray[Any]

WIDTH, LAYERS, HEADS, KV_HEADS, FF, CONTEXT = 96, 3, 4, 2, 96, 2048
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_up_proj": "ffn_up", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm", "input_layernorm": "attn_norm",
}  # fmt: skip
LLAMA_NORMS = {"post_attention_layernorm": "ffn_norm"}
GEMMA_NORMS = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
               "post_feedforward_layernorm": "post_ffw_norm"}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """`hf`: names of transformers' model and configuration classes; `config`: what differs from a plain llama;
    `keys`: what the file tells, without its architecture; `norms`: names of the norms around feed-forward."""

    arch: str
    hf: tuple[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    pairs: bool = False
    norms: Mapping[str, str] = field(default_factory=lambda: LLAMA_NORMS)
    norm_offset: float = 0.0  # of the norm weights in the file
    tensors: Callable[[Any], Mapping[str, Array]] = lambda model: {}  # further ones
    prepare: Callable[[Any], None] = lambda model: None
    head_dim: int = 16
    layers: int = LAYERS
    heads: int = HEADS
    width: int = WIDTH

    def build(self) -> Any:
        """The Hugging Face model, float32, with weights large enough that greedy text does not settle."""
        torch.manual_seed(11)
        given = dict(
            hidden_size=self.width, num_hidden_layers=self.layers, num_attention_heads=self.heads,
            num_key_value_heads=KV_HEADS, intermediate_size=FF, vocab_size=VOCAB, rms_norm_eps=1e-5,
            max_position_embeddings=CONTEXT, initializer_range=0.12, bos_token_id=BEGIN, eos_token_id=END,
            pad_token_id=END, attn_implementation="eager", head_dim=self.head_dim, rope_parameters=PLAIN,
            tie_word_embeddings=False,
        )  # fmt: skip
        model, config = (getattr(transformers, name) for name in self.hf)
        built = model(config(**{**given, **self.config})).float().eval()
        for name, value in built.named_parameters():
            if "norm" in name:
                value.data.uniform_(0.5 - self.norm_offset, 1.5 - self.norm_offset)
            elif name.endswith("bias"):
                value.data.normal_(0, 0.3)
        self.prepare(built)
        return built

    def write(self, path: Path, model: Any, pre: str = "gpt-2") -> Path:
        """The model as a GGUF file of F32."""
        out = gguf.GGUFWriter(path, self.arch)
        for key, value in {**self.plain_keys(), **self.keys}.items():
            if value is not None:
                add(out, f"{self.arch}.{key}", value)
        add_tokenizer(out, small_tokenizer(), pre)
        for name, array in {**dict(self.rows(model)), **self.tensors(model)}.items():
            out.add_tensor(name, np.ascontiguousarray(array), raw_dtype=Kind.F32)
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()
        return path

    def plain_keys(self) -> Mapping[str, Any]:
        return {
            "context_length": CONTEXT, "embedding_length": self.width, "block_count": self.layers,
            "feed_forward_length": FF, "attention.head_count": self.heads, "attention.head_count_kv": KV_HEADS,
            "attention.layer_norm_rms_epsilon": 1e-5, "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim, "rope.freq_base": 10000.0, "vocab_size": VOCAB,
        }  # fmt: skip

    def rows(self, model: Any) -> Iterator[tuple[str, Array]]:
        """Tensors by GGUF's names."""
        for name, value in model.state_dict().items():
            array = value.float().numpy()
            if name == "lm_head.weight" and model.config.tie_word_embeddings:
                continue
            if self.pairs and (".q_proj." in name or ".k_proj." in name):
                array = interleave(array, self.heads if ".q_proj." in name else KV_HEADS)
            if "norm" in name:
                array = array + np.float32(self.norm_offset)
            for theirs, ours in {**self.norms, **NAMES}.items():
                name = name.replace(theirs, ours)
            yield name, array


def add(out: gguf.GGUFWriter, key: str, value: Any) -> None:
    """A key with GGUF's type for the value."""
    if isinstance(value, bool):
        out.add_bool(key, value)
    elif isinstance(value, int):
        out.add_uint32(key, value)
    elif isinstance(value, float):
        out.add_float32(key, value)
    else:
        out.add_string(key, value)


def llama3_divisors(model: Any) -> Mapping[str, Array]:
    scaled = model.model.rotary_emb.inv_freq.numpy()
    plain = 1.0 / 10000.0 ** (np.arange(0, 2 * len(scaled), 2) / (2 * len(scaled)))
    return {"rope_freqs.weight": np.asarray(plain / scaled, np.float32)}


def normalise_head(model: Any) -> None:
    """The oracle of a model whose head is normalised: that head, written out."""
    weight = model.lm_head.weight.data
    model.file_head = weight.clone() * torch.linspace(0.5, 2, len(weight))[:, None]
    model.lm_head.weight.data = torch.nn.functional.normalize(weight)


def file_head(model: Any) -> Mapping[str, Array]:
    return {"output.weight": model.file_head.numpy()}


def no_rope(model: Any) -> None:
    """Cosine 1 and sine 0 for every position; ALiBi comes with the mask, see `mask_of`."""
    normalise_head(model)
    model.model.rotary_emb.inv_freq[:] = 0
    model.alibi = True


def mask_of(model: Any, count: int) -> Any:
    """ALiBi of each head as the mask that transformers adds to the scores; None where the model has none."""
    if not getattr(model, "alibi", False):
        return None
    heads = model.config.num_attention_heads
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    distance = torch.arange(count)[None, :] - torch.arange(count)[:, None]
    bias = torch.tensor(slopes)[:, None, None] * distance
    return bias.masked_fill(distance > 0, torch.finfo(torch.float32).min)[None]


LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 256}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 256}
LONG: Mapping[str, Any] = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 128,
    "short_factor": [1.0 + 0.1 * i for i in range(6)], "long_factor": [1.5 + i for i in range(6)],
    "partial_rotary_factor": 0.75,
}  # fmt: skip


def longrope_factors(model: Any) -> Mapping[str, Array]:
    return {f"rope_factors_{kind}.weight": np.asarray(LONG[f"{kind}_factor"], np.float32) for kind in ("long", "short")}


LLAMA = ("LlamaForCausalLM", "LlamaConfig")
GEMMA_KEYS = {"attention.sliding_window": 24}

FAMILIES = {
    "llama": Family("llama", LLAMA, pairs=True),
    "llama3": Family(
        "llama", LLAMA, {"rope_parameters": LLAMA3}, pairs=True, tensors=llama3_divisors),
    "llama with biases": Family("llama", LLAMA, {"attention_bias": True, "mlp_bias": True}, pairs=True),
    "llama, linear": Family(
        "llama", LLAMA, {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, pairs=True),
    "llama, yarn": Family(
        "llama", LLAMA, {"rope_parameters": YARN},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 256},
        pairs=True),
    "mistral": Family("llama", ("MistralForCausalLM", "MistralConfig"), {"sliding_window": 24},
                      {"attention.sliding_window": 24}, pairs=True),
    "mistral nemo": Family("llama", ("MistralForCausalLM", "MistralConfig"), {"sliding_window": None}, pairs=True,
                           head_dim=32),
    "smollm2": Family("llama", LLAMA, {"tie_word_embeddings": True}, pairs=True),
    "qwen2": Family("qwen2", ("Qwen2ForCausalLM", "Qwen2Config")),
    "qwen3": Family("qwen3", ("Qwen3ForCausalLM", "Qwen3Config"), {"tie_word_embeddings": True}, head_dim=32),
    "baichuan 7B": Family("baichuan", LLAMA, pairs=True, prepare=normalise_head, tensors=file_head),
    "baichuan 13B": Family("baichuan", LLAMA, {"num_key_value_heads": 2}, {"attention.max_alibi_bias": 8.0},
                           pairs=True, prepare=no_rope, tensors=file_head, heads=6),
    "internlm2": Family("internlm2", LLAMA, pairs=True),
    "smollm3": Family("smollm3", ("SmolLM3ForCausalLM", "SmolLM3Config"), {"tie_word_embeddings": True}, pairs=True,
                      layers=5),
    "gemma2": Family(
        "gemma2", ("Gemma2ForCausalLM", "Gemma2Config"),
        {"sliding_window": 24, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0,
         "final_logit_softcapping": 3.0, "tie_word_embeddings": True},
        {**GEMMA_KEYS, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
        norms=GEMMA_NORMS, norm_offset=1.0, layers=4),
    "gemma3": Family(
        "gemma3", ("Gemma3ForCausalLM", "Gemma3TextConfig"),
        {"sliding_window": 24, "query_pre_attn_scalar": 16, "tie_word_embeddings": True,
         "rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
        {**GEMMA_KEYS, "rope.freq_base": 1000000.0, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
        norms=GEMMA_NORMS, norm_offset=1.0, layers=7),
    "phi3": Family("phi3", ("Phi3ForCausalLM", "Phi3Config"), {"sliding_window": 24},
                   {"attention.sliding_window": 24}),
    "phi4-mini": Family(
        "phi3", ("Phi3ForCausalLM", "Phi3Config"),
        {"tie_word_embeddings": True, "sliding_window": None, "original_max_position_embeddings": 128,
         "rope_parameters": {**LONG, "short_factor": LONG["long_factor"]}},  # one choice for a unit, see rope.py
        {"rope.dimension_count": 12, "rope.scaling.original_context_length": 128,
         "rope.scaling.attn_factor": math.sqrt(1 + math.log(CONTEXT / 128) / math.log(128))},
        tensors=longrope_factors, width=64),
    "glm4": Family(
        "glm4", ("Glm4ForCausalLM", "Glm4Config"),
        {"attention_bias": True, "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}},
        {"rope.dimension_count": 8}),
    "granite": Family(
        "granite", ("GraniteForCausalLM", "GraniteConfig"),
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.1, "logits_scaling": 4.0},
        {"embedding_scale": 3.0, "residual_scale": 0.4, "attention.scale": 0.1, "logit_scale": 4.0}, pairs=True),
}  # fmt: skip
