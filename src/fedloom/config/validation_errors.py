"""Check a document against a pydantic model, and report all mistakes at once with what would be right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache
from math import isfinite
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from fedloom.config.yaml_document import Document, KeyPath, Mistake, dotted, rename_keys
from fedloom.system.errors import UserError
from fedloom.system.terminal import one_line

MAX_LISTED = 20
"""Maximum number of mistakes that are listed one by one; the others are counted."""
GUESSED = 100
"""Most mistakes of a document for which a correction is suggested."""
VERY_NEAR = 0.85
"""Similarity of words, 0..1, above which one is most likely the other with a letter too many, too few or swapped."""
LONGEST_WORD = 100
"""Most characters of a word that may be a mistyped name."""

Schema = Mapping[str, Any]
Model = TypeVar("Model", bound=BaseModel)


class Conflict(NamedTuple):
    """A contradiction between values, each of which is valid by itself.

    Attributes:
        path: The key that the user should look at first.
        message: What is wrong and what would be right, with the key.
        others: Other keys that the rule reads; if one of them is itself invalid, the conflict is not reported.
        of_value: Whether the error points at the value rather than the key.
    """

    path: KeyPath
    message: str
    others: tuple[KeyPath, ...] = ()
    of_value: bool = False


def conflict_error(conflicts: Sequence[Conflict]) -> PydanticCustomError:
    """Return the error with which a model's validator reports conflicts."""
    error_text = "; ".join(conflict.message for conflict in conflicts).replace("{", "(").replace("}", ")")
    return PydanticCustomError("conflict", error_text, {"conflicts": list(conflicts)})  # type: ignore[arg-type]


def build_model(model: type[Model], document: Document) -> Model:
    """Build a model from a document.

    Raises:
        UserError: The document has mistakes; the message has one line for each, in the order of the file.
    """
    built, mistakes = check_document(model, document)
    if mistakes or built is None:
        raise UserError(error_text(document.source, mistakes))
    return built


def check_document(model: type[Model], document: Document) -> tuple[Model | None, list[Mistake]]:
    """Build a model from a document, and collect every mistake in it.

    Pydantic stops at the first layer of mistakes. So each pass replaces wrong values by defaults and validates again,
    until there are no new mistakes.

    Returns:
        The model without the wrong values, and the mistakes; the model is None where too little was valid.
    """
    document = rename_keys(document, getattr(model, "OLD_KEYS", {}))
    mistakes, wrong = list(document.mistakes), set[KeyPath]()
    unread = {mistake.place for mistake in mistakes if mistake.place.line}
    value = document.value
    if value is None and not mistakes:
        mistakes.append(Mistake(document.place(()), "the file is empty; write at least `name: my-run`"))
    value = {} if value is None else value
    built: Model | None = None
    while built is None:
        try:
            built = model.model_validate(value)
        except ValidationError as error:
            new, paths = _mistakes(model, document, value, error, wrong)
            mistakes += [mistake for mistake in new if mistake.place not in unread]
            if not paths - wrong:
                break
            wrong |= paths
            value = _without(value, paths)
    return built, mistakes


def error_text(source: str, mistakes: Sequence[Mistake]) -> str:
    """Format mistakes for the user: their number, then the first of them, one a line, in the order of the file."""
    # Lines of the file first, from the top; overrides (line 0) after them.
    ordered = sorted(mistakes, key=lambda mistake: (not mistake.place.line, mistake.place[1:]))
    count = "one mistake" if len(ordered) == 1 else f"{len(ordered):,} mistakes"
    more = [f"and {len(ordered) - MAX_LISTED:,} more"] if len(ordered) > MAX_LISTED else []
    return "\n  ".join([f"{count} in {one_line(source)}", *map(str, ordered[:MAX_LISTED]), *more])


def _mistakes(
    model: type[BaseModel], document: Document, value: Any, error: ValidationError, wrong: set[KeyPath]
) -> tuple[list[Mistake], set[KeyPath]]:
    """Return the mistakes of one pass, and the keys to leave out in the next."""
    schema, mistakes, paths = schema_of(model), [], set[KeyPath]()
    rows = {_place(schema, row["loc"]): row for row in reversed(error.errors(include_url=False))}
    around = {path[:length] for path in rows for length in range(len(path))}
    for path, row in reversed(rows.items()):
        if row["type"] == "conflict":
            for path, message, others, of_value in row.get("ctx", {})["conflicts"]:
                if not any(key[:end] in wrong for key in (path, *others) for end in range(len(key) + 1)):
                    mistakes.append(Mistake(document.place(path, of_key=not of_value), message))
            continue
        if path in around:
            continue  # a list whose items are wrong also counts as too short
        unknown = row["type"] == "extra_forbidden"
        # Guesses take time, and nobody reads a hundred of them.
        message = explain_error(schema, path, row, value, guess=len(mistakes) < GUESSED)
        mistakes.append(Mistake(document.place(path, of_key=unknown), message))
        # A list with a bad item is left out whole, so that the places of its other items stay right.
        paths.add(path[: next((at for at, part in enumerate(path) if isinstance(part, int)), len(path))])
    return mistakes, paths


