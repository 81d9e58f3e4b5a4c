"""The JSON schema of recipes, by which editors complete keys and mark mistakes."""

from __future__ import annotations

import copy
import json
from importlib import resources
from pathlib import Path
from typing import Any

from fedloom.config.schema import Published
from fedloom.config.validation_errors import schema_of
from fedloom.experiment.experiment import Experiment

FILE = "recipe.schema.json"


def schema_path() -> Path:
    """Return the path of the schema that is installed with fedloom."""
    return Path(str(resources.files("fedloom").joinpath("recipes", FILE)))


def recipe_schema() -> dict[str, Any]:
    """Return the schema of a recipe: the keys of an experiment, and those of a grid of experiments."""
    schema = copy.deepcopy(dict(schema_of(Experiment)))
    published = copy.deepcopy(dict(schema_of(Published)))
    schema["$defs"] = {**schema.get("$defs", {}), **published.pop("$defs", {}), "Published": published}
    axis = {"type": "array", "minItems": 1}
    schema["properties"] = {
        **schema["properties"],
        "grid": {
            "type": "object",
            "additionalProperties": axis,
            "description": "Axes of a sweep: a key with its values, or a name with points that each set several keys.",
        },
        "quick": {
            "type": "object",
            "description": "Changes for `fedloom sweep --quick`; its key grid replaces values of axes.",
        },
        "published": {
            "$ref": "#/$defs/Published",
            "description": "Figures of others, shown next to those of a sweep.",
        },
        "choose": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Axes whose value is chosen for each method by its validation score.",
        },
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "fedloom recipe"}


def schema_text() -> str:
    """Return the content of the schema file."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"
