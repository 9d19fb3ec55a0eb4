"""Metrics of old and new vLLM, whole and mangled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syshaxd.monitor.vllm_metrics import MetricsError, parse_load

NEW = """\
# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:num_preemptions_total{engine="0",model_name="m"} 2.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7e+09
vllm:prompt_tokens_total{engine="0",model_name="m"} 100.0
vllm:prompt_tokens_by_source_total{source="local_compute",model_name="m"} 90.0
vllm:generation_tokens_total{engine="0",model_name="m"} 40.0
vllm:cache_config_info{block_size="16",num_gpu_blocks="400",engine="0"} 1.0
"""
OLD = """\
vllm:num_requests_running{model_name="m"} 3.0
vllm:num_requests_waiting{model_name="m"} 1.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.25
vllm:num_preemptions{model_name="m"} 2.0
"""


def test_new_names() -> None:
    load = parse_load(NEW, at=9.0)
    assert (load.at, load.source, load.running, load.waiting, load.preemptions) == (9.0, "metrics", 3, 1, 2)
    assert (load.kv_usage, load.kv_total, load.kv_used) == (0.25, 6400, 1600)
    assert (load.prompt_tokens, load.generation_tokens) == (100, 40)


def test_old_names() -> None:
    load = parse_load(OLD, at=0.0)
    assert (load.running, load.kv_usage, load.preemptions) == (3, 0.25, 2)


def test_a_missing_signal_is_none_and_never_zero() -> None:
    load = parse_load("python_gc_objects_total 1.0\n", at=0.0)
    assert (load.running, load.waiting, load.kv_usage, load.kv_total, load.preemptions) == (None,) * 5


def test_engines_of_one_unit_are_added_up() -> None:
    load = parse_load(NEW + NEW.replace('engine="0"', 'engine="1"').replace(" 0.25", " 0.75"), at=0.0)
    assert (load.running, load.kv_usage, load.kv_total) == (6, 0.75, 12800)


def test_not_a_number_is_no_signal() -> None:
    assert parse_load("vllm:num_requests_running NaN\n", at=0.0).running is None


@given(st.text(max_size=80))
def test_garbage_is_one_kind_of_error(text: str) -> None:
    try:
        parse_load("vllm:num_requests_running" + text, at=0.0)
    except MetricsError:
        pass


def test_garbage_says_what_was_expected() -> None:
    with pytest.raises(MetricsError, match="expected Prometheus text"):
        parse_load('vllm:num_requests_running{model_name="m"} many\n', at=0.0)
