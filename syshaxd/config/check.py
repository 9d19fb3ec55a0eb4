"""The tree against the JSON Schema: every fault, with its place, what was found and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from syshaxd.errors import Problem

from .nodes import Node, Path, Scalar, dotted, find
from .schema import ANY_NAME, Schema, allowed, at, children, leaves, schema
from .shape import problem

if TYPE_CHECKING:
    import jsonschema

# Keys of the first sysHAX and words people try, and what they are called here.
_RENAMED = {
    "system.request_timeout": "limits.request_timeout",
    "system.max_queue_size": "limits.max_queue",
    "decider.auto_pd_offload": "pd.auto_offload",
    "decider.cpu_max_batch_size": "scheduler.threshold.cpu_max_num_seqs",
    "system": "limits",
    "decider": "scheduler.decider, and pd.auto_offload for what was decider.auto_pd_offload",
    "heartbeat": "units.NAME.health",
    "conductor": "services.conductor",
    "gpu": "units.gpu",
    "cpu": "units.cpu",
    "npu": "units.npu",
    "host": "services.conductor.host",
    "port": "services.conductor.port",
    "model": "models.default",
}


def check(root: Node, data: Any) -> tuple[list[Problem], set[Path]]:
    """Every fault of `data` (the plain form of `root`), and the paths at fault."""
    import jsonschema  # here, because it takes longer to import than most verbs of the CLI take to run

    problems: list[Problem] = []
    paths: set[Path] = set()
    for error in jsonschema.Draft7Validator(schema()).iter_errors(data):
        for path, message, on_key in _explain(error, root):
            if path in paths:
                continue  # a value of the wrong type breaks several rules; one line is enough
            problems.append(problem(root, path, message, on_key))
            paths.add(path)
    return problems, paths


def _explain(error: "jsonschema.ValidationError", root: Node) -> Iterator[tuple[Path, str, bool]]:
    """(path, message, whether the key rather than the value is at fault) of each fault one schema error stands for."""
    path: Path = tuple(error.absolute_path)
    rule = cast(Schema, error.schema)
    if "propertyNames" in error.absolute_schema_path:
        yield path + (str(error.instance),), _bad_name(path, str(error.instance)), True
    elif error.validator == "additionalProperties":
        known = children(rule)
        for name in cast(dict[str, Any], error.instance):
            if name not in known or "x-alias" in rule["properties"][name]:
                yield path + (name,), _unknown(path, name, known), True
    else:
        yield path, f"found {_written(root, path, error.instance)}; allowed is {_allowed(path, error)}", False


def _written(root: Node, path: Path, value: Any) -> str:
    """A value as the file says it: 1ms, not 0.001."""
    node = find(root, path)
    return node.text if isinstance(node, Scalar) and isinstance(value, (int, float)) and node.text else found(value)


def _allowed(path: Path, error: "jsonschema.ValidationError") -> str:
    text = allowed(cast(Schema, error.schema))
    if error.validator == "enum" and isinstance(error.instance, str):
        words = [str(value) for value in cast(list[Any], error.validator_value) if value]
        return text + _did_you_mean(error.instance, words)
    if error.validator == "type" and isinstance(error.instance, list) and path == ("services", "gpu"):
        return text + "; several accelerator units are several names under units"
    return text


def _bad_name(path: Path, name: str) -> str:
    if path == ("units",):
        return (
            f"found the unit name {found(name)}; allowed is a lower-case letter, then up to 31 lower-case letters, "
            "digits, _ or -"
        )
    parent = at(path) or {}
    rule = parent.get("propertyNames", {})
    if "enum" in rule:
        return f"found the name {found(name)}; allowed is {allowed(rule)}{_did_you_mean(name, rule['enum'])}"
    return f"found the name {found(name)}; allowed are letters, digits and _, no digit first"


def _unknown(path: Path, name: str, known: Sequence[str]) -> str:
    key = dotted(path + (name,))
    if key in _RENAMED:
        return f"unknown key; it is called {_RENAMED[key]} here"
    close = difflib.get_close_matches(name, known, 1, 0.6)
    if close:
        return f"unknown key (did you mean {close[0]}?)"
    home = _elsewhere(name)
    if home:
        return f"unknown key here (did you mean {home}?)"
    return f"unknown key; known here: {', '.join(known)}"


def _elsewhere(name: str) -> str | None:
    homes = [leaf.path for leaf in leaves() if leaf.path[-1] == name]
    return dotted(homes[0]) if len(homes) == 1 else None


def _did_you_mean(word: str, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(word.lower(), words, 1, 0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def found(value: Any) -> str:
    """A value in words, short enough for one line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = value if len(value) <= 60 else value[:57] + "..."
        return '"' + "".join(char if char.isprintable() else "?" for char in text) + '"'
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a section"
    return str(value)


def suggest_key(path: Path) -> str:
    """For a dotted key that does not exist: what may have been meant, or ""."""
    names = [dotted(leaf.path) for leaf in leaves()]
    wanted = dotted(path)
    if len(path) > 1 and path[0] == "units":
        names = [name.replace(ANY_NAME, str(path[1]), 1) for name in names]
    close = difflib.get_close_matches(wanted, names, 1, 0.6)
    home = _elsewhere(str(path[-1])) if path else None
    best = close[0] if close else home
    return f" (did you mean {best}?)" if best else ""
