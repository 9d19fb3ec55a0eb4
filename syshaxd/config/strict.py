"""YAML text to a tree, read strictly. Built on PyYAML's parser; composing and typing are ours, because PyYAML's own
accept duplicate keys, lose the place of a value, and recurse as deep as the input says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from syshaxd.errors import Problem

from .nodes import Map, Mark, Node, Scalar, Sequence, dotted
from .scalars import AmbiguousError, resolve

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_NODES = 50_000  # aliases count each time they are used

_HINTS = (
    ("'\\t' that cannot start", "a tab; indent with spaces"),
    ("mapping values are not allowed", "a second ':' here; quote the value, or check the indentation"),
    ("could not find expected ':'", "a line without ':'; write KEY: VALUE"),
    ("expected <block end>", "indentation that fits no line above; align it with its neighbours"),
    ("unexpected end of stream", "a quote that is never closed"),
    ("but got '<stream end>'", "a [ or { that is never closed"),
    ("expected ',' or ']'", "something other than ',' or ']' inside a [list]"),
    ("expected ',' or '}'", "something other than ',' or '}' inside a {section}"),
    ("expected the node content", "no value where one has to stand"),
    ("that cannot start any token", "a character that no value may start with; quote the value"),
)


class _Stop(Exception):
    """Reading can't go on; the problem is already noted."""


def parse(file: str, data: bytes) -> tuple[Node | None, list[Problem]]:
    """The document in `data`, and every problem found. None: nothing in it, or not readable as YAML at all.

    `file` is the name shown in problems. Never raises on any input.
    """
    composer = _Composer(file)
    text = ""
    try:
        text = composer.decode(data)
        return composer.document(yaml.parse(text, Loader=yaml.SafeLoader)), composer.problems
    except yaml.MarkedYAMLError as err:
        composer.forget_path()
        at_end = "end of stream" in str(err.problem) or "<stream end>" in str(err.problem)
        mark = err.context_mark if at_end and err.context_mark else err.problem_mark
        composer.complain(composer.mark(mark), _explain(f"{err.problem or ''} {err.context or ''}"))
    except yaml.reader.ReaderError as err:
        message = f"found the unprintable character U+{_code(err.character):04X}"
        composer.complain(_offset(file, text, err.position), message)
    except (yaml.YAMLError, ValueError, OverflowError) as err:
        composer.complain(Mark(file), f"not YAML: {err}")
    except _Stop:
        pass
    return None, composer.problems


def _code(character: Any) -> int:
    return character if isinstance(character, int) else ord(str(character)[:1] or "\0")


def _explain(problem: str) -> str:
    hint = next((hint for part, hint in _HINTS if part in problem), "")
    return f"not YAML: found {hint}" if hint else f"not YAML: {' '.join(problem.split())}"


def _offset(file: str, text: str, position: int) -> Mark:
    before = text[:position]
    return Mark(file, before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1)


