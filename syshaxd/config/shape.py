"""From the tree of the files to plain data in the schema's one canonical shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from syshaxd.errors import Problem

from .nodes import Map, Node, Path, Scalar, Sequence, dotted, place
from .quantities import parse
from .schema import Schema, is_section, sub

_ROLES = {"gpu": "accelerator", "npu": "accelerator", "cpu": "cpu"}


def problem(root: Node, path: Path, message: str, key: bool = False) -> Problem:
    """A fault at a path, placed at its value (with `key`: its key)."""
    mark = place(root, path, key)
    return Problem(message, mark.file, mark.line, mark.column, dotted(path))


def canonical(root: Node) -> tuple[Node, list[Problem]]:
    """Second spellings moved to where they belong: services.gpu and .cpu to units, args to extra_args, a list of models
    to models.served."""
    problems: list[Problem] = []
    if not isinstance(root, Map):
        return root, problems
    for name in ("cpu", "gpu"):  # each is put in front
        root = _move_unit(root, name, problems)
    root = _named_models(root, problems)
    return _rename_args(root, problems), problems


def _move_unit(root: Map, name: str, problems: list[Problem]) -> Map:
    services = root.items.get("services")
    if not isinstance(services, Map) or name not in services.items:
        return root
    units = root.items.get("units", Map(services.mark))
    if isinstance(units, Scalar) and units.value is None and not units.bad:
        units = Map(services.mark)
    rest = _without(services, name)
    if not isinstance(units, Map):
        return _with(root, "services", rest)
    if name in units.items:
        message = f"found services.{name} besides units.{name} ({units.keys[name]}); they mean the same, keep one"
        problems.append(problem(root, ("services", name), message, key=True))
        return _with(root, "services", rest)
    keys = {name: services.keys[name], **units.keys}
    moved = Map(units.mark, keys, {name: services.items[name], **units.items})
    return _with(_with(root, "services", rest), "units", moved, services.keys[name])


def _named_models(root: Map, problems: list[Problem]) -> Map:
    """Models as a list, or by name beside models.default, to models.served; the default is the one that says so, or the
    first of a list."""
    models = root.items.get("models")
    if isinstance(models, Sequence):
        return _with(root, "models", _listed_models(root, models, problems))
    if not isinstance(models, Map):
        return root
    served: Node = models.items.get("served", Map(models.mark))
    for name, node in models.items.items():
        if isinstance(node, Map) and name != "served" and isinstance(served, Map):
            served = _with(served, name, node, models.keys[name])
            models = _with(_without(models, name), "served", served, models.keys[name])
    return _with(root, "models", models)


def _listed_models(root: Map, models: Sequence, problems: list[Problem]) -> Map:
    served = Map(models.mark)
    default: Scalar | None = None
    for index, model in enumerate(models.items):
        name = model.items.get("name") if isinstance(model, Map) else None
        if not isinstance(model, Map) or not isinstance(name, Scalar) or not name.text or name.text in served.items:
            message = "found a model without a name of its own; each needs one: models: [{name: m, units: [gpu]}]"
            problems.append(problem(root, ("models", index), message))
            continue
        wanted = model.items.get("default")
        if isinstance(wanted, Scalar) and wanted.value is True or default is None:
            default = name
        served = _with(served, name.text, _without(_without(model, "name"), "default"), name.mark)
    made = Map(models.mark, {"served": models.mark}, {"served": served})
    return _with(made, "default", default, default.mark) if default is not None else made


def _rename_args(root: Map, problems: list[Problem]) -> Map:
    units = root.items.get("units")
    if not isinstance(units, Map):
        return root
    items = dict(units.items)
    for name, unit in units.items.items():
        if not isinstance(unit, Map) or "args" not in unit.items:
            continue
        if "extra_args" in unit.items:
            message = "found args besides extra_args; they mean the same, keep one"
            problems.append(problem(root, ("units", name, "args"), message, key=True))
            items[name] = _without(unit, "args")
        else:
            items[name] = _with(_without(unit, "args"), "extra_args", unit.items["args"], unit.keys["args"])
    return _with(root, "units", replace(units, items=items))


def _without(node: Map, name: str) -> Map:
    keys = {key: mark for key, mark in node.keys.items() if key != name}
    return Map(node.mark, keys, {key: node.items[key] for key in keys})


def _with(node: Map, name: str, value: Node, mark: Any = None) -> Map:
    keys = {**node.keys, name: node.keys.get(name, mark)}
    return Map(node.mark, keys, {**node.items, name: value})


def plain(node: Node, schema: Schema | None) -> Any:
    """Python data for the schema check: durations in seconds, sizes in bytes, numbers as text where text is asked for.

    Values that were complained about are left out; an empty section is an empty dict.
    """
    if isinstance(node, Map):
        items = node.items.items()
        return {name: plain(child, sub(schema, name)) for name, child in items if not _is_bad(child)}
    if isinstance(node, Sequence):
        return [plain(child, sub(schema, 0)) for child in node.items if not _is_bad(child)]
    if node.value is None:
        return {} if is_section(schema) else None
    return _typed(node, schema or {})


def _is_bad(node: Node) -> bool:
    return isinstance(node, Scalar) and node.bad


def _typed(node: Scalar, schema: Schema) -> Any:
    value = node.value
    if schema.get("x-text"):
        return node.text
    if schema.get("type") == "string" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return node.text
    if "x-unit" in schema and isinstance(value, str):
        try:
            return parse(schema["x-unit"], value)
        except ValueError:
            return value  # the schema's pattern refuses it, with the place
    return value


def bad_paths(node: Node, path: Path = ()) -> set[Path]:
    """Where values were complained about already."""
    if isinstance(node, Scalar):
        return {path} if node.bad else set()
    pairs: list[tuple[Any, Node]] = list(node.items.items() if isinstance(node, Map) else enumerate(node.items))
    return set().union(*(bad_paths(child, path + (part,)) for part, child in pairs))


def infer(data: dict[str, Any]) -> dict[str, Any]:
    """What may be left out: a unit's role where its name tells it, its model and name, an external unit's URL."""
    models = data.get("models", {})
    units = {name: _infer_unit(name, dict(unit), models) for name, unit in data.get("units", {}).items()}
    return {**data, "units": units}


def _infer_unit(name: str, unit: dict[str, Any], models: dict[str, Any]) -> dict[str, Any]:
    if name in _ROLES:
        unit.setdefault("role", _ROLES[name])
    if unit.get("backend") == "external":
        if unit.get("port") and not unit.get("url"):
            host = unit.get("host", "127.0.0.1")
            unit["url"] = f"http://{f'[{host}]' if ':' in host else host}:{unit['port']}"
    else:
        unit["model_path"] = unit.get("model_path") or models.get("path", "")
    listed = [model for model, said in models.get("served", {}).items() if name in said.get("units", ())]
    unit["served_name"] = unit.get("served_name") or (listed or [models.get("default", "")])[0]
    return unit
