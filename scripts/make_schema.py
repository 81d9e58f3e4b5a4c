"""Write the JSON schema of recipes into the package: `python scripts/make_schema.py`."""

from __future__ import annotations

from fedloom.experiment.recipe_schema import schema_path, schema_text

if __name__ == "__main__":
    schema_path().write_text(schema_text(), encoding="utf-8")
    print(schema_path())
