"""`python -m fedloom` is the command `fedloom`."""

from fedloom.cli.run_commands import main

main()
