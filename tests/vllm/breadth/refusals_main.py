"""Prints, as JSON, what the connector says to units whose KV it can't hand over, and its names for models that fit.

    PYTHONPATH=kernels/python PYTHON tests/vllm/breadth/refusals_main.py FOLDER

Run by the Python that has vLLM. FOLDER holds a Hugging Face configuration for each case, as test_plugin writes them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import vllm
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)  # fmt: skip

from syshax_vllm.connector import SyshaxConnector
from syshax_vllm.geometry import digest_of

TOKENS = ["a", "b"]
SIZES: dict[str, Any] = {"block_size": 32, "num_kv_heads": 2, "head_size": 32, "dtype": torch.float32}
FULL = FullAttentionSpec(**SIZES)
MAMBA = MambaSpec(block_size=32, shapes=((8, 8),), dtypes=(torch.float32,))
SPECS: dict[str, list[Any]] = {
    "mla": [MLAAttentionSpec(**{**SIZES, "num_kv_heads": 1})],
    "mamba": [MAMBA],
    "hybrid": [FULL, MAMBA],
    "sliding": [SlidingWindowSpec(**SIZES, sliding_window=64)],
}


def answer(folder: Path, case: str, **settings: Any) -> str:
    """What the connector raises for a configuration; "" for nothing."""
    try:
        transfer = KVTransferConfig(
            kv_connector="SyshaxConnector", kv_connector_module_path="syshax_vllm.connector", kv_role="kv_both"
        )
        arguments = EngineArgs(
            model=str(folder), enforce_eager=True, dtype="float32", kv_transfer_config=transfer, **settings
        )
        config = arguments.create_engine_config()
        groups = [KVCacheGroupSpec([str(i)], spec) for i, spec in enumerate(SPECS.get(case, [FULL]))]
        SyshaxConnector(config, KVConnectorRole.SCHEDULER, KVCacheConfig(8, [], groups))
    except (ValueError, RuntimeError) as err:
        return str(err)
    return ""


def main() -> None:
    """One answer a case."""
    folder = Path(sys.argv[1])
    found = {case: answer(folder / case, case) for case in SPECS}
    found["fp8"] = answer(folder / "llama", "fp8", kv_cache_dtype="fp8_e5m2")
    found["pipeline"] = answer(folder / "llama", "pipeline", pipeline_parallel_size=2)
    found["llama"] = answer(folder / "llama", "llama")
    for version in ("0.22.9", "0.33.0", "soon"):
        vllm.__version__ = version
        found[version] = answer(folder / "llama", "llama")
    for case in ("llama", "llama3", "linear"):
        config = EngineArgs(model=str(folder / case), enforce_eager=True, dtype="float32").create_model_config()
        found[f"digest of {case}"] = digest_of(config.hf_text_config, TOKENS).hex()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