def _place(schema: Schema, path: KeyPath) -> KeyPath:
    """Return the key path of an error, without the names that pydantic gives to the members of a union."""
    for end in range(len(path)):
        options = schema_at(schema, path[:end]).get("anyOf", ())
        if sum(option.get("type") != "null" for option in options) > 1:
            return path[:end]
    return path


@cache
def schema_of(model: type[BaseModel]) -> Schema:
    """Return a model's JSON schema, which is computed once and must not be changed."""
    return model.model_json_schema()


def _without(value: Any, paths: Iterable[KeyPath]) -> Any:
    """Return a value without the keys at some paths."""
    below: dict[str | int, list[KeyPath]] = {}
    for path in paths:
        if not path or not isinstance(value, dict):
            return {}
        below.setdefault(path[0], []).append(path[1:])
    if not below:
        return value
    return {
        key: _without(inner, below.get(key, ()))
        for key, inner in value.items()
        if () not in below.get(key, ())
    }


def explain_error(
    schema: Schema,
    path: KeyPath,
    row: Mapping[str, Any],
    value: Any,
    *,
    above: KeyPath = (),
    guess: bool = True,
) -> str:
    """Return the message for one row of a `ValidationError`.

    Args:
        schema: The model's JSON schema.
        path: The key path of the row.
        row: One of `ValidationError.errors()`.
        value: The whole value that was checked.
        above: The key path of that value.
        guess: Whether to suggest the key that was likely meant in place of an unknown one.
    """
    key = dotted((*above, *path)) or "the experiment"
    if row["type"] == "extra_forbidden":
        here = list(_properties(schema, schema_at(schema, path[:-1])))
        meant = _meant_key(schema, path, here) if guess else None
        hint = f". Did you mean {dotted((*above, *meant))}?" if meant else "."
        if _nested(schema, path):  # as --set and grids write it
            hint = f". Did you mean {_nested(schema, path)}?"
        return f"{_shown((*above, *path))} is not a known key{hint} Allowed here: {', '.join(here)}"
    if row["type"] == "choice":
        return f"{key}: {row['msg']}"
    allowed = schema_at(schema, path)
    if row["type"] == "missing":
        return f"{key} is missing; it must be {describe_allowed(schema, allowed)}"
    for part in path:
        value = value[part]
    choices = [choice for choice in _choices(allowed) if isinstance(choice, str)]
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    if isinstance(value, float) and not isfinite(value):
        hint = ", and finite"
    return f"{key} is {_as_text(value)}, but must be {describe_allowed(schema, allowed)}{hint}"


def _nested(schema: Schema, path: KeyPath) -> str:
    """Return how a known key that was written with dots is written in a mapping, such as `train: {lr: …}`; else ""."""
    *sections, key = str(path[-1]).split(".")
    if not sections or not schema_at(schema, (*path[:-1], *sections, key)):
        return ""
    return "".join(f"{section}: {{" for section in sections) + f"{key}: …" + "}" * len(sections)


def _shown(path: KeyPath) -> str:
    """Return a key path as text, its last key in quotes if it is empty or has blanks or other characters that names lack."""
    last = str(path[-1])
    return dotted((*path[:-1], last if re.fullmatch(r"[\w.+-]+", last) else json.dumps(last)))


def choice_error(message: str) -> PydanticCustomError:
    """Return the error with which a field's validator reports a complete message of its own."""
    return PydanticCustomError("choice", message.replace("{", "(").replace("}", ")"))  # type: ignore[arg-type]


