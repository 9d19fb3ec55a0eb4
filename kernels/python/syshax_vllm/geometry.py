"""What the KV of this unit looks like, and whose KV fits it (docs/kv-handoff.md section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from syshax_kernels.pool_types import BF16, F16, F32, Geometry, model_id
from syshax_vllm import compat

WIRE = {"torch.float32": F32, "torch.float16": F16, "torch.bfloat16": BF16}
ARCHITECTURES = ("llama", "qwen2")


def vocabulary(ids: Mapping[str, int]) -> list[str]:
    """Tokens in id order; unused ids are empty."""
    tokens = [""] * (max(ids.values(), default=-1) + 1)
    for token, number in ids.items():
        tokens[number] = token
    return tokens


def digest_of(config: Any, tokens: list[str]) -> bytes:
    """model_id of a Hugging Face text config."""
    theta, scaling = compat.rope_of(config)
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return model_id(
        config.model_type, config.num_hidden_layers, heads, config.num_key_value_heads, head_size,
        config.hidden_size, theta, scaling, tokens,
    )  # fmt: skip


def geometry_of(vllm_config: Any) -> Geometry:
    """Geometry of the unit. Reads its tokenizer.json: the tokenizer classes of transformers add tokens of their own."""
    from tokenizers import Tokenizer
    from transformers.utils import cached_file

    model = vllm_config.model_config
    text = model.hf_text_config
    file = cached_file(model.tokenizer, "tokenizer.json", revision=model.tokenizer_revision)
    tokenizer = Tokenizer.from_file(str(file))
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    wire = WIRE[str(model.dtype)]
    return Geometry(
        text.num_hidden_layers, text.num_key_value_heads, head_size, wire,
        digest_of(text, vocabulary(tokenizer.get_vocab(with_added_tokens=True))), vllm_config.cache_config.block_size,
        vllm_config.parallel_config.tensor_parallel_size, wire,
    )  # fmt: skip


def refusals(vllm_config: Any, kv_cache_config: Any) -> list[str]:
    """Why the KV of this unit can't be handed over; empty: it can."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    kind = getattr(model.hf_text_config, "model_type", "?")
    groups = kv_cache_config.kv_cache_groups
    specs = {type(group.kv_cache_spec).__name__ for group in groups}
    full = len(groups) == 1 and specs <= {"FullAttentionSpec"}
    checks = [
        (bool(model.use_mla), "latent attention (MLA) keeps no K and V per head"),
        (kind not in ARCHITECTURES, f"model type {kind!r}, known are {', '.join(ARCHITECTURES)}"),
        (not full, f"KV cache of {sorted(specs)}, not full attention only"),
        (any(getattr(g.kv_cache_spec, "sliding_window", None) for g in groups), "sliding window attention"),
        (str(model.dtype) not in WIRE, f"dtype {model.dtype}"),
        (vllm_config.cache_config.cache_dtype not in ("auto", str(model.dtype).split(".")[-1]),
         f"KV cache of type {vllm_config.cache_config.cache_dtype}"),
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism"),
        (getattr(parallel, "data_parallel_size", 1) > 1, "data parallelism inside a unit: make it two units"),
        (getattr(parallel, "decode_context_parallel_size", 1) > 1, "decode context parallelism"),
        (getattr(parallel, "prefill_context_parallel_size", 1) > 1, "prefill context parallelism"),
        (vllm_config.speculative_config is not None, "speculative decoding"),
        (vllm_config.lora_config is not None, "LoRA adapters change K and V"),
    ]  # fmt: skip
    return [reason for refused, reason in checks if refused]
