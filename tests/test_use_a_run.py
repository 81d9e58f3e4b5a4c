"""The page docs/use-a-run.md works as it is written, block by block."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedloom.cli.run_commands import app

PAGE = Path(__file__).parent.parent / "docs/use-a-run.md"


def test_the_blocks_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    names: dict[str, object] = {}
    blocks = re.findall(r"```(python|bash)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 10
    for language, block in blocks:
        if language == "python":
            exec(compile(block, PAGE.name, "exec"), names)
            continue
        for command in block.splitlines():
            result = CliRunner().invoke(app, shlex.split(command)[1:])
            assert result.exit_code == 0, (command, result.output)
    for name in ("adapter", "local-1", "small"):
        assert {"README.md", "prompt.json", "adapter_config.json"} <= {
            file.name for file in (tmp_path / name).iterdir()
        }
