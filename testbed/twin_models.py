"""One random model in both forms: a GGUF file for sysinfer and a Hugging Face folder (safetensors) for vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from testbed import small_gguf as gguf

HEAD_SIZE = 32  # the smallest of vLLM's CPU attention
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


class Twins(NamedTuple):
    """The same weights and vocabulary twice."""

    gguf: Path
    folder: Path


def write(folder: Path, arch: str, seed: int = 1, layers: int = 0) -> Twins:
    """A random float32 model of architecture `llama` or `qwen2`. `layers`: 0 as small_gguf has it."""
    file = gguf.write_model(folder / f"{arch}.gguf", arch, seed, HEAD_SIZE, layers)
    twin = folder / arch
    twin.mkdir()
    made = gguf.random_tensors(arch, seed, HEAD_SIZE, layers)
    tensors = {hf_name(name): hf_order(arch, name, array) for name, array in made}
    write_safetensors(twin / "model.safetensors", tensors)
    (twin / "config.json").write_text(json.dumps(config(arch, layers)))
    write_tokenizer(twin)
    return Twins(file, twin)


def hf_name(name: str) -> str:
    """Hugging Face's name of a tensor."""
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{NAMES[parts[2]]}.{parts[3]}"
    return {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}[parts[0]] + ".weight"


def hf_order(arch: str, name: str, array: gguf.Array) -> gguf.Array:
    """GGUF files of `llama` hold the rows of Q and K in pairs, Hugging Face in halves (rotate-half)."""
    if arch != "llama" or ".attn_q." not in name and ".attn_k." not in name:
        return array
    pairs = array.reshape(-1, HEAD_SIZE // 2, 2, *array.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(array.shape)


def write_safetensors(path: Path, tensors: dict[str, gguf.Array]) -> None:
    """Header length, JSON header, data."""
    header: dict[str, Any] = {}
    offset = 0
    for name, array in tensors.items():
        end = offset + array.nbytes
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in tensors.values()))


def config(arch: str, layers: int = 0) -> dict[str, Any]:
    """config.json"""
    return {
        "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[arch]],
        "model_type": arch, "vocab_size": len(gguf.vocabulary()[0]), "hidden_size": gguf.HEADS * HEAD_SIZE,
        "intermediate_size": 2 * gguf.HEADS * HEAD_SIZE, "num_hidden_layers": layers or gguf.LAYERS,
        "num_attention_heads": gguf.HEADS, "num_key_value_heads": gguf.KV_HEADS, "hidden_act": "silu",
        "max_position_embeddings": gguf.CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "float32",
        "use_sliding_window": False,
    }  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json and its configuration, with the GGUF file's vocabulary and chat template."""
    tokens, merges = gguf.vocabulary()
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in gguf.SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": gguf.SPECIAL[0], "eos_token": gguf.SPECIAL[1],
        "chat_template": gguf.TEMPLATE, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
