"""The daemon's plan of a sysinfer unit and the engine's own sizes: one function, for every dtype and flag."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syshax_contract.gguf import TENSOR_TYPES
from syshax_contract.model_files import ModelFacts, ModelPart, gguf_facts, read_model
from syshax_contract.model_memory import HELD_AS, held_bytes, held_type
from syshax_contract.sysinfer_command import BLOCK_SIZES, KV_DTYPES, WEIGHTS
from syshax_kernels.model import packed_bytes
from syshax_kernels.types import HELD
from syshaxd.config.types import UnitConfig
from syshaxd.model.unit import Role
from syshaxd.supervisor.binding.binding_plan import Binding
from syshaxd.supervisor.recipes import launch_spec
from syshaxd.units import SYSINFER, Surroundings
from sysinfer.env import read_environment
from sysinfer.gguf_tensors import GgufFile
from sysinfer.model_loading import plan_sizes
from sysinfer.options import parse_options

GIB = 1 << 30
DEMO = Path(__file__).resolve().parents[3] / "kernels/demo/syshax-demo.gguf"
LAYERS, HEADS, HEAD = 32, 8, 128
PARTS = (ModelPart(7_504_924_672, 30), ModelPart(525_336_576, 30, True), ModelPart(266_240, 0, vector=True))
LLAMA = ModelFacts(PARTS, 2 * LAYERS * HEADS * HEAD, 8192, 4096, 14336, 128256, HEADS, HEAD)
ELEMENT = {"f16": 2, "bf16": 2, "f32": 4, "q8_0": 1}


def _words(flag: str, value: Any) -> list[str]:
    return [f"{flag}={value}"] if len(str(value)) % 2 else [flag, str(value)]


FLAGS: dict[str, st.SearchStrategy[Any]] = {
    "--kv-dtype": st.sampled_from(KV_DTYPES), "--kv-blocks": st.integers(1, 1 << 20),
    "--block-size": st.sampled_from(BLOCK_SIZES), "--max-model-len": st.integers(2, 8192),
    "--max-num-seqs": st.integers(1, 1024), "--max-num-batched-tokens": st.integers(1, 1 << 16),
    "--weights": st.sampled_from(WEIGHTS), "--quant": st.sampled_from(WEIGHTS), "--max-num-b": st.integers(1, 4096),
    "-t": st.floats(0, 2), "--max-tokens": st.integers(1, 99), "--packed-cache": st.just("/p"),
}  # fmt: skip
OPTIONS = st.lists(st.sampled_from(sorted(FLAGS)), max_size=6).flatmap(
    lambda names: st.tuples(*(st.tuples(st.just(name), FLAGS[name]) for name in names))
)
SECTION = st.fixed_dictionaries({
    "kv_blocks": st.none() | st.integers(1, 1 << 16), "block_size": st.none() | st.sampled_from(BLOCK_SIZES),
    "max_model_len": st.none() | st.integers(2, 8192), "quantize": st.sampled_from(["", "q8_0", "q4_0"]),
    "env": st.sampled_from([{}, {"SYSHAX_QUANTIZE": "Q4_0"}, {"SYSHAX_QUANTIZE": "q8_0"}]),
})  # fmt: skip


@given(SECTION, OPTIONS, st.integers(0, 1 << 42), st.booleans())
def test_the_plan_is_what_the_engine_does(
    section: dict[str, Any], options: tuple[tuple[str, Any], ...], memory: int, last: bool
) -> None:
    """From one configuration: the daemon's plan, and the engine's sizes from the command line it is started with."""
    extra = [word for name, value in options for word in _words(name, value)]
    extra += ["--no-prefix-cache"] * last
    unit = UnitConfig("cpu", Role.CPU, "sysinfer", model_path="/m.gguf", extra_args=tuple(extra), **section)
    spec = launch_spec(unit, Surroundings("m", "/p", 0, Binding("cpu"), port=1, secret_file=__file__))
    started = parse_options(spec.argv[spec.argv.index("serve") :], read_environment(spec.env))
    sizes = plan_sizes(started, LLAMA, memory or 1)
    planned = SYSINFER.memory(unit, LLAMA, 0, memory or 1)
    vector = HEAD * ELEMENT[sizes.kv_dtype] + (4 if sizes.kv_dtype == "q8_0" else 0)
    assert planned.kv == sizes.kv_blocks * sizes.block_size * 2 * LAYERS * HEADS * vector
    assert planned.weights == sum(held_bytes(part, HELD_AS.get(started.sizing.weights)) for part in PARTS)
    rows = max(sizes.max_batch_tokens, started.sizing.max_num_seqs)
    assert planned.activations == (128 << 20) + rows * (4 * (2 * 4096 + 4 * 14336) + 2 * 14336) + 4 * 128256 * (
        started.sizing.max_num_seqs
    )
    assert sizes.max_model_len <= sizes.kv_blocks * sizes.block_size


def test_both_read_the_same_of_a_file() -> None:
    assert read_model(str(DEMO)) == gguf_facts(GgufFile(DEMO).header)


@pytest.mark.parametrize("memory, kv", [(0, 16 * GIB), (100 * GIB, 16 * GIB), (47 * GIB, 8 * GIB), (1, 1 << 22)])
def test_the_kv_cache_takes_a_quarter_of_what_the_weights_leave(memory: int, kv: int) -> None:
    """16 sequences of 8192 tokens need 16 GiB; the weights take 15 GiB. Memory 0: not known."""
    unit = UnitConfig("cpu", Role.CPU, "sysinfer", model_path="/m.gguf")
    assert SYSINFER.memory(unit, replace(LLAMA, parts=(ModelPart(15 * GIB // 2, 1),)), 0, memory).kv == kv


@pytest.mark.parametrize("source", sorted(TENSOR_TYPES))
@pytest.mark.parametrize("wanted", [None, *sorted(HELD_AS.values())])
def test_a_matrix_is_never_held_with_more_bits_than_it_has(source: int, wanted: "int | None") -> None:
    bits = {2: 4.5, 12: 4.5, 3: 5, 8: 8.5, 1: 16, 30: 16, 0: 32}
    own = bits.get(source, 8.5)
    held = held_type(source, wanted)
    assert bits[held] == (own if wanted is None else min(bits[wanted], own) if own < 16 else bits[wanted])
    assert held_type(source, 2, whole=True) != 2 or source == 2, "the file's own 4 bits stay, others get 8"
    assert held_type(source, wanted, blocks=False) not in (2, 8), "rows that blocks do not fit"
    assert held_type(12, 2) == 12, "no conversion that saves nothing"


def test_bytes_of_a_held_matrix_are_the_core_s() -> None:
    """Of each type that weights are held in; rows of 16 and columns of whole superblocks, so without padding."""
    for kind in HELD:
        part = ModelPart(16 * 1024, int(kind))
        assert held_bytes(part, None) == packed_bytes(kind, 16, 1024), kind
