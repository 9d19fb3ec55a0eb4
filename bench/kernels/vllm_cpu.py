"""`python -m bench.kernels.vllm_cpu SHAPE TYPE CPUS`, one process of the benchmark: stock vLLM, its nearest scheme.

q8_0: weights and activations in 8 bits (compressed-tensors w8a8, oneDNN); q4_0: GPTQ with 4 bits in groups of 32.
Random weights of the shape; the output matrix stays bf16, as vLLM keeps it. Short contexts only.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from .shapes import SHAPES, Shape

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1")
os.environ.update(VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR")

FOLDER = Path(__file__).resolve().parents[2] / "build" / "bench"
BATCHES, TOKENS = (1, 8, 32), 24
LINEAR = {"num_bits": 8, "type": "int", "symmetric": True}
SCHEMES: dict[str, dict[str, Any]] = {
    "q4_0": {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False, "lm_head": False,
        "checkpoint_format": "gptq",
    },
    "q8_0": {
        "quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": {
            "targets": ["Linear"], "weights": {**LINEAR, "strategy": "channel", "dynamic": False},
            "input_activations": {**LINEAR, "strategy": "token", "dynamic": True},
        }},
    },
}  # fmt: skip


def write_config(s: Shape, name: str, kind: str) -> Path:
    path = FOLDER / f"hf-{name}-{kind}"
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": s.d_model, "vocab_size": s.vocab,
        "num_hidden_layers": s.stack, "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads,
        "intermediate_size": s.d_ff, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1,
        "eos_token_id": 2, "use_cache": True, "quantization_config": SCHEMES[kind],
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    return path


def decode_rate(llm: Any, params: Any, batch: int) -> float:
    """From the time of TOKENS + 1 tokens less that of one."""
    prompts = [{"prompt_token_ids": [100 + 32 * b + i for i in range(32)]} for b in range(batch)]

    def run(n: int) -> float:
        sampling = params(max_tokens=n, min_tokens=n, ignore_eos=True, temperature=0, detokenize=False)
        start = time.perf_counter()
        llm.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - start

    run(4)
    rates: list[float] = [batch * TOKENS / (run(TOKENS + 1) - run(1)) for _ in range(2)]
    return statistics.median(rates)


def main() -> None:
    name, kind, cpus = sys.argv[1], sys.argv[2], sys.argv[3]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cpus
    import vllm

    llm = vllm.LLM(
        str(write_config(SHAPES[name], name, kind)), load_format="dummy", dtype="bfloat16", enforce_eager=True,
        skip_tokenizer_init=True, max_model_len=512, max_num_seqs=32, enable_prefix_caching=False,
    )  # fmt: skip
    rates = {f"decode b{b} c32": decode_rate(llm, vllm.SamplingParams, b) for b in BATCHES}
    print(json.dumps({"rates": rates, "note": f"vLLM {vllm.__version__}, {SCHEMES[kind]['quant_method']}, eager"}))


if __name__ == "__main__":
    main()
