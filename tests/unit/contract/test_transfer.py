"""kv_transfer_params: what the daemon writes is what both engines read; what is wrong is named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syshax_contract.transfer import (
    HandoffParams,
    LoadFrom,
    SaveOn,
    TransferError,
    load_values,
    parse_transfer,
    save_values,
)  # fmt: skip

IDS = st.binary(min_size=16, max_size=16)


@given(IDS, IDS, st.sampled_from(SaveOn), st.integers(0, 2**64 - 1))
def test_what_the_daemon_writes_a_unit_reads(save: bytes, load: bytes, when: SaveOn, generation: int) -> None:
    written = {**save_values(save.hex(), when.value), **load_values(load.hex(), "gpu.pool", generation)}
    wish = HandoffParams(save, when, LoadFrom(load, "gpu.pool", generation))
    assert parse_transfer({"syshax": written}) == wish


@pytest.mark.parametrize("ours, param", [
    (7, ""), ({"save": "AB" * 16}, ".save"), ({"save": "ab"}, ".save"), ({"save": 5}, ".save"),
    ({"save_on": "never"}, ".save_on"), ({"save_on": []}, ".save_on"), ({"load": []}, ".load"),
    ({"load": {"ticket": "ab" * 16, "pool": "../x"}}, ".load.pool"), ({"load": {"pool": "x"}}, ".load"),
    ({"load": {"ticket": "ab" * 16, "pool": "x", "generation": True}}, ".load.generation"),
    ({"load": {"ticket": "ab" * 16, "pool": "x", "generation": 2**64}}, ".load.generation"),
])  # fmt: skip
def test_what_is_wrong_is_named(ours: Any, param: str) -> None:
    with pytest.raises(TransferError) as caught:
        parse_transfer({"syshax": ours})
    assert caught.value.param == "kv_transfer_params.syshax" + param and "expected" in str(caught.value)


@pytest.mark.parametrize("params", [None, {}, {"syshax": None}, {"do_remote_decode": True}])
def test_what_says_nothing_wishes_nothing(params: Any) -> None:
    assert parse_transfer(params) == HandoffParams()
