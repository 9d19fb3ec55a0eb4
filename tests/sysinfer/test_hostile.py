"""What a request or a file asks for on purpose: it ends by itself or is refused, and its neighbours notice nothing."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from syshax_contract.stop_strings import StopMatcher
from sysinfer.config import read_config
from sysinfer.engine_errors import ModelFileError, RequestError, SequenceError
from sysinfer.gguf_tensors import GgufFile
from sysinfer.output import ERROR
from sysinfer.runner import Row
from sysinfer.sampling import History, SamplingParams, sample, shape_logits
from sysinfer.template import ChatTemplate
from tests.sysinfer import models
from tests.sysinfer.process import Unit
from tests.sysinfer.toy import VOCAB, Bench, ToyRunner, reference

COMPLETION = "/v1/completions"
SIZE = 70  # of the property test's vocabulary: more than one stretch of 64

NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True)
LOGITS = hnp.arrays(np.float32, SIZE, elements=NUMBERS, fill=st.sampled_from([0.0, -math.inf, 3e38, math.nan]))
IDS = st.lists(st.integers(0, SIZE - 1), max_size=SIZE).map(tuple)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.floats(0, 100), top_p=st.floats(0, 1, exclude_min=True), top_k=st.integers(0, 100),
    min_p=st.floats(0, 1), seed=st.integers(0, (1 << 64) - 1), presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2), repetition_penalty=st.floats(0, 100, exclude_min=True),
    logit_bias=st.dictionaries(st.integers(0, SIZE - 1), st.floats(-100, 100), max_size=SIZE),
    logprobs=st.none() | st.integers(0, 20), min_tokens=st.integers(0, 3), stop_ids=IDS, end_ids=IDS,
)  # fmt: skip


@given(logits=LOGITS, params=PARAMS, tokens=st.lists(st.integers(0, SIZE - 1), max_size=8), n_context=st.integers(0, 8))
@example(np.full(SIZE, 3, np.float32), SamplingParams(repetition_penalty=1e-38, top_p=0.9), [1, 2], 1)
@example(np.zeros(SIZE, np.float32), SamplingParams(min_tokens=1, stop_ids=tuple(range(SIZE)), top_k=5), [1], 1)
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_sampling_is_total(logits: Any, params: SamplingParams, tokens: list[int], n_context: int) -> None:
    """A token of the vocabulary, or the error that ends one sequence: for every parameter and every row of numbers."""
    n_context = min(n_context, len(tokens))
    try:
        made = sample(logits, params, tokens, n_context)
    except SequenceError as err:
        silent = len(set(params.end_ids + params.stop_ids)) == SIZE and len(tokens) - n_context < params.min_tokens
        damaged = not np.isfinite(logits).all()
        assert damaged or (silent and err.status == 400)
        return
    assert 0 <= made.token < SIZE and math.isfinite(logits[made.token])
    if len(tokens) - n_context < params.min_tokens:
        assert made.token not in params.end_ids + params.stop_ids
    if made.logprob is not None:
        assert math.isfinite(made.logprob.logprob) and not any(math.isnan(lp) for _, lp in made.logprob.top)


@given(tokens=st.lists(st.integers(0, 9), min_size=1, max_size=60), n_context=st.integers(0, 60), data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_history_kept_from_token_to_token_counts_as_one_made_anew(
    tokens: list[int], n_context: int, data: st.DataObject
) -> None:
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=1.5)
    logits, kept = np.linspace(-3, 3, 10).astype(np.float32), History()
    for end in sorted(data.draw(st.sets(st.integers(0, len(tokens)), max_size=10))):
        if end < n_context:
            continue
        found = shape_logits(logits, params, tokens[:end], n_context, kept)
        np.testing.assert_array_equal(found, shape_logits(logits, params, tokens[:end], n_context, History()))
        for token in range(10):
            value = logits[token]
            if token in tokens[:end]:
                value = value / 1.5 if value > 0 else value * 1.5
            count = tokens[n_context:end].count(token)
            assert found[token] == pytest.approx(value - 0.5 * (count > 0) - 0.25 * count, abs=1e-5)


def fastest(run: Callable[[], object]) -> float:
    """Seconds of the quickest of some runs: what it costs on a machine that others use too."""
    times = []
    for _ in range(15):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


def test_4096_biases_cost_little_more_than_one() -> None:
    logits = np.random.default_rng(0).normal(size=128256).astype(np.float32)
    many = SamplingParams(temperature=0, logit_bias={31 * i: 1.0 for i in range(4096)}, seed=1)
    one = replace(many, logit_bias={1: 1.0})
    cost = [fastest(lambda: sample(logits, p, [1, 2, 3], 1)) for p in (one, many)]
    assert cost[1] < 3 * cost[0]


def test_the_whole_vocabulary_as_stop_ids_and_a_long_context_cost_little() -> None:
    logits = np.random.default_rng(0).normal(size=128256).astype(np.float32)
    tokens, kept = list(range(100_000)), History()
    plain = SamplingParams(temperature=0, logit_bias={1: 1.0})
    dear = SamplingParams(temperature=0, stop_ids=tuple(range(100_000)), min_tokens=9, repetition_penalty=1.1)
    sample(logits, dear, tokens, 100_000, kept)
    assert fastest(lambda: sample(logits, dear, tokens, 100_000, kept)) < 60 * fastest(
        lambda: sample(logits, plain, tokens, 100_000)
    )


def test_a_character_costs_the_same_however_long_the_stop_strings_are() -> None:
    """The text is the beginning of one stop string; another is met and missed at every place of it."""

    def run(length: int) -> float:
        stops = StopMatcher(["a" * length + "!", *("ab" * (length // 2) + str(i) for i in range(15))])
        begin = time.perf_counter()
        for _ in range(4000):
            assert (stops.feed("a"), stops.matched) == ("", None) or length < 4000
        return time.perf_counter() - begin

    assert min(run(20_000) for _ in range(3)) < 4 * min(run(20) for _ in range(3))


def test_text_below_min_tokens_is_not_lost_where_a_stop_string_stands_in_it() -> None:
    bench = Bench()
    said = reference([1], 8)
    letters = "".join(chr(32 + t) for t in said)
    params = SamplingParams(temperature=0, max_tokens=8, min_tokens=4, stops=(letters[1],))
    bench.add(0, [1], params)
    texts = []
    while not bench.core.idle:
        texts += [o.text for o in bench.core.step()]
    again = letters.find(letters[1], 3)
    assert "".join(texts) == (letters if again < 0 else letters[:again])


class Cursed(ToyRunner):
    """Says NaN after a sequence that begins with the last token, as damaged weights or KV would."""

    def _row(self, row: Row) -> Any:
        logits = super()._row(row)
        if self.kv[row.blocks[0], 0] == VOCAB - 1:
            logits[:] = math.nan
        return logits


@pytest.mark.parametrize("params", [
    SamplingParams(temperature=0, max_tokens=9),
    SamplingParams(temperature=0.7, top_p=0.9, max_tokens=9),
    SamplingParams(temperature=0, max_tokens=9, logprobs=3),
    SamplingParams(temperature=0, max_tokens=9, logprobs=3, prompt_logprobs=2),
], ids=["greedy", "drawn", "logprobs", "prompt_logprobs"])  # fmt: skip
def test_logits_that_are_no_numbers_end_their_sequence_alone(params: SamplingParams) -> None:
    bench = Bench(caching=False)
    bench.core._runner = Cursed(32, 8)
    bench.add(0, [3, 4, 5], replace(params, temperature=0, logprobs=None, prompt_logprobs=None))
    bench.add(1, [VOCAB - 1, 4, 5], params)
    ends = []
    while not bench.core.idle:
        outputs = bench.core.step()
        bench.take(outputs)
        ends += [o for o in outputs if o.finish == ERROR]
    assert bench.made[0] == reference([3, 4, 5], 9) and bench.finish[0] == ["length"]
    assert bench.made[1] == [] and len(ends) == 1 and ends[0].error is not None and ends[0].error.status == 500
    assert "not finite" in str(ends[0].error) and bench.pool.n_used == 0
    assert bench.stats.finished == {"length": 1, ERROR: 1}


def test_a_defect_met_for_one_sequence_ends_it_alone() -> None:
    """Parameters that no check let through: the sampler raises something else than it says."""
    bench = Bench(caching=False)
    bench.add(0, [3, 4, 5], SamplingParams(temperature=0, max_tokens=9))
    bench.add(1, [6], SamplingParams(temperature=0, max_tokens=9, logit_bias={VOCAB + 5: 1.0}))
    bench.drain()
    assert bench.made[0] == reference([3, 4, 5], 9) and bench.finish == {0: ["length"], 1: [ERROR]}
    assert bench.pool.n_used == 0


def test_requests_that_once_killed_the_unit(tmp_path: Path) -> None:
    shape = models.Shape("llama", seed=2)
    path = models.write(tmp_path / "m.gguf", shape, models.build(shape), "f32", models.small_tokenizer())
    everything = list(range(models.VOCAB))
    with Unit.start(path, tmp_path, "--threads", "1") as unit:
        good = {"prompt": "the cat", "temperature": 0, "max_tokens": 5, "ignore_eos": True, "return_token_ids": True}
        before = unit.post(COMPLETION, good)["choices"][0]["token_ids"]
        unit.post(COMPLETION, {"prompt": "a", "repetition_penalty": 1e-38, "top_p": 0.9})
        for stream in (False, True):
            silent = {"prompt": "a", "min_tokens": 1, "stop_token_ids": everything, "top_k": 5, "stream": stream}
            error = unit.post(COMPLETION, silent, 400)["error"]
            assert "rule out every token" in error["message"] and error["code"] == "invalid_value"
        assert unit.post(COMPLETION, good)["choices"][0]["token_ids"] == before and unit.idle()


def test_weights_that_are_no_numbers_fail_requests_and_not_the_unit(tmp_path: Path) -> None:
    shape = models.Shape("llama", seed=2)
    hf = models.build(shape)
    hf.model.layers[1].mlp.down_proj.weight.data[0, 0] = math.nan
    path = models.write(tmp_path / "m.gguf", shape, hf, "f32", models.small_tokenizer())
    with Unit.start(path, tmp_path, "--threads", "1") as unit:
        for _ in range(2):
            for more in ({"temperature": 0}, {"temperature": 1, "top_p": 0.5, "logprobs": 2}):
                assert "not finite" in unit.post(COMPLETION, {"prompt": "a", **more}, 500)["error"]["message"]
        assert unit.idle()


COSTLY = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "loop without body":
        "{% set l = range(9999)|list %}{% for a in l %}{% for b in l if b < 0 %}{% endfor %}{% endfor %}",
    "filters": "{% set l = range(9999)|list %}{% for a in l %}{{ l|sum }}{% endfor %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "text times a number": "{{ 'a' * 10 ** 11 }}",
    "text joined": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "text added": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "a wide format": "{{ '%999999999999d'|format(1) }}",
    "division by zero": "{{ 1 / 0 }}",
}  # fmt: skip


@pytest.mark.parametrize("name", list(COSTLY))
def test_a_template_costs_what_it_may_and_ends_in_a_refusal(name: str) -> None:
    begin = time.thread_time()
    template = ChatTemplate(COSTLY[name], "", "")  # constants are not computed here
    assert time.thread_time() - begin < 1
    with pytest.raises(RequestError, match="chat template refuses"):
        template.render([{"role": "user", "content": "x"}])
    assert time.thread_time() - begin < 5


def test_a_template_that_no_compiler_takes_is_refused() -> None:
    deep = "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"
    for source in (deep, "{% for x in y %}" * 300 + "{% endfor %}" * 300, "x" * (2 << 20)):
        with pytest.raises(ModelFileError, match="chat template"):
            ChatTemplate(source, "", "")


def test_a_template_may_be_long_and_dull() -> None:
    """2,000 messages through a template of the usual kind."""
    source = (
        "{% for m in messages if m['role'] %}{{ '<|' ~ m['role'] + '|>' ~ m['content'] | trim }}"
        "{{ loop.last }}{% endfor %}"
    )
    messages = [{"role": "user", "content": f" {i} "} for i in range(2000)]
    expected = "".join(f"<|user|>{i}{i == 1999}" for i in range(2000))
    assert ChatTemplate(source, "", "").render(messages) == expected


@pytest.mark.parametrize("change, message", [
    ({"context_length": 1}, "a context of 1 token"),
    ({"rope.dimension_count": (1 << 31) - 2}, "rope over 2147483646"),
    ({"attention.key_length": (1 << 31) - 2}, "heads of 2147483646 dimensions"),
    ({"embedding_length": (1 << 31) - 2, "attention.head_count": 1}, "heads of"),
    ({"rope.freq_base": 0.0}, "freq_base is 0.0"),
    ({"rope.freq_base": math.nan}, "freq_base is nan"),
    ({"attention.layer_norm_rms_epsilon": math.nan}, "epsilon of nan"),
    ({"block_count": (1 << 31) - 1}, "layers"),
], ids=str)  # fmt: skip
def test_sizes_that_no_model_has_are_refused_in_words(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    out = gguf.GGUFWriter(path, "llama")
    values: dict[str, Any] = {
        "context_length": 64, "embedding_length": 64, "block_count": 1, "feed_forward_length": 64,
        "attention.head_count": 2, "attention.layer_norm_rms_epsilon": 1e-5, **change,
    }  # fmt: skip
    for key, value in values.items():
        (out.add_float32 if isinstance(value, float) else out.add_uint32)(f"llama.{key}", value)
    out.add_tensor("token_embd.weight", np.zeros((8, 64), np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    with pytest.raises(ModelFileError, match=message) as refused:
        read_config(GgufFile(path))
    assert str(path) in str(refused.value)
