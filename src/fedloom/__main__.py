"""Run the command `fedloom` as `python -m fedloom`."""

from fedloom.cli.run_commands import main

main()
