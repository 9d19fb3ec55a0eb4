"""The architectures: what a file of each must and may hold, and how its layers differ from llama's. One entry a name
of GGUF's `general.architecture`; the names of tensors and keys are those of llama.cpp's converter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from syshax_kernels.types import Activation, Role


class TensorPart(NamedTuple):
    """Rows of a tensor that are one matrix or vector of the core. `rows`: name of a size, see `ModelConfig.size`."""

    role: Role
    rows: str
    heads: str = ""  # "heads" or "kv_heads": its rows are heads that the rotary embedding turns


class Form(NamedTuple):
    """A tensor of a layer. `cols`: name of a size; "" for a vector."""

    pieces: tuple[TensorPart, ...]
    cols: str = ""


_Q, _K, _V = TensorPart(Role.WQ, "q", "heads"), TensorPart(Role.WK, "kv", "kv_heads"), TensorPart(Role.WV, "kv")
_BQ, _BK, _BV = TensorPart(Role.BQ, "q", "heads"), TensorPart(Role.BK, "kv", "kv_heads"), TensorPart(Role.BV, "kv")
_GATE, _UP = TensorPart(Role.W_GATE, "ff"), TensorPart(Role.W_UP, "ff")

FORMS: Mapping[str, Form] = {
    "attn_norm.weight": Form((TensorPart(Role.ATTN_NORM, "d"),)),
    "attn_q.weight": Form((_Q,), "d"),
    "attn_k.weight": Form((_K,), "d"),
    "attn_v.weight": Form((_V,), "d"),
    "attn_qkv.weight": Form((_Q, _K, _V), "d"),
    "attn_q.bias": Form((_BQ,)),
    "attn_k.bias": Form((_BK,)),
    "attn_v.bias": Form((_BV,)),
    "attn_qkv.bias": Form((_BQ, _BK, _BV)),
    "attn_q_norm.weight": Form((TensorPart(Role.Q_NORM, "head"),)),
    "attn_k_norm.weight": Form((TensorPart(Role.K_NORM, "head"),)),
    "attn_output.weight": Form((TensorPart(Role.WO, "d"),), "q"),
    "attn_output.bias": Form((TensorPart(Role.BO, "d"),)),
    "post_attention_norm.weight": Form((TensorPart(Role.ATTN_POST_NORM, "d"),)),
    "ffn_norm.weight": Form((TensorPart(Role.FFN_NORM, "d"),)),
    "ffn_gate.weight": Form((_GATE,), "d"),
    "ffn_up.weight": Form((_UP,), "d"),
    "ffn_gate_up.weight": Form((_GATE, _UP), "d"),  # `ffn_up` where `Architecture.packed_mlp`
    "ffn_down.weight": Form((TensorPart(Role.W_DOWN, "d"),), "ff"),
    "ffn_gate.bias": Form((TensorPart(Role.B_GATE, "ff"),)),
    "ffn_up.bias": Form((TensorPart(Role.B_UP, "ff"),)),
    "ffn_down.bias": Form((TensorPart(Role.B_DOWN, "d"),)),
    "post_ffw_norm.weight": Form((TensorPart(Role.FFN_POST_NORM, "d"),)),
}  # fmt: skip

_NORMS = ("attn_norm.weight", "ffn_norm.weight")
_POST = ("post_attention_norm.weight", "post_ffw_norm.weight")
_QK_NORM = ("attn_q_norm.weight", "attn_k_norm.weight")
_QKV, _PACKED = ("attn_q.weight", "attn_k.weight", "attn_v.weight"), ("attn_qkv.weight",)
_QKV_BIAS = ("attn_q.bias", "attn_k.bias", "attn_v.bias")
_MLP, _PACKED_MLP = ("ffn_gate.weight", "ffn_up.weight"), ("ffn_gate_up.weight",)
_REST = ("attn_output.weight", "ffn_down.weight")
_LLAMA = _NORMS + _QKV + _MLP + _REST
_BIASES = (*_QKV_BIAS, "attn_output.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias")


@dataclass(frozen=True)
class Architecture:
    """How a model of this name is read and computed; the defaults are llama's.

    `needs` and `may`: tensors of a layer. `pairs`: the file's rotary rows stand pair by pair, and are put into
    rotate-half order. Patterns of n: in every n-th layer it is different.
    """

    needs: tuple[str, ...] = _LLAMA
    may: tuple[str, ...] = ()
    pairs: bool = False
    activation: Activation = Activation.SILU
    packed_mlp: bool = False  # gate and up stand in `ffn_up`
    full_every: int = 0  # n: the n-th layer has no window; 0: all have the file's window
    no_rope_every: int = 0
    local_theta: float = 0.0  # of the layers with a window
    embedding_by_width: bool = False  # times sqrt(d_model)
    wide_attention: tuple[int, ...] = ()  # layer counts of models that scale scores by d_model / n_heads
    logits_divided: bool = False  # by `logit_scale`, where it is there
    alibi_layers: tuple[int, ...] = ()  # layer counts of models with ALiBi in place of the rotary embedding
    head_normalised: bool = False  # rows of the output matrix are brought to length 1
    plain_head_vocab: int = 0  # but not in models of that vocabulary


ARCHITECTURES: dict[str, Architecture] = {
    # Llama 1 to 3.3, Mistral 7B, Nemo and Small, SmolLM2, and whatever has its shape
    "llama": Architecture(may=_BIASES, pairs=True),
    "qwen2": Architecture(needs=_LLAMA + _QKV_BIAS),  # Qwen2, Qwen2.5, R1 distills
    "qwen3": Architecture(needs=_LLAMA + _QK_NORM),
    "baichuan": Architecture(  # 7B turns its heads, 13B has ALiBi; version 1 has 64,000 tokens and a plain head
        pairs=True, alibi_layers=(40,), head_normalised=True, plain_head_vocab=64000
    ),
    "gemma2": Architecture(
        needs=_LLAMA + _POST, activation=Activation.GELU_TANH, full_every=2, embedding_by_width=True,
        wide_attention=(46,),
    ),
    "gemma3": Architecture(
        needs=_LLAMA + _POST + _QK_NORM, activation=Activation.GELU_TANH, full_every=6, local_theta=10000.0,
        embedding_by_width=True, wide_attention=(62,),
    ),
    "phi3": Architecture(needs=_NORMS + _PACKED + _PACKED_MLP + _REST, packed_mlp=True),  # Phi-3, Phi-4
    "glm4": Architecture(  # GLM-4-0414
        needs=_NORMS + _POST + _QKV + _PACKED_MLP + _REST, may=_QKV_BIAS, packed_mlp=True, pairs=True
    ),
    "chatglm": Architecture(  # GLM-4-9B
        needs=_NORMS + _PACKED + _PACKED_MLP + _REST, may=("attn_qkv.bias",), packed_mlp=True, pairs=True
    ),
    "internlm2": Architecture(may=_BIASES, pairs=True),
    "smollm3": Architecture(pairs=True, no_rope_every=4),
    "granite": Architecture(may=_BIASES, pairs=True, logits_divided=True),
}  # fmt: skip

# Keys that say nothing about what is computed.
TOLD_ONLY = ("vocab_size", "rope.scaling.finetuned", "tensor_data_layout")
# Keys that are read by nothing, with the values at which that is right.
NEUTRAL: Mapping[str, object] = {
    "attention.causal": True, "use_parallel_residual": False, "expert_count": 0, "expert_used_count": 0,
    "pooling_type": 0, "attention.clamp_kqv": 0.0,
}  # fmt: skip
