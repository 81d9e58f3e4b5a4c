"""Options that commands share, and functions that print and that end commands. See docs/exit-codes.md."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from contextvars import ContextVar
from typing import Annotated, Any, NoReturn, TextIO

import typer
from typer.core import TyperGroup

from fedloom.system.errors import UserError, error_sentence, user_message
from fedloom.system.json_files import to_json
from fedloom.system.signals import exit_code, stop_on_signals
from fedloom.system.terminal import printable, printable_json, safe_message, wrap_line

FAILED, USER_ERROR, BROKEN_PIPE = 1, 2, 141
"""Exit codes: the work or fedloom itself failed; the user has to change something; nobody reads the output any more."""

# The class of errors in options and arguments: typer's own, or in older versions click's.
_Usage: type[Exception] = typer.BadParameter.__mro__[2]


_HOME = re.compile(r"^(--[\w-]+=)(~)(?=/|$)")
"""Matches the ~ of an option such as --out=~/runs, which shells leave as it is."""


def _at_home(match: re.Match[str]) -> str:
    return match[1] + os.path.expanduser(match[2])


class _HelpFormatter(typer.Context.formatter_class):
    """Writes help without the backslashes with which typer escapes brackets for rich, also where rich does not print it."""

    def write_dl(self, rows: Iterable[tuple[str, str]], *sizes: int, **more: int) -> None:
        super().write_dl([(name, text.replace("\\[", "[")) for name, text in rows], *sizes, **more)


class _Context(typer.Context):
    formatter_class = _HelpFormatter


class Commands(TyperGroup):
    """A group of commands that escapes the user's text in its error messages, and names keys that options were meant for."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name and the command that words name, and the words that are left, with ~ as the home folder in --out=~/x."""
        name, command, left = super().resolve_command(ctx, args)
        if command is not None:
            command.context_class = _Context
        return name, command, [_HOME.sub(_at_home, word) for word in left]

    def invoke(self, ctx: Any) -> Any:
        """Run the requested command."""
        # Parsing consumes the words that are left, under a name that differs between versions of typer.
        words = [*getattr(ctx, "_protected_args", ()), *ctx.args]
        try:
            return super().invoke(ctx)
        except _Usage as error:
            attributes = vars(error)
            advice = _advice(attributes, words)
            attributes["message"] = printable(f"{attributes['message'].removesuffix('.')}{advice}")
            if advice:  # keys are nearer to what was meant than options of similar names
                attributes["possibilities"] = None
            if "--json" in words:
                end(str(attributes["message"]), USER_ERROR, as_json=True)
            raise


def _advice(error: Mapping[str, Any], words: Sequence[str]) -> str:
    """Return the advice to change a key with --set, where an option is unknown and its command takes changes of keys."""
    option, command = error.get("option_name"), getattr(error.get("ctx"), "command", None)
    if option is None or not any(
        KEYS_HELP == getattr(one, "help", None) for one in getattr(command, "params", ())
    ):
        return ""
    from fedloom.cli.unknown_options import set_instead

    return set_instead(option, words)


def complete_recipe(incomplete: str) -> list[str]:
    """Return the names of recipes that begin with a text, for completion in a shell."""
    from fedloom.experiment.recipes import recipes

    return [name for name in recipes() if name.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """Return the keys of an experiment that begin with a text, for completion in a shell."""
    from fedloom.config.validation_errors import key_descriptions
    from fedloom.config.yaml_document import dotted
    from fedloom.experiment.experiment import Experiment

    keys = (dotted(path) for path, _ in key_descriptions(Experiment.model_json_schema()))
    return [f"{key}=" for key in keys if key.startswith(incomplete)]


Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="Name of a recipe, or a YAML or JSON file.", autocompletion=complete_recipe
    ),
]
KEYS_HELP = "Change one key, e.g. train.lr=3e-4; may be repeated."

Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help=KEYS_HELP,
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
LONGEST = 31_536_000
"""Most seconds, a year, that an option takes: the system cannot wait for as long as a larger number may say."""


def seconds_option(least: float, help: str) -> Any:
    """Return an option that is a number of seconds, from `least` to a year."""
    return typer.Option(min=least, max=LONGEST, callback=_no_nan, metavar="SECONDS", help=help)


