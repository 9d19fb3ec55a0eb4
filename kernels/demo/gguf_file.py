"""Writes the model as GGUF v3 (ggml/docs/gguf.md) and reads it back, in llama.cpp's names and row order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from chat import HERE, TEMPLATE
from gguf import GGMLQuantizationType as Kind
from model import Llama, Shape
from tokenizers import Tokenizer
from tokens import BEGIN, END, PAD, SPECIAL
from torch import Tensor

BLOCK_NAMES = {
    "attn_norm.weight": "attn_norm.weight",
    "attn_q.weight": "attn.q.weight",
    "attn_k.weight": "attn.k.weight",
    "attn_v.weight": "attn.v.weight",
    "attn_output.weight": "attn.output.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "ffn_gate.weight": "gate.weight",
    "ffn_up.weight": "up.weight",
    "ffn_down.weight": "down.weight",
}
WHOLE_NAMES = {"token_embd.weight": "embed.weight", "output_norm.weight": "norm.weight"}


def names(layers: int) -> dict[str, str]:
    """GGUF tensor name -> name in model.py."""
    blocks = {f"blk.{n}.{g}": f"blocks.{n}.{t}" for n in range(layers) for g, t in BLOCK_NAMES.items()}
    return {**WHOLE_NAMES, **blocks}


def rotary_heads(name: str, shape: Shape) -> int:
    """Heads of a matrix whose rows GGUF reorders; 0 for the others."""
    return shape.heads if "attn_q" in name else shape.kv_heads if "attn_k" in name else 0


def interleave(rows: Tensor, heads: int) -> Tensor:
    """Row order (i, i + head/2) -> (2i, 2i + 1), as llama.cpp's convert script (LlamaModel.permute)."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def separate(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `interleave`."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def add_tensors(out: gguf.GGUFWriter, model: Llama) -> None:
    """Matrices as q8_0, norms as f32."""
    state = model.state_dict()
    for name, ours in names(model.shape.layers).items():
        value = state[ours].float()
        if heads := rotary_heads(name, model.shape):
            value = interleave(value, heads)
        kind = Kind.Q8_0 if value.dim() == 2 else Kind.F32
        out.add_tensor(name, gguf.quants.quantize(value.numpy(), kind), raw_dtype=kind)


def add_shape(out: gguf.GGUFWriter, shape: Shape) -> None:
    out.add_context_length(shape.context)
    out.add_embedding_length(shape.width)
    out.add_block_count(shape.layers)
    out.add_feed_forward_length(shape.hidden)
    out.add_head_count(shape.heads)
    out.add_head_count_kv(shape.kv_heads)
    out.add_layer_norm_rms_eps(shape.epsilon)
    out.add_rope_freq_base(shape.theta)
    out.add_rope_dimension_count(shape.head)
    out.add_vocab_size(shape.vocabulary)


def add_tokenizer(out: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    parts = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(parts["vocab"], key=parts["vocab"].__getitem__)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(tokens)
    out.add_token_types([gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in tokens])
    out.add_token_merges([" ".join(pair) for pair in parts["merges"]])
    out.add_bos_token_id(BEGIN)
    out.add_eos_token_id(END)
    out.add_pad_token_id(PAD)
    out.add_add_bos_token(True)
    out.add_chat_template(TEMPLATE)


def write(path: Path, model: Llama, tokenizer: Tokenizer) -> None:
    """Write the whole model; the licence asks that its text be on all copies, so the file carries it."""
    out = gguf.GGUFWriter(path, "llama")
    out.add_name("syshax-demo")
    out.add_description("Demo model of sysHAX: English words and their WordNet definitions")
    out.add_license("LicenseRef-WordNet-3.0")
    out.add_license_name("WordNet 3.0 license")
    out.add_string("general.license.text", (HERE / "LICENSE.wordnet").read_text())
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_shape(out, model.shape)
    add_tokenizer(out, tokenizer)
    add_tensors(out, model)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def shape_of(reader: gguf.GGUFReader) -> Shape:
    def value(key: str) -> Any:
        field = reader.get_field(f"llama.{key}")
        if field is None:
            raise KeyError(key)
        return field.contents()

    return Shape(
        value("vocab_size"), value("embedding_length"), value("block_count"), value("attention.head_count"),
        value("attention.head_count_kv"), value("feed_forward_length"), value("context_length"),
        value("attention.layer_norm_rms_epsilon"), value("rope.freq_base"),
    )  # fmt: skip


def read(path: Path) -> Llama:
    """The model as a reader of the file sees it: dequantised to float32. Raises KeyError on a missing key."""
    reader = gguf.GGUFReader(path)
    shape = shape_of(reader)
    ours, state = names(shape.layers), {}
    for tensor in reader.tensors:
        value = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        if heads := rotary_heads(tensor.name, shape):
            value = separate(value, heads)
        state[ours[tensor.name]] = value
    model = Llama(shape)
    model.load_state_dict(state)
    model.eval()
    return model
