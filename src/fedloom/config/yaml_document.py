"""Read YAML or JSON with the place of every value, and collect mistakes instead of raising them.

Numbers follow YAML 1.2 and JSON (`3e-4` is a number, `yes` is text). Anchors, aliases, tags of other types
and repeated keys are refused: an experiment is plain data, and each value is written where it is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml
from yaml.composer import ComposerError

from fedloom.config.old_spellings import current_keys
from fedloom.system.terminal import one_line

KeyPath = tuple[str | int, ...]

MAX_BYTES = 10_000_000
"""Most bytes of a file that is read."""
MAX_CHARACTERS = 200_000
"""Most characters of a document; so many take some seconds to read. The largest bundled recipe has 5,000."""
MAX_DEPTH = 20
LONGEST_KEY = 400


class Place(NamedTuple):
    """A place in a file, with line and column from 1, or an override (line 0)."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


class Mistake(NamedTuple):
    """A mistake that the user has to correct: its place, and what is wrong."""

    place: Place
    message: str

    def __str__(self) -> str:
        return one_line(f"{self.place}: {self.message}")


@dataclass(frozen=True)
class Document:
    """A value read from text, with the place of every key and value in it and the mistakes of reading it.

    Attributes:
        source: The file's name as the user wrote it.
        value: Mappings, lists, text, numbers, booleans and None.
        keys: Key path → place of the key.
        values: Key path → place of the value.
        mistakes: What could not be read.
    """

    source: str
    value: Any
    keys: Mapping[KeyPath, Place] = field(default_factory=dict)
    values: Mapping[KeyPath, Place] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()

    def place(self, path: KeyPath, *, of_key: bool = False) -> Place:
        """Return the place of `path`, or of the nearest path around it."""
        place = (self.keys.get(path) if of_key else None) or self.values.get(path)
        return place or (self.place(path[:-1]) if path else Place(self.source, 1, 1))


def dotted(path: KeyPath) -> str:
    """Return a key path as text.

    Example:
        >>> dotted(("methods", 2)), dotted(("train", "lr"))
        ('methods[2]', 'train.lr')
    """
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


_BREAKS = "\r\n\x85\u2028\u2029"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars and tabs of YAML 1.2, without anchors, and with bounded nesting."""

    depth = 0

    def scan_to_next_token(self) -> None:
        super().scan_to_next_token()
        # Tabs may separate tokens, end lines and indent JSON, but not indent YAML's blocks.
        while self.peek() == "\t":
            length = self._count_blanks()
            if self.allow_simple_key and not self.flow_level and self.peek(length) not in f"{_BREAKS}#\0":
                return
            self.forward(length)
            super().scan_to_next_token()

    def scan_plain_spaces(self, indent: int, start_mark: yaml.Mark) -> list[str] | None:
        blanks = self.prefix(self._count_blanks())
        if "\t" not in blanks:
            return super().scan_plain_spaces(indent, start_mark)
        self.forward(len(blanks))
        return super().scan_plain_spaces(indent, start_mark) if self.peek() in _BREAKS else [blanks]

    def _count_blanks(self) -> int:
        length = 0
        while self.peek(length) in " \t":
            length += 1
        return length

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "anchor", None):
            problem = "anchors and aliases (& and *) are not allowed; write the value out"
            raise ComposerError(None, None, problem, event.start_mark)
        if self.depth == MAX_DEPTH:
            raise ComposerError(None, None, f"nested more than {MAX_DEPTH} deep", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {}
_TAG = "tag:yaml.org,2002:"
_RESOLVERS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]{1,30}", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
for _name, (_pattern, _first) in _RESOLVERS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _whole_characters(text: str) -> str:
    """Return a text in which the two escapes of a surrogate pair, JSON's form of characters such as emoji, are one character."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


_SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda _: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": int,
    "float": _float,
    "str": _whole_characters,
}