def nearest(word: str, choices: Sequence[str], least: float = 0.5) -> str | None:
    """Return the choice that was most likely meant, or None where no choice is near: no similarity, 0..1, is at least `least`.

    Example:
        >>> nearest("fedavgg", ["fedadam", "fedavg"]), nearest("x", ["fedavg"])
        ('fedavg', None)
    """
    best, nearest_choice = least, None
    for choice in choices if len(word) <= LONGEST_WORD else ():
        pair = SequenceMatcher(None, word.lower(), choice.lower())
        # The first two are quick upper bounds of the third.
        for bound in (pair.real_quick_ratio, pair.quick_ratio, pair.ratio):
            ratio = bound()
            if ratio < best or (nearest_choice is not None and ratio == best):
                break
        else:
            best, nearest_choice = ratio, choice
    return nearest_choice


def did_you_mean(word: str, choices: Sequence[str]) -> str:
    """Return `. Did you mean …?`, or nothing where no choice is near."""
    choice = nearest(word, choices)
    return f". Did you mean {choice}?" if choice else ""


def unknown_name(kind: str, name: str, allowed: Sequence[str]) -> str:
    """Return a message that `name` is not one of `allowed`, with the one that was likely meant.

    Example:
        >>> unknown_name("color", "gren", ["red", "green"])
        '"gren" is not a known color. Did you mean green? Allowed: red, green'
    """
    return f'"{name}" is not a known {kind}{did_you_mean(name, allowed) or "."} Allowed: {", ".join(allowed)}'


def _meant_key(schema: Schema, path: KeyPath, here: Sequence[str]) -> KeyPath | None:
    """Guess which key was meant: a very near word here, the same word elsewhere, a near word here, or one described by the word."""
    word, around = str(path[-1]).strip(), path[:-1]
    if (very_near := nearest(word, here, VERY_NEAR)) is not None:
        return (*around, very_near)
    descriptions = dict(key_descriptions(schema))
    elsewhere = [key for key in descriptions if key[-1] == word]
    if elsewhere:
        return elsewhere[0]
    near = nearest(word, here)
    if near:
        return (*around, near)
    words = set(word.lower().split("_"))
    described = [key for key, text in descriptions.items() if words <= _words(text)]
    return min(described, key=lambda key: key[:-1] != around, default=None)


def _words(text: str) -> set[str]:
    return set(text.lower().replace(",", " ").replace(".", " ").split())


def _resolved(schema: Schema, part: Schema) -> Schema:
    """Follow a reference to the definition of a section."""
    reference = part.get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else part


def _properties(schema: Schema, part: Schema) -> Mapping[str, Schema]:
    return _resolved(schema, part).get("properties", {})


def schema_at(schema: Schema, path: KeyPath) -> Schema:
    """Return the part of a JSON schema that describes `path`, or an empty one if there is none."""
    part: Schema = schema
    for key in path:
        inner = _resolved(schema, part)
        if isinstance(key, int):
            part = inner.get("items", {})
        else:
            part = inner.get("properties", {}).get(key) or inner.get("additionalProperties") or {}
    return part


def key_descriptions(schema: Schema, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Yield every key path of a JSON schema with its description, sections before their keys."""
    for key, part in _properties(schema, schema_at(schema, path)).items():
        yield (*path, key), part.get("description") or _resolved(schema, part).get("description", "")
        yield from key_descriptions(schema, (*path, key))


def _choices(part: Schema) -> list[Any]:
    if "anyOf" in part:
        return [choice for option in part["anyOf"] for choice in _choices(option)]
    return [part["const"]] if "const" in part else part.get("enum", [])


_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def describe_allowed(schema: Schema, part: Schema) -> str:
    """Return a description of the values that a part of a JSON schema allows.

    Example:
        >>> describe_allowed({}, {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]})
        'a number > 0 or null'
    """
    part = _resolved(schema, part)
    if "anyOf" in part:
        return " or ".join(describe_allowed(schema, option) for option in part["anyOf"])
    if "const" in part:
        return str(part["const"])
    if "enum" in part:
        return f"one of {', '.join(map(str, part['enum']))}"
    if part.get("type") == "object" and "properties" in part:
        return f"a mapping with keys from {', '.join(part['properties'])}"
    if part.get("type") == "object":
        upper = f", at most {part['maxProperties']} of them" if "maxProperties" in part else ""
        return f"a mapping from names to values{upper}"
    if part.get("type") == "array":
        upper = f", of at most {part['maxItems']} items" if "maxItems" in part else ""
        lower = ", and not empty" if part.get("minItems") else ""
        return f"a list, each item {describe_allowed(schema, part['items'])}{lower}{upper}"
    bounds = " and ".join(f"{sign} {part[bound]:g}" for bound, sign in _BOUNDS.items() if bound in part)
    return f"{_TYPES.get(part.get('type', ''), 'a plain value')} {bounds}".rstrip()


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}…"
