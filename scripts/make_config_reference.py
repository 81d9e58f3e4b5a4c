"""Write docs/reference/config.md: every key of an experiment and of a site's allow.yaml, from their schemas.

Run it with `python scripts/make_config_reference.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fedloom.config.allow_schema import Allow
from fedloom.config.validation_errors import describe_allowed, key_descriptions, schema_at, schema_of
from fedloom.experiment.experiment import Experiment

PAGE = Path(__file__).parent.parent / "docs/reference/config.md"

HEAD = """\
# Keys of an experiment

`scripts/make_config_reference.py` writes this page from the schema with which recipes are checked. Every key has a default,
so a recipe holds only what differs. On the command line a key is written with dots: `--set train.lr=3e-4`. The same names
are used in Python: `fedloom.Experiment(train={"lr": 3e-4})`. The keys `grid`, `quick`, `published` and `choose`, which turn a
recipe into many experiments, are explained in [sweeps](../sweeps.md).
"""

ALLOW = """\
## The file of a site's owner

`fedloom site --allow allow.yaml` reads what the owner of a site permits ([train across sites](../sites.md)). An experiment
does not have these keys.
"""

COLUMNS = ("key", "allowed values", "default", "meaning")


def rows_of(model: type[BaseModel], keys: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the columns of each key directly below `keys` that is no section."""
    schema, defaults = schema_of(model), _at(model().model_dump(mode="json"), keys)
    for path, about in key_descriptions(schema, keys):
        part = schema_at(schema, path)
        if len(path) == len(keys) + 1 and not is_section(model, path):
            default = json.dumps(defaults[path[-1]], ensure_ascii=False)
            allowed = describe_allowed(schema, part)
            yield f"`{'.'.join(map(str, path))}`", allowed, f"`{default}`", about


def is_section(model: type[BaseModel], path: tuple[Any, ...]) -> bool:
    """Return whether a key holds other keys of the schema."""
    schema = schema_of(model)
    return next(key_descriptions(schema, path), None) is not None


def table(rows: Iterator[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def _at(value: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        value = value[key]
    return value


def reference() -> str:
    """Return the whole page."""
    schema = schema_of(Experiment)
    sections = [
        (path, about)
        for path, about in key_descriptions(schema)
        if len(path) == 1 and is_section(Experiment, path)
    ]
    parts = [HEAD, f"## The experiment\n\n{table(rows_of(Experiment))}"]
    for path, about in sections:
        first = about.partition("\n")[0]
        parts.append(f"## {path[0]}\n\n{first}\n\n{table(rows_of(Experiment, path))}")
    return "\n".join([*parts, ALLOW, table(rows_of(Allow))])


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