class _Reader:
    """A reader that turns nodes into values, and collects their places and mistakes."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.keys: dict[KeyPath, Place] = {}
        self.values: dict[KeyPath, Place] = {}
        self.mistakes: list[Mistake] = []

    def place(self, mark: Any) -> Place:
        return Place(self.source, mark.line + 1, mark.column + 1)

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.values[path] = self.place(node.start_mark)
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
            try:
                return _SCALARS[kind](node.value)
            except (KeyError, ValueError):
                pass
        self.mistakes.append(Mistake(self.values[path], f"{dotted(path)} cannot be read as {node.tag}"))
        return None

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = self.place(key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                self.mistakes.append(Mistake(place, "a key must be a single word"))
                continue
            name = _whole_characters(key_node.value)
            key = (*path, name)
            if key in self.keys:
                message = f"{dotted(key)} is given twice; the first is on line {self.keys[key].line}"
                self.mistakes.append(Mistake(place, message))
                continue
            self.keys[key] = place
            values[name] = self.value(value_node, key)
        return values


def read_document(text: str, source: str) -> Document:
    """Read one YAML or JSON document.

    Args:
        text: The document, at most 200,000 characters.
        source: The name of the document in places.

    Returns:
        The document. Where the text cannot be read at all, its value is None and `mistakes` has the reason.

    Example:
        >>> document = read_document("train:\\n  lr: 3e-4\\n", "mine.yaml")
        >>> document.value, str(document.place(("train", "lr")))
        ({'train': {'lr': 0.0003}}, 'mine.yaml:2:7')
    """
    reader = _Reader(source)
    if len(text) > MAX_CHARACTERS:
        return _unreadable(
            Place(source, 1, 1), f"longer than {MAX_CHARACTERS} characters; no experiment is so long"
        )
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = reader.place(mark) if mark else Place(source, 1, 1)
        if "'\\t'" in str(error.problem):
            return _unreadable(place, "the line is indented by a tab; YAML is indented by spaces")
        return _unreadable(place, ", ".join(part for part in (error.context, error.problem) if part))
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        column = error.position - before.rfind("\n")
        place = Place(source, before.count("\n") + 1, column)
        return _unreadable(place, f"character {error.character!r} is not allowed")
    value = None if node is None else reader.value(node, ())
    return Document(source, value, reader.keys, reader.values, tuple(reader.mistakes))


def _unreadable(place: Place, message: str) -> Document:
    return Document(place.source, None, mistakes=(Mistake(place, message),))


def apply_override(document: Document, text: str, is_text: Callable[[KeyPath], bool]) -> Document:
    """Set one value of a document from `key.path=value`.

    Args:
        document: The document, which is not changed itself.
        text: The change, for example `train.lr=3e-4` or `methods=[zero-shot, fedavg]`.
        is_text: A function that returns whether a key takes text, so that `name=2024` needs no quotes.

    Returns:
        The changed document, in which the place of the new value is `--set key.path`.
    """
    path, branch = parse_override(text, is_text)
    return (
        replace_at(document, path, branch)
        if not branch.mistakes
        else _with_mistakes(document, *branch.mistakes)
    )


def parse_override(text: str, is_text: Callable[[KeyPath], bool]) -> tuple[KeyPath, Document]:
    """Parse `key.path=value` into a path and a document, which has the mistakes; see `apply_override`."""
    key, equals, raw = text.partition("=")
    if len(key) > LONGEST_KEY or key.count(".") >= MAX_DEPTH:
        message = f"a key has at most {LONGEST_KEY} characters and {MAX_DEPTH} parts"
        return (key[:LONGEST_KEY],), _unreadable(Place(f"--set {key[:LONGEST_KEY]}…"), message)
    path: KeyPath = tuple(key.strip().split("."))
    place = Place(f"--set {key.strip()}")
    if not equals or not all(path):
        message = "must look like key=value, for example --set train.lr=3e-4"
        return path, _unreadable(Place(f"--set {text[:LONGEST_KEY]}"), message)
    parsed = read_document(raw, place.source)
    value = raw.strip() if isinstance(parsed.value, bool | int | float) and is_text(path) else parsed.value
    places = dict.fromkeys(parsed.values, place)
    mistakes = tuple(Mistake(place, mistake.message) for mistake in parsed.mistakes)
    return path, Document(place.source, value, places, places, mistakes)


def subdocument(document: Document, path: KeyPath) -> Document:
    """Return the value at a path as a document of its own, with its places."""
    value = document.value
    for key in path:
        value = value[key]
    keys, values = (
        {inner[len(path) :]: place for inner, place in places.items() if inner[: len(path)] == path}
        for places in (document.keys, document.values)
    )
    return Document(document.source, value, keys, values)


def subdocuments(document: Document) -> dict[str | int, Document]:
    """Return the subdocument of every key or index of the outermost value, in one pass."""
    value = document.value
    keys: dict[str | int, dict[KeyPath, Place]] = {}
    values: dict[str | int, dict[KeyPath, Place]] = {}
    for places, target in ((document.keys, keys), (document.values, values)):
        for path, place in places.items():
            if path:
                target.setdefault(path[0], {})[path[1:]] = place
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        key: Document(document.source, item, keys.get(key, {}), values.get(key, {})) for key, item in inner
    }


def without_keys(document: Document, names: Collection[str]) -> Document:
    """Return a document without some of its outermost keys."""
    if not isinstance(document.value, dict):
        return document
    value = {key: inner for key, inner in document.value.items() if key not in names}
    keys, values = (
        {path: place for path, place in places.items() if not path or path[0] not in names}
        for places in (document.keys, document.values)
    )
    return Document(document.source, value, keys, values, document.mistakes)


def rename_keys(document: Document, names: Mapping[str, str]) -> Document:
    """Return a document with new names for some of its outermost keys, in the same places; see `current_keys`."""
    if not isinstance(document.value, dict) or not names.keys() & document.value.keys():
        return document
    replaced = {old: new for old, new in names.items() if new not in document.value}
    keys, values = (
        {
            (replaced.get(str(path[0]), path[0]), *path[1:]) if path else path: place
            for path, place in places.items()
        }
        for places in (document.keys, document.values)
    )
    value = current_keys(document.value, names)
    return Document(document.source, value, keys, values, document.mistakes)


def replace_at(document: Document, path: KeyPath, branch: Document) -> Document:
    """Return a document whose value at a path is replaced by another document, with the places of that."""
    try:
        changed = _with(document.value, path, branch.value)
    except TypeError:
        message = f"{dotted(path[:-1])} has no keys; set it as a whole, as in --set {path[0]}=[a, b]"
        return _with_mistakes(document, Mistake(branch.place(()), message))
    begins = branch.place(())
    around = {path[:end]: begins for end in range(1, len(path)) if path[:end] not in document.values}
    keys, values = (
        {other: where for other, where in old.items() if other[: len(path)] != path}
        | around
        | {path + below: where for below, where in new.items()}
        for old, new in ((document.keys, branch.keys), (document.values, branch.values))
    )
    return Document(document.source, changed, keys, values, document.mistakes)


def _with_mistakes(document: Document, *mistakes: Mistake) -> Document:
    return Document(
        document.source, document.value, document.keys, document.values, (*document.mistakes, *mistakes)
    )


def _with(value: Any, path: KeyPath, new: Any) -> Any:
    """Return `value` with `new` at `path`; missing mappings on the way are added."""
    if not path:
        return new
    if value is not None and not isinstance(value, dict):
        raise TypeError
    inner = value or {}
    return {**inner, path[0]: _with(inner.get(path[0]), path[1:], new)}
