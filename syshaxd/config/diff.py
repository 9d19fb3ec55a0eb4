"""What a new configuration means for a running daemon. Pure."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from syshaxd.model.unit import Role
from syshaxd.units import KINDS

from .nodes import Path, dotted
from .schema import ANY_NAME, leaves
from .types import Config, UnitConfig


class Reload(enum.Enum):
    """What a changed key needs before it counts."""

    NOW = "now"
    UNIT = "unit"  # its unit is replaced
    RESTART = "restart"  # of the daemon


@dataclass(frozen=True)
class Change:
    """One key with another value. The values are in words; those of `env`, which may be secrets, are not shown."""

    key: str
    old: str
    new: str
    reload: Reload

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


@dataclass(frozen=True)
class ReloadPlan:
    """`applied`: in force at once. `added`, `removed`, `replaced`: names of units, in configuration order.
    `unit_changes`: why those are replaced. `pending_restart`: kept at the old value until the daemon restarts.
    """

    applied: tuple[Change, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    unit_changes: tuple[Change, ...] = ()
    pending_restart: tuple[Change, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing changed."""
        return not any(getattr(self, field.name) for field in dataclasses.fields(self))

    def to_json(self) -> dict[str, Any]:
        """The form of the control socket and of the log."""
        return {
            "applied": [str(change) for change in self.applied],
            "added": list(self.added),
            "removed": list(self.removed),
            "replaced": list(self.replaced),
            "unit_changes": [str(change) for change in self.unit_changes],
            "pending_restart": [str(change) for change in self.pending_restart],
        }


def diff(old: Config, new: Config) -> ReloadPlan:
    """Every changed key appears in exactly one of `applied`, `unit_changes` and `pending_restart`; the keys of added
    and removed units are not listed one by one."""
    before, after = {unit.name: unit for unit in old.units}, {unit.name: unit for unit in new.units}
    kept = [name for name in after if name in before]
    changes = list(_changes(_flat_top(old), _flat_top(new), ()))
    for name in kept:
        changes.extend(_changes(_flat(before[name]), _flat(after[name]), ("units", name)))
    return ReloadPlan(
        applied=_of(changes, Reload.NOW),
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        replaced=tuple(
            name
            for name in kept
            if unit_digest(before[name], old.pd.pool_size) != unit_digest(after[name], new.pd.pool_size)
        ),
        unit_changes=_of(changes, Reload.UNIT),
        pending_restart=_of(changes, Reload.RESTART),
    )


def flatten(config: Config) -> dict[Path, Any]:
    """Every value in force by its canonical path, lists as tuples."""
    flat = dict(_flat_top(config))
    for unit in config.units:
        flat.update({("units", unit.name, *path): value for path, value in _flat(unit).items()})
    return flat


def effective(old: Config, new: Config) -> Config:
    """What is in force after a reload: `new`, with the old value of every key that needs a restart.

    Comparing the next reload against this keeps a pending restart pending.
    """
    kept = [path for path, reload in _reload_classes().items() if reload is Reload.RESTART]
    for path in kept:
        new = _replaced(new, _attributes(path), _get(old, _attributes(path)))
    return new


def unit_digest(unit: UnitConfig, pool_size: int = 0) -> str:
    """16 hex digits over everything whose change needs the unit replaced. `pool_size` is pd.pool_size; it counts for
    units with an outbox only. What has its default does not count: a release with a new key adopts running units."""
    plain = _flat(UnitConfig(unit.name, Role.CPU))
    said = {path: value for path, value in _flat(unit).items() if plain.get(path, _MISSING) != value}
    values = {dotted(path): value for path, value in said.items() if _class_of(path, "units") is Reload.UNIT}
    if KINDS[unit.kind].ours and unit.backend.starts:
        values["pd.pool_size"] = pool_size
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=1)
def _reload_classes() -> Mapping[Path, Reload]:
    return {leaf.path: Reload(leaf.reload) for leaf in leaves()}


def _class_of(path: Path, section: str = "") -> Reload:
    """Of a key relative to a unit (`section` "units"), or of a key from the top."""
    full = ("units", ANY_NAME, *path) if section else path
    classes = _reload_classes()
    known: Reload | None = classes.get(full) or classes.get(full[:-1])  # names inside env
    if known is None and full[:2] in (("scheduler", "slo"), ("models", "served")):
        known = Reload.NOW
    return known or Reload.UNIT


def _flat(value: Any, path: Path = ()) -> dict[Path, Any]:
    """Dotted attributes of a frozen value; lists are values, mappings are looked into, a unit's name is left out."""
    if dataclasses.is_dataclass(value):
        pairs = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        items = [(name, item) for name, item in pairs if not (isinstance(value, UnitConfig) and name == "name")]
    elif isinstance(value, Mapping):
        items = list(value.items())
    else:
        return {path: value.value if isinstance(value, enum.Enum) else value}
    return {inner: item for name, child in items for inner, item in _flat(child, path + (name,)).items()}


def _flat_top(config: Config) -> dict[Path, Any]:
    """All keys outside of `units`, by the names they have in YAML."""
    flat = _flat(dataclasses.replace(config, units=()))
    return {_yaml_path(path): value for path, value in flat.items() if path[0] != "units"}


_YAML: Mapping[str, tuple[str, ...]] = {
    "model_name": ("models", "default"),
    "model_path": ("models", "path"),
    "models": ("models", "served"),
    "conductor": ("services", "conductor"),
}
_MISSING = object()


def _yaml_path(path: Path) -> Path:
    return (*_YAML.get(str(path[0]), path[:1]), *path[1:])


def _attributes(path: Path) -> tuple[str, ...]:
    """The other way round: the attributes of Config that lead to a key outside of `units`."""
    for attribute, names in _YAML.items():
        if path[: len(names)] == names:
            return (attribute, *(str(part) for part in path[len(names) :]))
    return tuple(str(part) for part in path)


def _get(value: Any, attributes: tuple[str, ...]) -> Any:
    return functools.reduce(getattr, attributes, value)


def _replaced(value: Any, attributes: tuple[str, ...], new: Any) -> Any:
    if not attributes:
        return new
    inner = _replaced(getattr(value, attributes[0]), attributes[1:], new)
    return dataclasses.replace(value, **{attributes[0]: inner})


def _changes(old: Mapping[Path, Any], new: Mapping[Path, Any], prefix: Path) -> Iterator[Change]:
    for path in [*old, *(path for path in new if path not in old)]:
        before, after = old.get(path, _MISSING), new.get(path, _MISSING)
        if before != after:
            secret = "env" in path
            reload = _class_of(path, "units" if prefix else "")
            yield Change(dotted(prefix + path), _words(before, secret), _words(after, secret), reload)


def _words(value: Any, secret: bool) -> str:
    if value is _MISSING or value is None:
        return "nothing"
    if secret:
        return "(not shown)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(str(item) for item in value) + "]"
    return '""' if value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def _of(changes: list[Change], reload: Reload) -> tuple[Change, ...]:
    return tuple(change for change in changes if change.reload is reload)