class _Composer:
    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self._anchors: dict[str, Node | None] = {}  # None: still open
        self._sizes: dict[int, int] = {}
        self._count = 0
        self._path: list[str | int] = []
        self._events: Iterator[yaml.Event] = iter(())

    def complain(self, mark: Mark, message: str) -> None:
        self.problems.append(Problem(message, mark.file, mark.line, mark.column, dotted(tuple(self._path))))

    def forget_path(self) -> None:
        """What follows is about the text, not about a key."""
        self._path.clear()

    def mark(self, mark: yaml.Mark | None) -> Mark:
        return Mark(self.file, mark.line + 1, mark.column + 1) if mark else Mark(self.file)

    def decode(self, data: bytes) -> str:
        if len(data) > MAX_BYTES:
            self.complain(Mark(self.file), f"found {len(data)} bytes; a file may have {MAX_BYTES}")
            raise _Stop
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as err:
            before = data[: err.start].decode("utf-8-sig")
            mark = _offset(self.file, before, len(before))
            self.complain(mark, f"found the byte 0x{data[err.start]:02x}; the file must be UTF-8")
            raise _Stop from err

    def document(self, events: Iterator[yaml.Event]) -> Node | None:
        """The only document of the stream."""
        self._events = events
        next(events)  # stream start
        if isinstance(next(events), yaml.StreamEndEvent):
            return None
        root = self._node(next(events), 0)
        next(events)  # document end
        extra = next(events)
        if not isinstance(extra, yaml.StreamEndEvent):
            self.complain(self.mark(extra.start_mark), "found a second document; a file holds one (drop the '---')")
        return root

    def _node(self, event: yaml.Event, depth: int) -> Node:
        mark = self.mark(event.start_mark)
        self._grow(1, mark)
        if depth > MAX_DEPTH:
            self.complain(mark, f"found more than {MAX_DEPTH} levels of nesting")
            raise _Stop
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, mark)
        self._check_tag(event, mark)
        anchor, before = getattr(event, "anchor", None), self._count
        if anchor:
            self._anchors[anchor] = None
        node = self._compose(event, mark, depth)
        if anchor:
            self._anchors[anchor] = node
            self._sizes[id(node)] = self._count - before + 1
        return node

    def _compose(self, event: yaml.Event, mark: Mark, depth: int) -> Node:
        if isinstance(event, yaml.MappingStartEvent):
            return self._map(mark, depth)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(mark, depth)
        assert isinstance(event, yaml.ScalarEvent)  # the only kind of value left
        return self._scalar(event, mark)

    def _grow(self, count: int, mark: Mark) -> None:
        self._count += count
        if self._count > MAX_NODES:
            self.complain(mark, f"found more than {MAX_NODES} values (aliases count each time they are used)")
            raise _Stop

    def _check_tag(self, event: yaml.Event, mark: Mark) -> None:
        tag = str(getattr(event, "tag", None) or "")
        if tag not in ("", "tag:yaml.org,2002:str"):
            short = tag.replace("tag:yaml.org,2002:", "!!")
            self.complain(mark, f"found the tag {short}; tags are not used here, drop it")

    def _alias(self, event: yaml.AliasEvent, mark: Mark) -> Node:
        if event.anchor not in self._anchors:
            self.complain(mark, f"found the alias *{event.anchor}, but no &{event.anchor} stands above it")
            return Scalar(mark, None, bad=True)
        node = self._anchors[event.anchor]
        if node is None:
            self.complain(mark, f"found the alias *{event.anchor} inside &{event.anchor} itself; it would never end")
            return Scalar(mark, None, bad=True)
        self._grow(self._sizes[id(node)], mark)
        return node

    def _sequence(self, mark: Mark, depth: int) -> Node:
        items: list[Node] = []
        event = next(self._events)
        while not isinstance(event, yaml.SequenceEndEvent):
            items.append(self._child(len(items), event, depth))
            event = next(self._events)
        return Sequence(mark, tuple(items))

    def _map(self, mark: Mark, depth: int) -> Node:
        keys: dict[str, Mark] = {}
        items: dict[str, Node] = {}
        event = next(self._events)
        while not isinstance(event, yaml.MappingEndEvent):
            at = self.mark(event.start_mark)
            name = self._key(self._node(event, depth + 1), event, at)
            value = self._child("?" if name is None else name, next(self._events), depth)
            if name is not None and name in keys:
                self.complain(at, f"found {name} a second time; it stands in line {keys[name].line} already, keep one")
            else:  # a bad key leaves a bad value, so that nothing is said to be missing here
                where = "?" if name is None else name
                keys[where] = at
                items[where] = Scalar(at, None, bad=True) if name is None else value
            event = next(self._events)
        return Map(mark, keys, items)

    def _child(self, part: str | int, event: yaml.Event, depth: int) -> Node:
        self._path.append(part)
        node = self._node(event, depth + 1)
        self._path.pop()
        return node

    def _key(self, node: Node, event: yaml.Event, mark: Mark) -> str | None:
        """The key's text, or None where it can't be one."""
        if not isinstance(node, Scalar):
            self.complain(mark, "found a list or a section as a key; a key is a word")
            return None
        if node.bad:
            return None
        if node.text == "<<" and isinstance(node.value, str) and getattr(event, "style", None) is None:
            self.complain(mark, "found the merge key <<, which is not used here; write the keys out")
            return None
        if node.value is None or isinstance(node.value, bool):
            self.complain(mark, f"found {node.text or 'nothing'} as a key; a key is a word (quote it if it is meant)")
            return None
        return node.text

    def _scalar(self, event: yaml.ScalarEvent, mark: Mark) -> Node:
        text = str(event.value)
        if any("\ud800" <= char <= "\udfff" for char in text):
            self.complain(mark, "found half of a surrogate pair (\\ud800-\\udfff); write the character itself")
            return Scalar(mark, None, "", bad=True)
        if event.style is not None or event.tag is not None:
            return Scalar(mark, text, text)
        try:
            return Scalar(mark, resolve(text), text)
        except AmbiguousError as err:
            self.complain(mark, f"found {err}")
            return Scalar(mark, None, text, bad=True)
