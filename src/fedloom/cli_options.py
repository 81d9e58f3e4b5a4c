"""Options that commands share, the door through which they print, and how they end. See docs/exit-codes.md."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fedloom.failures import explained, sentence
from fedloom.interrupts import exit_code, stoppable
from fedloom.record import to_json
from fedloom.terminal import message, printable, printable_json, wrapped
from fedloom.types import UserError

FAILED, USER_ERROR, UNHEARD = 1, 2, 141
"""Exit codes: a part of the work failed, or fedloom itself; the user has to change something; nobody reads on."""

# The class by which a wrong option or argument is reported: typer's own, or in older versions click's.
_Usage: type[Exception] = typer.BadParameter.__mro__[2]


class Commands(TyperGroup):
    """A group of commands that is as careful with what it was given as the commands are."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except _Usage as error:
            held = vars(error)
            held["message"] = printable(held["message"])
            raise


def complete_recipe(incomplete: str) -> list[str]:
    """Offer recipes to the shell."""
    from fedloom.experiment import recipes

    return [name for name in recipes() if name.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """Offer keys of an experiment to the shell."""
    from fedloom.document import dotted
    from fedloom.experiment import Experiment
    from fedloom.mistakes import key_descriptions

    keys = (dotted(path) for path, _ in key_descriptions(Experiment.model_json_schema()))
    return [f"{key}=" for key in keys if key.startswith(incomplete)]


Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A recipe's name or a YAML or JSON file.", autocompletion=complete_recipe
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key, e.g. train.lr=3e-4; may be given often.",
        autocompletion=complete_key,
    ),
]
Places = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Where data or a model are now, e.g. data.root=NEW; may be given often.",
    ),
]
PluginFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        help="Add what a Python file has: algorithms, data sets, metrics, model families; may be given often.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Rerun = Annotated[bool, typer.Option("--rerun", help="Discard what the folder holds of a run and run again.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where in the code a mistake was noticed.")]


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text; what would act on the terminal is written out, and what it cannot show is escaped."""
    _print(printable(text), err, nl)


def say_json(value: Any) -> None:
    """Print a value as JSON to standard output."""
    _print(printable_json(to_json(value, 2)), False, True)


def _print(text: str, err: bool, nl: bool) -> None:
    stream = sys.stderr if err else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    typer.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=err, nl=nl)


def complain(text: str) -> None:
    """Print a sentence, or a list of mistakes, to standard error; on a terminal, wrapped between words."""
    told = f"fedloom: {message(text)}"
    if sys.stderr.isatty():
        told = "\n".join(wrapped(line, shutil.get_terminal_size().columns) for line in told.split("\n"))
    _print(told, True, True)


def require_known(kind: str, name: str, names: Iterable[str]) -> None:
    """Raise a `UserError` that says which name was likely meant, unless `name` is one of `names`."""
    if name not in (known := list(names)):
        from fedloom.mistakes import unknown

        raise UserError(unknown(kind, name, known))


@contextmanager
def courteous(debug: bool, begun: str = "") -> Iterator[None]:
    """Run a command: whatever ends it is told in a sentence, with a traceback only where it was asked for.

    Args:
        debug: Print the traceback too.
        begun: What to say about the work after "interrupted", where a signal ends the command.
    """
    try:
        with stoppable():
            yield
    except KeyboardInterrupt as stop:
        _unheard()
        with whoever_listens():
            complain(f"interrupted; {begun}" if begun else "interrupted")
        raise typer.Exit(exit_code(stop)) from None
    except BrokenPipeError:
        _unheard()
        raise typer.Exit(UNHEARD) from None
    except (typer.Exit, _Usage):
        raise
    except Exception as error:
        _unheard()
        mine = explained(error) is None
        with whoever_listens():
            if debug:
                say(traceback.format_exc(), err=True, nl=False)
            hint = "" if debug or not mine else "; please report it with what --debug prints"
            complain(f"{sentence(error)}{hint}")
        raise typer.Exit(FAILED if mine else USER_ERROR) from None


@contextmanager
def whoever_listens() -> Iterator[None]:
    """Print in this block to whoever reads; that nobody does is no failure."""
    try:
        yield
    except OSError:
        _unheard()


def _unheard() -> None:
    """Write to nowhere where nobody reads or nothing fits, so that Python does not try again when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        except (AttributeError, ValueError):  # there is no stream, or it was closed
            pass
