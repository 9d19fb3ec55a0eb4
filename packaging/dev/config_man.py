"""Write syshax.yaml(5) from the configuration's JSON Schema. `make manuals` runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

HEAD = r""".TH SYSHAX.YAML 5 "" "sysHAX" "File formats"
.SH NAME
syshax.yaml \- configuration of the sysHAX daemon
.SH SYNOPSIS
.I /etc/syshax/*.yaml
.SH DESCRIPTION
.B syshaxd
reads
.I syshax.yaml
first, then the other
.I *.yaml
files of the folder by name. Maps merge, lists replace.
.B syshax config
.I KEY VALUE
writes
.IR zz-local.yaml ,
which is read last.
.PP
The files are read strictly: unknown and repeated keys, words such as
.B on
and
.B yes
for truth values, and numbers with colons are errors, each reported with file, line and column.
.B syshax check-config
tests the files without touching the service,
.B systemctl reload syshaxd
applies them. A bad configuration changes nothing.
.PP
Sizes are bytes or carry a unit (128MiB, 1GB), durations seconds or carry one (500ms, 5m).
.PP
The words after each key say when a change takes effect:
.B at once
on reload,
.B replaces the unit
(one unit at a time, while the others serve), or
.B at the next restart
of the daemon.
.SH KEYS
"""
TAIL = r""".SH EXAMPLES
.I /usr/share/doc/sysHAX/examples
holds complete configurations for NVIDIA and Ascend accelerators, CPUs only, and servers started elsewhere.
.SH SEE ALSO
.BR syshax (1),
.BR syshaxd (8)
"""
EFFECT = {"now": "at once", "unit": "replaces the unit", "restart": "at the next restart"}


def escaped(text: str) -> str:
    """Text that troff prints as it is."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return "\\&" + text if text.startswith((".", "'")) else text


def kind(schema: dict[str, Any]) -> str:
    """The values a key takes, in words."""
    if "enum" in schema:
        return " | ".join(value if isinstance(value, str) and value else json.dumps(value) for value in schema["enum"])
    if "x-unit" in schema:
        return str(schema["x-unit"])
    types = schema.get("type", "value")
    return " | ".join(types) if isinstance(types, list) else str(types)


def entry(path: str, schema: dict[str, Any]) -> str:
    """One key."""
    facts = [kind(schema)]
    if schema.get("default") not in (None, "", [], {}):
        facts.append(f"default {json.dumps(schema['default']).strip(chr(34))}")
    if "x-reload" in schema:
        facts.append(EFFECT[schema["x-reload"]])
    return f".TP\n.B {escaped(path)}\n{escaped(schema.get('description', ''))}\n({escaped('; '.join(facts))})\n"


def entries(path: str, schema: dict[str, Any]) -> Iterator[str]:
    """All keys below a path, in the schema's order."""
    if "x-alias" in schema:
        yield f".TP\n.B {escaped(path)}\nAnother spelling of\n.BR {escaped(schema['x-alias'])} .\n"
        return
    children = dict(schema.get("properties", {}))
    others = schema.get("additionalProperties")
    if isinstance(others, dict) and "properties" in others:
        children["NAME"] = others
    if not children:
        yield entry(path, schema)
    elif path:
        yield f".SS {escaped(path)}\n{escaped(schema.get('description', ''))}\n"
    nested = [name for name, child in children.items() if "properties" in child or "NAME" == name]
    for name in [name for name in children if name not in nested] + nested:
        yield from entries(f"{path}.{name}" if path else name, children[name])


def manual(schema: str) -> str:
    """syshax.yaml(5) from the schema's text."""
    return HEAD + "".join(entries("", json.loads(schema))) + TAIL