def _no_nan(value: float) -> float:
    """Refuse "nan", which is below no bound and above none."""
    if math.isnan(value):
        raise typer.BadParameter("expected a number of seconds")
    return value


Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Rerun = Annotated[bool, typer.Option("--rerun", help="Discard the run in the folder and run again.")]
Json = Annotated[
    bool,
    typer.Option("--json", help="Write JSON to standard output, and an error as JSON to standard error."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the Python traceback of an error.")]


def backend_change(backend: str | None) -> list[str]:
    """Return the change of an experiment for which the option --backend is short."""
    return [] if backend is None else [f"engine.backend={backend}"]


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text; control characters, and characters that the terminal cannot show, are escaped."""
    _print(printable(text), err, nl)


def echo_json(value: Any) -> None:
    """Print a value as JSON to standard output."""
    _print(printable_json(to_json(value, 2)), False, True)


def _print(text: str, err: bool, nl: bool) -> None:
    stream = sys.stderr if err else _OUTPUT.get() or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    typer.echo(text.encode(encoding, "backslashreplace").decode(encoding), stream, nl=nl)


_OUTPUT: ContextVar[TextIO | None] = ContextVar("output", default=None)
"""Where results go while everything else that is printed goes to standard error."""


@contextmanager
def _only_results() -> Iterator[None]:
    """Let nothing but what `echo` and `echo_json` print reach standard output, whatever a plug-in or a library prints."""
    token = _OUTPUT.set(_OUTPUT.get() or sys.stdout)  # one command may call another
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _OUTPUT.reset(token)


def print_error(text: str) -> None:
    """Print a message to standard error; on a terminal, its lines are wrapped between words."""
    shown = f"fedloom: {safe_message(text)}"
    if sys.stderr.isatty():
        shown = "\n".join(wrap_line(line, shutil.get_terminal_size().columns) for line in shown.split("\n"))
    _print(shown, True, True)


def end(message: str, code: int, *, as_json: bool = False) -> NoReturn:
    """End a command with a message on standard error: a sentence, or with --json an object {"error": …, "code": …} in one line.

    Raises:
        typer.Exit: Always, with the code.
    """
    with ignore_closed_output():
        if as_json:
            _print(printable_json(to_json({"error": message, "code": code})), True, True)
        else:
            print_error(message)
    raise typer.Exit(code)


def require_known(kind: str, name: str, names: Iterable[str]) -> None:
    """Raise a `UserError` unless `name` is one of `names`; the message has the name that was likely meant."""
    if name not in (choices := list(names)):
        from fedloom.config.validation_errors import unknown_name

        raise UserError(unknown_name(kind, name, choices))


@contextmanager
def report_errors(debug: bool, begun: str = "", *, as_json: bool = False) -> Iterator[None]:
    """Run a command and report any error that ends it in one sentence, with a traceback only if requested.

    Args:
        debug: Whether to print the traceback too.
        begun: The text after "interrupted" in the message when a signal ends the command.
        as_json: Whether the message is written as JSON, see `end`, and standard output is kept for the result.
    """
    try:
        with stop_on_signals(), _only_results() if as_json else nullcontext():
            yield
    except KeyboardInterrupt as stop:
        _silence_closed_streams()
        message, code = f"interrupted; {begun}" if begun else "interrupted", exit_code(stop)
    except BrokenPipeError:
        _silence_closed_streams()
        raise typer.Exit(BROKEN_PIPE) from None
    except (typer.Exit, _Usage):
        raise
    except Exception as error:
        _silence_closed_streams()
        internal = user_message(error) is None
        with ignore_closed_output():
            if debug:
                echo(traceback.format_exc(), err=True, nl=False)
        hint = "" if debug or not internal else "; please report it with the output of --debug"
        message, code = f"{error_sentence(error)}{hint}", FAILED if internal else USER_ERROR
    else:
        return
    end(message, code, as_json=as_json)


@contextmanager
def ignore_closed_output() -> Iterator[None]:
    """Print in a `with` block, without an error if nobody reads the output."""
    try:
        yield
    except OSError:
        _silence_closed_streams()


def _silence_closed_streams() -> None:
    """Redirect streams that cannot be written to the null device, so that Python does not fail again at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
        except (AttributeError, ValueError):  # there is no stream, or it was closed
            pass
