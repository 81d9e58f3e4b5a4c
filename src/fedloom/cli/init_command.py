"""The command `fedloom init`: write a commented recipe for the user's own data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedloom.cli.options import Debug, Json, echo, echo_json, report_errors
from fedloom.system.errors import UserError
from fedloom.system.terminal import one_line, shell_word

TEXT = """\
# yaml-language-server: $schema={schema}
# A recipe for fedloom: `fedloom validate {file}` checks it, `fedloom plan {file}` predicts what it needs,
# `fedloom run {file}` runs it. Keys that are left out have defaults; `fedloom validate {file} --json` prints all.
name: {name}
data:
  name: folder # a folder with records (train.jsonl and test.jsonl, or data.jsonl) and images, or with images by class
  {root}
  max_rejected: 0.01 # share of the records that may be invalid; `fedloom data check folder --root FOLDER` lists them
  # validation: 0.1 # share of each client's training examples that is held out to choose rounds and rates
scenario:
  clients: {clients} # {about_clients}
  partition: {partition} # by_group gives whole groups to clients; iid and dirichlet divide the records
  pattern: aligned # clients see all modalities of their records; or missing, cross, hybrid
model:
  path: bundled # a small model for trying things out; or a folder, or a name on a hub with network: true
strategy:
  name: both # connector and adapters of the language model; or lora, connector, two-stage, share-lora …
  rank: 8
train:
  rounds: 6
  epochs: 1 # passes of a client over its examples in a round
  batch_size: 8
  lr: 1.0e-3
methods: [zero-shot, local, fedavg, centralized] # `fedloom list methods` lists all
# A sweep instead of one run, with `fedloom sweep {file}`: every entry is an axis.
# grid:
#   train.lr: [1.0e-3, 3.0e-3]
#   seed: [0, 1, 2]
"""


def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The new recipe.")] = Path("recipe.yaml"),
    data: Annotated[
        Path | None, typer.Option(help="Folder of your own data, which is read to fill in the recipe.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a commented recipe for your own data."""
    with report_errors(debug, as_json=as_json):
        from fedloom.experiment.recipe_schema import schema_path
        from fedloom.system.json_files import write_atomic

        if file.exists():
            raise UserError(f"{file} exists already; give another name")
        groups, counts = _groups_and_counts(data) if data is not None else (0, None)
        values = {
            "schema": schema_path().as_uri(),
            "file": one_line(shell_word(file)),
            "name": _name(data or file),
            "root": "# root: path/to/FOLDER" if data is None else f"root: {json.dumps(str(data))}",
            "clients": min(groups, 5) if groups > 1 else 3,
            "about_clients": f"the records have {groups} groups"
            if groups > 1
            else "the records have no groups",
            "partition": "by_group" if groups > 1 else "iid",
        }
        write_atomic(file, TEXT.format(**values).encode())
        if as_json:
            echo_json({"file": str(file), "groups": groups, "examples": counts})
            return
        found = f": {counts['train']:,} training and {counts['test']:,} test examples" if counts else ""
        if data is not None and counts and counts["invalid"]:
            found += (
                f", {counts['invalid']:,} invalid (`fedloom data check folder --root {shell_word(data)}` lists them, and data.max_rejected "
                "says how many a run allows)"
            )
        echo(f"{file}{found}; `fedloom validate {shell_word(file)}` checks it")


def _groups_and_counts(folder: Path) -> tuple[int, dict[str, int]]:
    """Return the number of groups that a folder's records state, and how many are to train, to test, and invalid.

    A record without a group has its answer as the group if there are options; partitions by it would give each client one answer.
    """
    from fedloom.config.schema import Data
    from fedloom.data import load_data
    from fedloom.data.own_folder import require_utf8

    require_utf8(folder)
    data = load_data(Data(name="folder", root=str(folder), max_rejected=1.0), 0)
    stated = any(example.group != example.answer for example in data.train if example.group is not None)
    groups = {example.group for example in data.train if stated} - {None}
    return len(groups), {"train": len(data.train), "test": len(data.test), "invalid": len(data.rejected)}


def _name(path: Path) -> str:
    """Return a name that is allowed for a run, from that of a file or folder."""
    from fedloom.experiment.grid import slug

    return slug(path.absolute().stem).lower()
