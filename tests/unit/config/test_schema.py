"""schema.json, the types, the defaults and the documentation say the same."""

from __future__ import annotations

import dataclasses
import enum
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from syshaxd.config.diff import Reload
from syshaxd.config.reference import help_lines, markdown
from syshaxd.config.schema import ANY_NAME, Leaf, allowed, leaves, schema
from syshaxd.config.types import Config, ModelConfig, SloConfig, UnitConfig
from syshaxd.model.unit import BackendKind, Role

DOCS = Path(__file__).resolve().parents[3] / "docs" / "config.md"
UNIT = UnitConfig("gpu", Role.ACCELERATOR)
ENUMS = {"role": Role, "backend": BackendKind}
ATTRIBUTES: dict[tuple[Any, ...], str] = {("models", "default"): "model_name", ("models", "path"): "model_path"}


def default_in_types(path: tuple[Any, ...]) -> Any:
    """The default of the dataclass field a key stands for."""
    if path in ATTRIBUTES:
        return getattr(Config(), ATTRIBUTES[path])
    if path[:2] == ("services", "conductor"):
        path = path[1:]
    start: Any = Config()
    if path[0] == "units":
        start, path = UNIT, path[2:]
    if path[:2] == ("scheduler", "slo") and len(path) > 2:
        start, path = SloConfig(), path[3:]
    if path[:2] == ("models", "served"):
        start, path = ModelConfig(), path[3:]
    for part in path:
        start = getattr(start, part)
    return start


def plain(value: Any) -> Any:
    """A default as JSON has it."""
    return value.value if isinstance(value, enum.Enum) else list(value) if isinstance(value, tuple) else value


LEAVES = list(leaves())
IDS = [".".join(map(str, leaf.path)) for leaf in LEAVES]


@pytest.mark.parametrize("leaf", LEAVES, ids=IDS)
def test_every_key_has_a_field_with_its_default_and_all_it_needs(leaf: Leaf) -> None:
    assert leaf.schema["default"] == plain(default_in_types(leaf.path))
    assert leaf.schema["description"].endswith(".")
    assert Reload(leaf.reload)
    assert allowed(leaf.schema)
    jsonschema.validate(leaf.schema["default"], dict(leaf.schema))


def fields(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Dotted fields of a dataclass instance."""
    if not dataclasses.is_dataclass(value):
        return [path]
    names = [field.name for field in dataclasses.fields(value)]
    return [inner for name in names for inner in fields(getattr(value, name), path + (name,))]


def test_every_field_has_a_key() -> None:
    keys = {leaf.path for leaf in LEAVES}
    unit = {path[2:] for path in keys if path[:2] == ("units", ANY_NAME)}
    assert set(fields(UNIT)) - {("name",)} == unit
    top = {ATTRIBUTES.get(path, path[1:] if path[0] == "services" else path) for path in keys if path[0] != "units"}
    named = {path if isinstance(path, tuple) else (path,) for path in top}
    slo = {path for path in named if path[:2] == ("scheduler", "slo")}
    models = {path for path in named if path[:2] == ("models", "served")}
    assert set(fields(Config())) - {("units",), ("scheduler", "slo"), ("models",)} == named - slo - models
    assert {path[3:] for path in slo} == set(fields(SloConfig()))
    assert {path[3:] for path in models} == set(fields(ModelConfig()))


@pytest.mark.parametrize("name", ENUMS)
def test_enumerations_are_those_of_the_model(name: str) -> None:
    unit = schema()["properties"]["units"]["additionalProperties"]["properties"]
    assert unit[name]["enum"] == [member.value for member in ENUMS[name]]
    assert unit["kind"]["enum"] == ["sysinfer", "vllm", "openai"]


def test_schema_is_a_good_schema() -> None:
    jsonschema.Draft7Validator.check_schema(dict(schema()))


def test_reference_in_the_documentation_is_that_of_the_schema() -> None:
    text = DOCS.read_text(encoding="utf-8")
    found = re.search(r"<!-- reference -->\n(.*)<!-- end of reference -->", text, re.DOTALL)
    assert found is not None
    assert found[1].strip() == markdown().strip(), "paste the output of: python3 -m syshaxd.config.reference"


def test_help_has_one_line_a_key() -> None:
    assert len(list(help_lines())) == len(LEAVES)
