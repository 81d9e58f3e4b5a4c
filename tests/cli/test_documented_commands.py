"""The commands of docs/plan-and-follow.md exist, with their options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedloom.cli.cache_command import cache
from fedloom.cli.run_commands import app

PAGE = (Path(__file__).parents[2] / "docs/plan-and-follow.md").read_text(encoding="utf-8")
COMMANDS = [
    re.sub(r"\s+#.*", "", line)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_has_its_options(command: str) -> None:
    name, verb, *rest = command.split()
    assert name == "fedloom"
    words = [verb, rest[0]] if verb == cache.info.name else [verb]
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"}).output
    assert "Usage" in shown
    assert all(option in shown for option in rest if option.startswith("--"))
