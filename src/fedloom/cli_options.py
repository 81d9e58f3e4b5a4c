"""Options that commands share, how they print, and how they end. See docs/exit-codes.md."""

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
"""Exit codes: a part of the work or fedloom itself failed; the user has to change something; the output's reader left."""

# The class by which a wrong option or argument is reported: typer's own, or in older versions click's.
_Usage: type[Exception] = typer.BadParameter.__mro__[2]


class Commands(TyperGroup):
    """A group of commands that escapes what it was given in its messages, as the commands do."""

    def invoke(self, ctx: Any) -> Any:
        """Run the requested command."""
        try:
            return super().invoke(ctx)
        except _Usage as error:
            held = vars(error)
            held["message"] = printable(held["message"])
            raise


def complete_recipe(incomplete: str) -> list[str]:
    """Complete a recipe's name for the shell."""
    from fedloom.experiment import recipes

    return [name for name in recipes() if name.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """Complete a key of an experiment for the shell."""
    from fedloom.document import dotted
    from fedloom.experiment import Experiment
    from fedloom.mistakes import key_descriptions

    keys = (dotted(path) for path, _ in key_descriptions(Experiment.model_json_schema()))
    return [f"{key}=" for key in keys if key.startswith(incomplete)]


Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="Name of a recipe, or a YAML or JSON file.", autocompletion=complete_recipe
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key, e.g. train.lr=3e-4; may be repeated.",
        autocompletion=complete_key,
    ),
]
Places = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Current place of data or a model, e.g. data.root=NEW; may be repeated.",
    ),
]
PluginFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        help="Python file that adds algorithms, data sets, metrics or model families; may be repeated.",
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Where clients train: in-process, workers or ray; short for --set engine.backend=NAME.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Rerun = Annotated[bool, typer.Option("--rerun", help="Discard the run in the folder and run again.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the Python traceback of an error.")]


def on(backend: str | None) -> list[str]:
    """Return the change of an experiment that the option --backend stands for."""
    return [] if backend is None else [f"engine.backend={backend}"]


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text; control characters, and characters that the terminal cannot show, are escaped."""
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
    """Run a command and report whatever ends it in one sentence, with a traceback only if requested.

    Args:
        debug: Print the traceback too.
        begun: What follows "interrupted" in the message when a signal ends the command.
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
    """Print in this block; it is not a failure if nobody reads the output."""
    try:
        yield
    except OSError:
        _unheard()


def _unheard() -> None:
    """Redirect streams that cannot be written to the null device, so that Python does not try again at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        except (AttributeError, ValueError):  # there is no stream, or it was closed
            pass
