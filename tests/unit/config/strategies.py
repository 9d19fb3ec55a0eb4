"""Good configurations of all kinds, out of the schema."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from syshaxd.config.schema import Schema, leaves, schema

_TEXT = st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0xFFFD), max_size=12)
_PATTERNED = {
    "affinity": ["auto", "none"],
    "reserved": [""],
    "memory_nodes": ["", "0", "0-1"],
    "pool_dir": ["/dev/shm/x", "/a b"],
    "side_channel_host": ["127.0.0.1", "10.0.0.1", "::1"],
    "control_socket": ["/run/x.sock"],
    "state_dir": ["/var/lib/x"],
    "name": ["", "abc"],
}
# Keys that rules tie to others are left to the rules' own tests.
_TIED = {
    "role", "kind", "backend", "accelerator", "url", "api_key_file", "host", "port", "device_ids", "quantize",
    "packed_cache", "tensor_parallel_size", "threads", "reserved", "offload_above", "return_below", "request_timeout",
    "queue_timeout", "first_token_timeout", "backoff", "backoff_max", "ipc", "shm_size", "image", "model_path",
}  # fmt: skip


def _value(name: str, leaf: Schema) -> st.SearchStrategy[Any]:
    if "enum" in leaf:
        return st.sampled_from(leaf["enum"])
    if name in _PATTERNED:
        return st.sampled_from(_PATTERNED[name])
    kind = leaf["type"] if isinstance(leaf["type"], str) else leaf["type"][0]
    low, high = leaf.get("minimum", 0), leaf.get("maximum", 10**6)
    if kind == "array":
        return st.lists(_TEXT, max_size=3)
    if kind == "object":
        return st.dictionaries(st.sampled_from(["A", "OMP_NUM_THREADS", "no", "_x"]), _TEXT, max_size=3)
    if kind == "number":
        return st.floats(low, high, allow_nan=False) | st.integers(int(low) + 1, max(int(low) + 1, int(high)))
    choices = {"string": _TEXT, "integer": st.integers(low, high), "boolean": st.booleans()}
    return choices[kind]


def _put(data: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
    data[path[-1]] = value


@st.composite
def configurations(draw: st.DrawFn) -> str:
    """YAML text (JSON is YAML too) of a good configuration."""
    data: dict[str, Any] = {"models": {"path": "/m.gguf"}}
    units = draw(st.lists(st.sampled_from(["gpu", "cpu", "npu", "no", "y", "unit-3", "a_b"]), min_size=1, unique=True))
    for unit in units:
        _put(data, ("units", unit, "role"), draw(st.sampled_from(["accelerator", "cpu"])))
    free = (leaf for leaf in leaves(schema()) if leaf.path[:2] != ("models", "served"))
    choices = [leaf for leaf in free if leaf.path[-1] not in _TIED and "container" not in leaf.path]
    for leaf in draw(st.lists(st.sampled_from(choices), max_size=12)):
        path = tuple(draw(st.sampled_from(_names(leaf.path, units))) if part == "NAME" else part for part in leaf.path)
        _put(data, path, draw(_value(str(leaf.path[-1]), leaf.schema)))
    data["models"]["path"] = "/m.gguf"
    return json.dumps(data)


def _names(path: tuple[Any, ...], units: list[str]) -> list[str]:
    return units if path[0] == "units" else ["priority", "default", "flex"]
