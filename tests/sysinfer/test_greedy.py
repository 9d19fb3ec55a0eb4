"""The engine on the native core says what transformers says, however the work is cut up."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from syshax_kernels.context import Context
from syshax_kernels.model import Seq as Row
from sysinfer.blocks import BlockPool
from sysinfer.config import read_config
from sysinfer.core import EngineCore, Handoffs
from sysinfer.gguf_tensors import GgufFile
from sysinfer.native import NativeRunner, RunnerSizes
from sysinfer.output import Output
from sysinfer.sampling import SamplingParams
from sysinfer.scheduler import Scheduler, SchedulerConfig
from sysinfer.sequence import Sequence
from sysinfer.stats import EngineStats
from tests.sysinfer import models
from tests.sysinfer.conftest import Tiny
from tests.sysinfer.toy import Letters

GREEDY = SamplingParams(temperature=0.0, max_tokens=24)
LENGTHS = (1, 3, 31, 32, 33, 63, 64, 65, 100, 300)


class Model:
    """An engine on the native core, asked directly."""

    def __init__(self, path: Path, blocks: int = 128, budget: int = 512, size: int = 32, caching: bool = True,
                 seqs: int = 8, kv: str = "f32", weights: str = "keep", threads: int = 2) -> None:  # fmt: skip
        file = GgufFile(path)
        config = read_config(file)
        self.context = Context(threads, spin_us=0)
        self.runner = NativeRunner(self.context, file, config, RunnerSizes(2048, blocks, size, budget, kv), weights)
        self.scheduler = Scheduler(
            SchedulerConfig(seqs, budget, min(2048, blocks * size)), BlockPool(blocks, size, caching)
        )
        self.stats = EngineStats()
        self.core = EngineCore(self.scheduler, self.runner, Letters(), self.stats, Handoffs())
        self.key = 0

    def generate(self, prompts: list[list[int]], params: SamplingParams = GREEDY) -> list[list[int]]:
        """All at once; the tokens of each."""
        return [[token for output in each for token in output.tokens] for each in self.outputs(prompts, params)]

    def outputs(self, prompts: list[list[int]], params: SamplingParams) -> list[list[Output]]:
        """All at once; what the engine says of each, step by step."""
        made: dict[int, list[Output]] = {}
        for prompt in prompts:
            self.core.add(Sequence(self.key, str(self.key), 0, list(prompt), len(prompt), params))
            made[self.key] = []
            self.key += 1
        while not self.core.idle:
            for output in self.core.step():
                made[output.key].append(output)
        return list(made.values())


def prompts(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(4, 300) for _ in range(n)] for n in lengths]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def asked(request: pytest.FixtureRequest) -> tuple[Tiny, list[list[int]]]:
    """A model and what transformers generates for each prompt."""
    tiny = request.getfixturevalue(f"tiny_{request.param}")
    return tiny, [models.greedy(tiny.hf, p, 24) for p in prompts()]


@pytest.mark.parametrize(
    "setup",
    [{}, {"budget": 16}, {"size": 8, "blocks": 256}, {"size": 64, "budget": 40}, {"caching": False}, {"threads": 1},
     {"blocks": 16, "size": 32, "budget": 64}],
    ids=str,
)  # fmt: skip
def test_equal_to_transformers(asked: tuple[Tiny, list[list[int]]], setup: dict[str, Any]) -> None:
    """Alone and 8 at once, cold and from the prefix cache, in chunks, with preemption: the same tokens."""
    tiny, expected = asked
    model = Model(tiny.path, **setup)
    assert [model.generate([p])[0] for p in prompts()] == expected
    assert model.generate(prompts()) == expected
    if setup.get("blocks") == 16:
        assert model.stats.preemptions > 0
    elif setup.get("caching", True):
        assert model.stats.local_cache_hit > 0
    assert model.scheduler.pool.n_used == 0


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_half_precision_files(arch: str, kind: str, tmp_path: Path) -> None:
    """Against the model with its matrices rounded likewise: the same tokens."""
    shape = models.Shape(arch, seed=3)
    hf = models.build(shape)
    models.requantised(hf, models.KINDS[kind])
    path = models.write(tmp_path / "m.gguf", shape, hf, kind, models.small_tokenizer())
    some = prompts((1, 40, 70))
    assert Model(path).generate(some) == [models.greedy(hf, p, 24) for p in some]


def test_an_8_bit_cache_is_near_and_the_same_in_any_company(tiny_llama: Tiny) -> None:
    prompt = prompts((300,))[0]
    rows = [Row(prompt, 0, list(range(10)), 2)]
    near, exact = (Model(tiny_llama.path, kv=kv).runner.forward(rows).copy() for kv in ("q8_0", "f32"))
    assert 0 < float(np.sqrt(((near - exact) ** 2).mean()) / exact.std()) < 0.02
    alone, together = Model(tiny_llama.path, kv="q8_0"), Model(tiny_llama.path, kv="q8_0", blocks=16, budget=64)
    assert together.generate(prompts()) == [alone.generate([p])[0] for p in prompts()]
    assert together.stats.preemptions > 0


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1"])
def test_quantised_files(arch: str, kind: str, tmp_path: Path) -> None:
    """Against the model with identically rounded matrices: logits apart only by the 8-bit activations."""
    shape = models.Shape(arch, d_model=128, d_ff=256, seed=5)
    hf = models.build(shape)
    models.requantised(hf, models.KINDS[kind])
    path = models.write(tmp_path / "m.gguf", shape, hf, kind, models.small_tokenizer())
    prompt = prompts((100,))[0]
    ours = Model(path).runner.forward([Row(prompt, 0, list(range(8)), 2)])
    with torch.no_grad():
        theirs = hf(torch.tensor([prompt])).logits[0].numpy()
    error = float(np.sqrt(((ours - theirs) ** 2).mean()) / theirs.std())
    assert error < 0.05
    assert (ours.argmax(1) == theirs.argmax(1)).mean() >= 0.85


def test_quantising_at_load_equals_a_quantised_file(tmp_path: Path) -> None:
    """SYSHAX_QUANTIZE on an f32 file computes what the quantised file does, bit for bit."""
    shape = models.Shape("llama", seed=5)
    hf = models.build(shape)
    plain = models.write(tmp_path / "f32.gguf", shape, hf, "f32", models.small_tokenizer())
    small = models.write(tmp_path / "q8.gguf", shape, hf, "q8_0", models.small_tokenizer())
    prompt = Row(prompts((50,))[0], 0, list(range(4)), 2)
    left = Model(plain, weights="q8_0").runner.forward([prompt])
    np.testing.assert_array_equal(left, Model(small).runner.forward([prompt]))


def test_half_precision_kv_stays_close(tiny: Tiny) -> None:
    prompt = Row(prompts((200,))[0], 0, list(range(8)), 2)
    exact = Model(tiny.path).runner.forward([prompt]).copy()
    for kind, limit in (("f16", 0.01), ("bf16", 0.08)):
        near = Model(tiny.path, kv=kind).runner.forward([prompt])
        assert float(np.abs(near - exact).max()) < limit


def test_any_number_of_threads_says_the_same_bit_for_bit(tiny: Tiny) -> None:
    """Text, tokens and log-probabilities, which every logit goes into. 16 threads are more than small machines have."""
    params = replace(GREEDY, max_tokens=12, logprobs=5, prompt_logprobs=1)
    some = prompts((1, 33, 100))
    alone = Model(tiny.path, threads=1).outputs(some, params)
    assert all(output.logprobs for each in alone for output in each)
    for threads in (2, 3, 8, 16):
        assert Model(tiny.path, threads=threads).outputs(some, params) == alone, threads


def test_sampling_does_not_depend_on_the_batch(tiny: Tiny) -> None:
    """A seeded draw is the same alone, among others, after preemption, and in chunks."""
    params = replace(GREEDY, temperature=0.9, top_p=0.95, seed=11)
    alone = [Model(tiny.path).generate([p], params)[0] for p in prompts()]
    assert Model(tiny.path).generate(prompts(), params) == alone
    assert Model(tiny.path, blocks=16, budget=24).generate(prompts(), params) == alone
    others = Model(tiny.path).generate(prompts(), replace(params, seed=12))
    assert sum(a != b for a, b in zip(alone, others)) >= 8
