"""For any input a command ends soon, with a message that is safe for a terminal and without a traceback."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedloom.cli.run_commands import app
from fedloom.system.terminal import printable

from .recipes import CASES

PATIENCE = 600
"""Seconds after which a command counts as one that never ends; each takes a second or two."""


@contextmanager
def patient() -> Iterator[None]:
    def late(number: int, frame: object) -> None:
        raise AssertionError(f"still at work after {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", CASES)
def test_hostile_input_ends_with_a_message(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given").mkdir()
    with patient():
        result = CliRunner().invoke(app, CASES[name](tmp_path / "given"))
    assert result.exit_code == 2, result.output
    message = result.stderr
    assert message.strip()
    assert "Traceback" not in message
    assert "internal error" not in message
    assert printable(message) == message
    assert len(message) < 50_000
    assert "fedloom: all is well" not in message.splitlines()
    # Every line is ours: it says who speaks, belongs to the one before, or is of the stage that had begun. Usage errors are typer's.
    if not message.startswith("Usage:"):
        assert all(
            re.match(r"fedloom: |  |1 cell in |loading data and model: ", line)
            for line in message.splitlines()
        )
