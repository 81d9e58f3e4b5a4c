"""Check a document against a pydantic model and report all mistakes at once, in words a user can act on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from fedloom.config.yaml_document import Document, KeyPath, Mistake, dotted, renamed
from fedloom.system.errors import UserError
from fedloom.system.terminal import one_line

LISTED = 20
"""Most mistakes that are listed one by one; the others are counted."""
GUESSED = 100
"""Most mistakes of a document for which a correction is suggested."""
LONGEST_WORD = 100
"""Most characters of a word that may be a mistyped name."""

Schema = Mapping[str, Any]
Model = TypeVar("Model", bound=BaseModel)


class Conflict(NamedTuple):
    """Values that are valid by themselves but not together.

    Attributes:
        path: The key the user should look at first.
        message: What is wrong and what would be right, naming the key.
        others: Keys the rule also looks at; where one of them is itself a mistake, the conflict is not reported.
        of_value: Whether the mistake stands at the key's value, not at the key.
    """

    path: KeyPath
    message: str
    others: tuple[KeyPath, ...] = ()
    of_value: bool = False


def refusal(conflicts: Sequence[Conflict]) -> PydanticCustomError:
    """Make the error by which a model's validator reports conflicts."""
    error_text = "; ".join(conflict.message for conflict in conflicts).replace("{", "(").replace("}", ")")
    return PydanticCustomError("conflict", error_text, {"conflicts": list(conflicts)})  # type: ignore[arg-type]


def resolve(model: type[Model], document: Document) -> Model:
    """Make a model from a document.

    Raises:
        UserError: One line per mistake, in the order of the file.
    """
    found, mistakes = check(model, document)
    if mistakes or found is None:
        raise UserError(error_text(document.source, mistakes))
    return found


def check(model: type[Model], document: Document) -> tuple[Model | None, list[Mistake]]:
    """Make a model from a document, or find every mistake in it.

    A model stops at the first layer of mistakes, so each pass removes what is wrong and tries again with
    defaults in its place, until nothing new is found.

    Returns:
        The model without the wrong values, and the mistakes; the model is None where too little was valid.
    """
    document = renamed(document, getattr(model, "OLD_KEYS", {}))
    mistakes, wrong = list(document.mistakes), set[KeyPath]()
    unread = {mistake.place for mistake in mistakes if mistake.place.line}
    value = document.value
    if value is None and not mistakes:
        mistakes.append(Mistake(document.place(()), "the file is empty; write at least `name: my-run`"))
    value = {} if value is None else value
    found: Model | None = None
    while found is None:
        try:
            found = model.model_validate(value)
        except ValidationError as error:
            new, paths = _mistakes(model, document, value, error, wrong)
            mistakes += [mistake for mistake in new if mistake.place not in unread]
            if not paths - wrong:
                break
            wrong |= paths
            value = _without(value, paths)
    return found, mistakes


def error_text(source: str, mistakes: Sequence[Mistake]) -> str:
    """Format mistakes as a user sees them: how many, then the first, one a line, in the order of the file."""
    # Lines of the file first, from the top; overrides (line 0) after them.
    ordered = sorted(mistakes, key=lambda mistake: (not mistake.place.line, mistake.place[1:]))
    count = "one mistake" if len(ordered) == 1 else f"{len(ordered):,} mistakes"
    more = [f"and {len(ordered) - LISTED:,} more"] if len(ordered) > LISTED else []
    return "\n  ".join([f"{count} in {one_line(source)}", *map(str, ordered[:LISTED]), *more])


def _mistakes(
    model: type[BaseModel], document: Document, value: Any, error: ValidationError, wrong: set[KeyPath]
) -> tuple[list[Mistake], set[KeyPath]]:
    """Return what one pass found, and the keys to leave out in the next."""
    schema, found, paths = schema_of(model), [], set[KeyPath]()
    rows = {_place(schema, row["loc"]): row for row in reversed(error.errors(include_url=False))}
    around = {path[:length] for path in rows for length in range(len(path))}
    for path, row in reversed(rows.items()):
        if row["type"] == "conflict":
            for path, message, others, of_value in row.get("ctx", {})["conflicts"]:
                if not any(key[:end] in wrong for key in (path, *others) for end in range(len(key) + 1)):
                    found.append(Mistake(document.place(path, of_key=not of_value), message))
            continue
        if path in around:
            continue  # a list whose items are wrong also counts as too short
        unknown = row["type"] == "extra_forbidden"
        # Guessing what was meant takes a while; nobody reads a hundred guesses.
        message = explain(schema, path, row, value, guess=len(found) < GUESSED)
        found.append(Mistake(document.place(path, of_key=unknown), message))
        # A list with a bad item is left out whole, so that the places of its other items stay true.
        paths.add(path[: next((at for at, part in enumerate(path) if isinstance(part, int)), len(path))])
    return found, paths


def _place(schema: Schema, path: KeyPath) -> KeyPath:
    """Return the key path of an error, without the names that pydantic gives to the members of a union."""
    for end in range(len(path)):
        options = schema_at(schema, path[:end]).get("anyOf", ())
        if sum(option.get("type") != "null" for option in options) > 1:
            return path[:end]
    return path


