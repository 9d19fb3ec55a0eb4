"""Each architecture against transformers on a small random model: logits, greedy text, memory, geometry."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from syshax_contract.model_files import gguf_facts
from syshax_contract.model_memory import kv_bytes
from syshax_kernels.model import Seq as Row
from syshax_kernels.types import DType
from sysinfer.config import read_config
from sysinfer.engine_errors import ModelFileError
from sysinfer.gguf_tensors import GgufFile
from tests.sysinfer import models
from tests.sysinfer.families import CONTEXT, FAMILIES, KV_HEADS, LONG, Family, mask_of
from tests.sysinfer.test_greedy import GREEDY, Model, prompts

GREEDY_TOKENS = 64
LENGTHS = (1, 31, 100)


def logits_of(hf: Any, tokens: list[int]) -> Any:
    """[tokens][vocab] of transformers."""
    with torch.no_grad():
        return hf(torch.tensor([tokens]), attention_mask=mask_of(hf, len(tokens))).logits[0].numpy()


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Any, Path]:
    chosen = FAMILIES[request.param]
    hf = chosen.build()
    return chosen, hf, chosen.write(tmp_path_factory.mktemp("family") / "m.gguf", hf)


def test_logits_are_those_of_transformers(family: tuple[Family, Any, Path]) -> None:
    """Of every token of a prompt, whole and in chunks: within 1e-3 in f32."""
    _, hf, path = family
    prompt = prompts((100,))[0]
    expected = logits_of(hf, prompt)
    assert np.abs(expected).max() > 0.5, "a model that says nothing shows nothing"
    found = Model(path).runner.forward([Row(prompt, 0, list(range(4)), 2)])
    assert np.abs(found - expected).max() <= 1e-3
    chunked = Model(path).runner
    parts = [chunked.forward([Row(prompt[at : at + 30], at, list(range(4)), 2)]).copy() for at in range(0, 100, 30)]
    np.testing.assert_array_equal(np.concatenate(parts), found)


def test_greedy_text_is_that_of_transformers(family: tuple[Family, Any, Path]) -> None:
    """64 tokens, alone and together: each the likeliest after those before it, by transformers' own logits."""
    _, hf, path = family
    asked = prompts(LENGTHS)
    params = replace(GREEDY, max_tokens=GREEDY_TOKENS)
    together = Model(path).generate(asked, params)
    assert together == [Model(path).generate([p], params)[0] for p in asked]
    for prompt, made in zip(asked, together):
        likeliest = logits_of(hf, prompt + made).argmax(1).tolist()
        assert likeliest[len(prompt) - 1 : -1] == made


def changed(family: Family, hf: Any, path: Path, keys: dict[str, Any], tensors: dict[str, Any]) -> Path:
    """The family's file with further keys and tensors."""
    other = replace(family, keys={**family.keys, **keys}, tensors=lambda model: {**family.tensors(model), **tensors})
    return other.write(path, hf)


@pytest.fixture(scope="module")
def llama() -> tuple[Family, Any]:
    return FAMILIES["llama"], FAMILIES["llama"].build()


@pytest.mark.parametrize(
    "name", ["blk.1.attn_sinks.weight", "blk.0.ffn_gate_inp.weight", "output.bias", "blk.9.attn_q.weight"]
)
def test_a_tensor_that_is_not_known_is_refused_by_name(name: str, llama: tuple[Family, Any], tmp_path: Path) -> None:
    path = changed(*llama, tmp_path / "m.gguf", {}, {name: np.ones(96, np.float32)})
    with pytest.raises(ModelFileError, match=f"tensor {re.escape(name)}"):
        Model(path)


