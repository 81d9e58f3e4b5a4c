"""The command line: one file for each group of commands."""

from fedloom.cli.run_commands import main

__all__ = ["main"]
