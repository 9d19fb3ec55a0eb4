"""Checked plain data to the frozen types."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Mapping
from typing import Any, Callable, TypeVar, Union, get_args, get_origin, get_type_hints

from .types import Config, ModelConfig, UnitConfig

T = TypeVar("T")


def build(data: Mapping[str, Any]) -> Config:
    """`data` has passed the schema; what it leaves out has its default."""
    values = {name: value for name, value in data.items() if name not in ("services", "models", "units")}
    models = data.get("models", {})
    units = tuple(make(UnitConfig, {"name": name, **unit}) for name, unit in data.get("units", {}).items())
    config = make(Config, {**values, "conductor": data.get("services", {}).get("conductor", {})})
    return dataclasses.replace(
        config,
        units=units,
        model_name=models.get("default", ""),
        model_path=models.get("path", ""),
        models={name: make(ModelConfig, model) for name, model in models.get("served", {}).items()},
    )


def make(cls: Callable[..., T], data: Mapping[str, Any]) -> T:
    """A dataclass from plain data, following its annotations."""
    hints = _hints(cls)
    return cls(**{name: _value(hints[name], value) for name, value in data.items()})


@functools.lru_cache(maxsize=None)
def _hints(cls: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(cls)


def _value(hint: Any, value: Any) -> Any:
    origin = get_origin(hint)
    if origin is Union:  # Optional[X]
        inner = next(arg for arg in get_args(hint) if arg is not type(None))
        return None if value is None else _value(inner, value)
    if origin is tuple:
        return tuple(_value(get_args(hint)[0], item) for item in value)
    if origin is not None:  # Mapping[str, X]
        inner = get_args(hint)[1]
        return {name: _value(inner, item) for name, item in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return make(hint, value)
    if issubclass(hint, enum.Enum):
        return hint(value)
    return float(value) if hint is float else int(value) if hint is int else value