@cache
def schema_of(model: type[BaseModel]) -> Schema:
    """Return a model's JSON schema, made once; not to be changed."""
    return model.model_json_schema()


def _without(value: Any, paths: Iterable[KeyPath]) -> Any:
    """Return a value without what stands at some paths."""
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


def explain(
    schema: Schema,
    path: KeyPath,
    row: Mapping[str, Any],
    value: Any,
    *,
    above: KeyPath = (),
    guess: bool = True,
) -> str:
    """Explain one row of a `ValidationError`.

    Args:
        schema: The model's JSON schema.
        path: The key path of the row.
        row: One of `ValidationError.errors()`.
        value: The whole value that was checked.
        above: The key path at which that value stands.
        guess: Suggest which key was likely meant in place of an unknown one.
    """
    key = dotted((*above, *path)) or "the experiment"
    if row["type"] == "extra_forbidden":
        here = list(_properties(schema, schema_at(schema, path[:-1])))
        meant = _meant_key(schema, path, here) if guess else None
        hint = f". Did you mean {dotted((*above, *meant))}?" if meant else "."
        return f"{key} is not a known key{hint} Allowed here: {', '.join(here)}"
    if row["type"] == "choice":
        return f"{key}: {row['msg']}"
    wanted = schema_at(schema, path)
    if row["type"] == "missing":
        return f"{key} is missing; it must be {expected(schema, wanted)}"
    for part in path:
        value = value[part]
    choices = [choice for choice in _choices(wanted) if isinstance(choice, str)]
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    return f"{key} is {_shown(value)}, but must be {expected(schema, wanted)}{hint}"


def choice_error(message: str) -> PydanticCustomError:
    """Make the error by which a field's validator reports a complete message of its own."""
    return PydanticCustomError("choice", message.replace("{", "(").replace("}", ")"))  # type: ignore[arg-type]


def nearest(word: str, choices: Sequence[str]) -> str | None:
    """Return the likeliest intended one of `choices`, or None where none is near.

    Example:
        >>> nearest("fedavgg", ["fedadam", "fedavg"]), nearest("x", ["fedavg"])
        ('fedavg', None)
    """
    best, found = 0.5, None
    for choice in choices if len(word) <= LONGEST_WORD else ():
        pair = SequenceMatcher(None, word.lower(), choice.lower())
        # The first two are quick upper bounds of the third.
        for bound in (pair.real_quick_ratio, pair.quick_ratio, pair.ratio):
            ratio = bound()
            if ratio < best or (found is not None and ratio == best):
                break
        else:
            best, found = ratio, choice
    return found


def did_you_mean(word: str, choices: Sequence[str]) -> str:
    """Return `. Did you mean …?`, or nothing where no choice is near."""
    choice = nearest(word, choices)
    return f". Did you mean {choice}?" if choice else ""


def unknown(kind: str, name: str, allowed: Sequence[str]) -> str:
    """Return a message that `name` is none of `allowed`, and which of them was likely meant.

    Example:
        >>> unknown("color", "gren", ["red", "green"])
        '"gren" is not a known color. Did you mean green? Allowed: red, green'
    """
    return f'"{name}" is not a known {kind}{did_you_mean(name, allowed) or "."} Allowed: {", ".join(allowed)}'


def _meant_key(schema: Schema, path: KeyPath, here: Sequence[str]) -> KeyPath | None:
    """Guess a key: the same word elsewhere, a near word here, or one whose description has the words."""
    word, around = str(path[-1]), path[:-1]
    descriptions = dict(key_descriptions(schema))
    elsewhere = [key for key in descriptions if key[-1] == word]
    if elsewhere:
        return elsewhere[0]
    near = nearest(word, here)
    if near:
        return (*around, near)
    spoken = set(word.lower().split("_"))
    described = [key for key, text in descriptions.items() if spoken <= _words(text)]
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
    """Return the part of a JSON schema that describes `path`; empty where nothing does."""
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


def expected(schema: Schema, part: Schema) -> str:
    """Return in words which values a part of a JSON schema allows.

    Example:
        >>> expected({}, {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]})
        'a number > 0 or null'
    """
    part = _resolved(schema, part)
    if "anyOf" in part:
        return " or ".join(expected(schema, option) for option in part["anyOf"])
    if "const" in part:
        return str(part["const"])
    if "enum" in part:
        return f"one of {', '.join(map(str, part['enum']))}"
    if part.get("type") == "object" and "properties" in part:
        return f"a mapping with keys from {', '.join(part['properties'])}"
    if part.get("type") == "object":
        most = f", at most {part['maxProperties']} of them" if "maxProperties" in part else ""
        return f"a mapping from names to values{most}"
    if part.get("type") == "array":
        most = f", of at most {part['maxItems']} items" if "maxItems" in part else ""
        least = ", and not empty" if part.get("minItems") else ""
        return f"a list, each item {expected(schema, part['items'])}{least}{most}"
    bounds = " and ".join(f"{sign} {part[bound]:g}" for bound, sign in _BOUNDS.items() if bound in part)
    return f"{_TYPES.get(part.get('type', ''), 'a plain value')} {bounds}".rstrip()


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
