"""Models as one name, as a list, and by name: one meaning; what is wrong is named with its place."""

from __future__ import annotations

import pytest

from syshaxd.config.load import loads
from syshaxd.errors import ConfigError

UNITS = "units: {gpu: {model_path: /a}, cpu: {model_path: /b}}\n"


def test_a_list_of_models() -> None:
    config = loads(
        "models:\n- {name: a/1, units: [gpu], aliases: [one]}\n"
        "- {name: b, units: [cpu], default: true, clip_max_tokens: true}\n" + UNITS
    )
    assert [(model.name, model.aliases, model.units) for model in config.served.configured] == [
        ("b", (), ("cpu",)), ("a/1", ("one",), ("gpu",)),
    ]  # fmt: skip
    assert config.model_name == "b" and config.served.clips("b") and not config.served.clips("one")
    assert {unit.name: unit.served_name for unit in config.units} == {"gpu": "a/1", "cpu": "b"}


def test_the_first_of_a_list_is_the_default_and_one_name_still_means_all_units() -> None:
    assert loads("models: [{name: a, units: [gpu]}, {name: b, units: [cpu]}]\n" + UNITS).model_name == "a"
    one = loads("models: {default: m}\n" + UNITS)
    assert [model.name for model in one.served.configured] == ["m"]
    assert {unit.served_name for unit in one.units} == {"m"}
    named = loads("models: {default: m, m: {clip_max_tokens: true, aliases: [gpt-4o]}}\n" + UNITS)
    assert named.served.clips("gpt-4o") and named.served.default == "m"


@pytest.mark.parametrize(
    "models, key, words",
    [
        ("[{units: [gpu]}]", "models", "without a name"),
        ("[{name: a, units: [gpu, npu]}]", "models.served.a.units", "found npu; units are: "),
        ("[{name: a, units: [gpu]}, {name: b, units: [gpu]}]", "models.served.b.units", "which serves a"),
        ("[{name: a, units: [gpu]}, {name: b, units: [cpu], aliases: [a]}]", "models.served.b.aliases", "found a"),
        ("[{name: a, units: [gpu, cpu]}, {name: b}]", "models.served.b", "no unit serves it"),
        ("[{name: a, unit: [gpu]}]", "models.served.a.unit", "did you mean units?"),
    ],
)
def test_mistakes_are_named(models: str, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(f"models: {models}\n" + UNITS)
    (problem, *_) = caught.value.problems
    assert problem.key.startswith(key) and words in problem.message, problem
