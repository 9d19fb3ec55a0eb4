"""The control socket's path out of configuration files, without judging them."""

from __future__ import annotations

from syshaxd.config import Source
from syshaxd.config.load import collect
from syshaxd.config.nodes import Scalar, find
from syshaxd.config.strict import parse


def peek_control_socket(source: Source) -> str | None:
    """`control_socket` of the last file that sets it; None where none does or nothing can be read."""
    found: str | None = None
    for name, data in _texts(source):
        root, _ = parse(name, data)
        node = find(root, ("control_socket",)) if root is not None else None
        if isinstance(node, Scalar) and isinstance(node.value, str):
            found = node.value
    return found


def _texts(source: Source) -> list[tuple[str, bytes]]:
    if source.embedded:
        return [(str(source), source.embedded.encode())]
    documents, _, _ = collect([source.path])
    return [(document.name, document.data) for document in documents]