@pytest.mark.parametrize("key, value", [
    ("attention.sinks", 4), ("rope.scaling.yarn_log_multiplier", 0.1), ("attention.causal", False),
    ("use_parallel_residual", True), ("attention.temperature_scale", 0.1), ("residual_offset", 3),
])  # fmt: skip
def test_a_key_that_nothing_reads_is_refused_by_name(
    key: str, value: Any, llama: tuple[Family, Any], tmp_path: Path
) -> None:
    path = changed(*llama, tmp_path / "m.gguf", {key: value}, {})
    with pytest.raises(ModelFileError, match=f"llama.{re.escape(key)} is {value}"):
        read_config(GgufFile(path))
    neutral = changed(*llama, tmp_path / "n.gguf", {"attention.causal": True, "use_parallel_residual": False}, {})
    assert read_config(GgufFile(neutral)).arch == "llama"


def test_longrope_is_chosen_once_for_a_unit(tmp_path: Path) -> None:
    """The short factors where no sequence goes beyond the original context, the long ones elsewhere."""
    chosen = FAMILIES["phi4-mini"]
    rope = read_config(GgufFile(chosen.write(tmp_path / "m.gguf", chosen.build()))).rope
    plain = 1 / 10000.0 ** (np.arange(0, 12, 2) / 12)
    np.testing.assert_allclose(rope.freqs_for(128), plain / LONG["short_factor"], rtol=1e-6)
    np.testing.assert_allclose(rope.freqs_for(129), plain / LONG["long_factor"], rtol=1e-6)
    assert rope.magnitude == pytest.approx(math.sqrt(1 + math.log(CONTEXT / 128) / math.log(128)))


def test_sizes_of_kv_and_geometry_are_those_of_the_model(family: tuple[Family, Any, Path]) -> None:
    """What the memory plan and the handoff count a token with is what the core stores."""
    chosen, hf, path = family
    config = read_config(GgufFile(path))
    model = Model(path)
    assert (config.n_layers, config.n_kv_heads, config.head_dim) == (chosen.layers, KV_HEADS, chosen.head_dim)
    chunk = model.runner._model.chunk_bytes(64, DType.F16)
    assert (
        chunk
        == kv_bytes(gguf_facts(GgufFile(path).header), 64, "f16")
        == chosen.layers * 2 * 64 * KV_HEADS * chosen.head_dim * 2
    )
    text = hf.config
    assert (text.num_hidden_layers, text.num_key_value_heads) == (config.n_layers, config.n_kv_heads)


def test_kv_goes_from_one_unit_to_another_and_goes_on(family: tuple[Family, Any, Path]) -> None:
    """A prompt computed by one, its KV taken over by the other: the same logits of what follows, bit for bit."""
    _, _, path = family
    prompt = prompts((80,))[0]
    first, second = Model(path).runner, Model(path).runner
    blocks = list(range(4))
    first.forward([Row(prompt[:64], 0, blocks, 0)])
    chunk = np.zeros(first._model.chunk_bytes(64, DType.F32), np.uint8)
    assert first.export_kv(blocks, 0, 64, 0, chunk, DType.F32) == second.import_kv(blocks, 0, 64, 0, chunk, DType.F32)
    left = first.forward([Row(prompt[64:], 64, blocks, 2)]).copy()
    np.testing.assert_array_equal(left, second.forward([Row(prompt[64:], 64, blocks, 2)]))


@pytest.mark.parametrize("source, weights, tells", [
    ("q4_1", "q4_0", True), ("f32", "q4_0", True), ("q8_0", "q4_0", True), ("q8_0", "keep", False),
    ("f32", "q8_0", False),
])  # fmt: skip
def test_a_conversion_tells_what_it_costs(
    source: str, weights: str, tells: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In bytes and in how far weights move; a warning where answers get worse."""
    caplog.set_level(logging.INFO, "sysinfer.weights")
    shape = models.Shape("qwen2", seed=5)
    path = models.write(tmp_path / "m.gguf", shape, models.build(shape), source, models.small_tokenizer())
    Model(path, weights=weights)
    lines = [r for r in caplog.records if "are held as" in r.getMessage()]
    assert any(line.levelno == logging.WARNING for line in lines) == tells
    assert bool(lines) == (weights != "keep")
    for line in lines:
        found = re.search(r"(\S+) MiB become (\S+), and weights move by (\S+) %", line.getMessage())
        assert found and float(found[1]) > 0 and float(found[2]) > 0 and 0 < float(found[3]) < 20
