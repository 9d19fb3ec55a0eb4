"""Memory of a unit from the files of its model and its options."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from syshax_contract.gguf import BF16, F32, Q4_0
from syshax_contract.model_files import ModelFacts, ModelPart, NoFacts, read_model
from syshaxd.config.types import Config, PdConfig, UnitConfig
from syshaxd.model.unit import Role
from syshaxd.supervisor.binding.configured import plan_units
from syshaxd.supervisor.binding.host_tree import HostNode, HostTree
from syshaxd.units import KINDS
from syshaxd.units.memory import Memory
from syshaxd.units.vllm import RANK, SERVER

GIB = 1 << 30
DEMO = Path(__file__).resolve().parents[3] / "kernels/demo/syshax-demo.gguf"
# Llama 3 8B in bfloat16
PARTS = (ModelPart(7_504_924_672, BF16), ModelPart(525_336_576, BF16, True))
LLAMA = ModelFacts(PARTS, 2 * 32 * 8 * 128, 8192, 4096, 14336, 128256)
CPU = UnitConfig("cpu", Role.CPU, "sysinfer", model_path="/m")
VLLM = replace(CPU, kind="vllm")


def held_by(unit: UnitConfig, facts: ModelFacts | None, pool: int, host_memory: int) -> Memory:
    """What its kind says."""
    return KINDS[unit.kind].memory(unit, facts, pool, host_memory)


def test_a_real_gguf_file() -> None:
    facts = read_model(str(DEMO))
    held = held_by(replace(CPU, kv_blocks=4), facts, 0, 0)
    assert 0.9 < held.weights / DEMO.stat().st_size <= 1.0, "weights are nearly all of the file, in the same types"
    assert facts.kv_elements > 0 and facts.context > 0
    assert held.kv == 4 * 32 * facts.kv_elements * 2


def _folder(root: Path, **more: Any) -> Path:
    config = {
        "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 3,
        "vocab_size": 100, "intermediate_size": 128, "max_position_embeddings": 256, "torch_dtype": "bfloat16", **more,
    }  # fmt: skip
    (root / "config.json").write_text(json.dumps(config))
    for number in (1, 2):
        (root / f"model-{number}.safetensors").write_bytes(b"\0" * 1000)
    return root


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    facts = read_model(str(_folder(tmp_path)))
    assert facts.parts == (ModelPart(1000, BF16),) and facts.kv_elements == 2 * 3 * 2 * 8 and facts.context == 256
    assert read_model(str(_folder(tmp_path, torch_dtype="float32"))).parts == (ModelPart(500, F32),)


@pytest.mark.parametrize(
    "broken", [b"", b"GGUF", b"GGUF\3\0\0\0" + b"\xff" * 16, b"PK\3\4" * 100, b"GGUF" + b"\1" * 99]
)
def test_what_is_no_model_says_so(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(broken)
    with pytest.raises(NoFacts, match="x.gguf is no model|can't be read"):
        read_model(str(path))
    with pytest.raises(NoFacts, match="nothing is not there"):
        read_model(str(tmp_path / "nothing"))
    with pytest.raises(NoFacts, match="config.json is not there"):
        read_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NoFacts, match="hidden_size"):
        read_model(str(tmp_path))


def test_every_cut_of_a_header_says_so(tmp_path: Path) -> None:
    whole, path = DEMO.read_bytes(), tmp_path / "cut.gguf"
    for end in (5, 8, 17, 24, 25, 40, 100, 1000, 5000):
        path.write_bytes(whole[:end])
        with pytest.raises(NoFacts, match="cut.gguf"):
            read_model(str(path))


def test_quantised_while_loading() -> None:
    keep = held_by(CPU, LLAMA, 0, 0).weights
    q4, q8 = (held_by(replace(CPU, quantize=kind), LLAMA, 0, 0).weights for kind in ("q4_0", "q8_0"))
    assert keep == 2 * (7_504_924_672 + 525_336_576)
    assert q4 == 7_504_924_672 // 32 * 18 + 525_336_576 // 32 * 34, "embedding and output stay at 8 bits"
    assert q8 == (7_504_924_672 + 525_336_576) // 32 * 34
    small = ModelFacts((ModelPart(3200, Q4_0),), 64, 128, 64, 128, 100)
    assert held_by(replace(CPU, quantize="q8_0"), small, 0, 0).weights == 1800, "never more bits than in the file"
    assert held_by(replace(CPU, extra_args=("--weights", "q8_0")), LLAMA, 0, 0).weights == q8
    assert held_by(replace(CPU, env={"SYSHAX_QUANTIZE": "q8_0"}), LLAMA, 0, 0).weights == q8


def test_kv_cache_of_sysinfer() -> None:
    token = 2 * 32 * 8 * 128 * 2
    assert held_by(replace(CPU, kv_blocks=100), LLAMA, 0, 0).kv == 100 * 32 * token
    assert held_by(replace(CPU, max_model_len=4096), LLAMA, 0, 0).kv == 16 * 4096 * token
    assert held_by(CPU, LLAMA, 0, 64 * GIB).kv <= 16 * GIB, "unasked, no more than its share of what is left"
    wide = replace(CPU, kv_blocks=100, extra_args=("--kv-dtype=f32",))
    assert held_by(wide, LLAMA, 0, 0).kv == 200 * 32 * token
    narrow = replace(CPU, kv_blocks=100, extra_args=("--kv-dtype", "q8_0"))
    facts = replace(LLAMA, kv_heads=8, head_size=128)
    assert held_by(narrow, facts, 0, 0).kv == 100 * 32 * (token // 2 + 2 * 32 * 8 * 4), "a scale a token and head"


def test_a_command_line_that_sysinfer_would_refuse_is_planned_without_it() -> None:
    """The unit says what is wrong when it starts; the plan must neither fail nor print."""
    for words in (("--block-size", "0"), ("--block-size",), ("--max-num-seqs", "x"), ("--help",), ("--version",)):
        assert held_by(replace(CPU, extra_args=words), LLAMA, 0, 0) == held_by(CPU, LLAMA, 0, 0)


def test_vllm_on_cpus() -> None:
    held = held_by(replace(VLLM, env={"VLLM_CPU_KVCACHE_SPACE": "40"}), LLAMA, GIB, 0)
    assert held.kv == 40 * GIB and held.pool == GIB and held.activations == SERVER + RANK
    assert held_by(VLLM, LLAMA, 0, 0).kv == 4 * GIB
    blocks = replace(VLLM, kv_blocks=100, block_size=32)
    kv = {dtype: replace(blocks, extra_args=("--kv-cache-dtype", dtype)) for dtype in ("auto", "fp8")}
    assert held_by(kv["auto"], LLAMA, 0, 0).kv == 2 * held_by(kv["fp8"], LLAMA, 0, 0).kv
    ranks = held_by(replace(VLLM, tensor_parallel_size=4), LLAMA, 0, 0)
    assert ranks.kv == 16 * GIB and ranks.weights == held.weights, "the space is that of one rank"
    assert held_by(replace(VLLM, extra_args=("--dtype=float32",)), LLAMA, 0, 0).weights == 2 * held.weights
    assert held_by(replace(VLLM, extra_args=("--kv-cache-memory-bytes", "2G")), LLAMA, 0, 0).kv == 2 * GIB
    assert held_by(replace(VLLM, kv_blocks=10, block_size=32), LLAMA, 0, 0).kv == 10 * 32 * LLAMA.kv_elements * 2


def test_an_accelerator_holds_its_model_itself() -> None:
    gpu = replace(VLLM, role=Role.ACCELERATOR, accelerator="nvidia")
    held = held_by(gpu, None, GIB, 0)
    assert (held.weights, held.kv, held.pool) == (0, 0, GIB)


def _host(memory: int, nodes: int = 4) -> HostTree:
    made = tuple(HostNode(n, frozenset(range(4 * n, 4 * n + 4)), memory) for n in range(nodes))
    cpus = frozenset(range(4 * nodes))
    return HostTree(made, tuple(frozenset((cpu,)) for cpu in cpus), frozenset(), cpus)


def test_the_plan_refuses_more_than_a_node_has_and_says_of_what() -> None:
    unit = replace(VLLM, env={"VLLM_CPU_KVCACHE_SPACE": "40"}, tensor_parallel_size=4)
    config = Config(units=(unit,), pd=PdConfig(pool_size=8 * GIB))
    assert plan_units(config, _host(64 * GIB), lambda path: LLAMA).problems == ()
    problems = plan_units(config, _host(32 * GIB), lambda path: LLAMA).problems
    assert len(problems) == 4
    assert problems[0].startswith("node 0 has 32.0 GiB (30.4 GiB for units), asked for are 46.8 GiB: cpu 46.8 GiB")
    assert "weights 15.0 GiB + KV 160.0 GiB + pool 8.0 GiB + activations 4.2 GiB" in problems[0]


def test_kv_heads_are_not_cut() -> None:
    """2 heads on 4 nodes lie on two of them, whichever: every node must have room for one."""
    unit, two = replace(CPU, kv_blocks=1 << 14), replace(LLAMA, kv_heads=2)
    (binding,) = plan_units(Config(units=(unit,), pd=PdConfig(pool_size=0)), _host(64 * GIB), lambda path: two).units
    rest = binding.memory.total - binding.memory.kv
    assert binding.memory_per_node[3] == -(-rest // 4) + binding.memory.kv // 2
    (even,) = plan_units(Config(units=(unit,), pd=PdConfig(pool_size=0)), _host(64 * GIB), lambda path: LLAMA).units
    assert even.memory_per_node[3] == -(-even.memory.total // 4)


def test_an_unknown_model_is_a_note() -> None:
    def absent(path: str) -> ModelFacts:
        raise NoFacts(f"{path} is not there")

    (note,) = plan_units(Config(units=(CPU,)), _host(GIB * 8), absent).notes
    assert note == "unit cpu: its memory is planned without weights and KV cache: /m is not there"


@pytest.mark.parametrize("text", [
    '{"hidden_size": 64, "num_attention_heads": 0}', '{"hidden_size": 1e999, "num_attention_heads": 1}',
    "[1]", "[" * 100_000, '{"text_config": 1}',
])  # fmt: skip
def test_an_odd_config_is_a_fact_that_is_missing(tmp_path: Path, text: str) -> None:
    """It must not end the daemon, which reads it at each reload."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(NoFacts, match="no model that sysHAX can size"):
        read_model(str(tmp_path))
