"""The command `fedloom data`: check that a data set is complete and as its owners publish it, or add a part of one."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedloom.cli.options import (
    FAILED,
    Commands,
    Debug,
    Json,
    PluginFiles,
    echo,
    echo_json,
    report_errors,
    require_known,
)
from fedloom.system.errors import UserError
from fedloom.system.terminal import display_width, one_line, pad

if TYPE_CHECKING:
    from fedloom.data.check_folder import Number, Repeat, Report

WIDTH = 80
SHOWN = 5
"""Number of invalid records that are listed; --json lists all."""
CLASSES = 12
"""Most distinct answers of a part that are counted one by one; --json has all."""

data = typer.Typer(
    name="data",
    cls=Commands,
    help="Check data sets, or add a part to one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@data.callback()
def _data() -> None:
    """Check data sets, or add a part to one."""


def _complete_name(incomplete: str) -> list[str]:
    from fedloom.data import DATASETS

    return [name for name in DATASETS if name.startswith(incomplete)]


@data.command()
def check(
    name: Annotated[
        str, typer.Argument(help="As listed by `fedloom list datasets`.", autocompletion=_complete_name)
    ],
    root: Annotated[Path | None, typer.Option(help="The data set's folder.")] = None,
    variant: Annotated[str | None, typer.Option(help="Variant of the data set, as in data.variant.")] = None,
    plugins: PluginFiles = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check whether a folder holds a data set, and show where to get it; exit code 1 if it cannot be used."""
    with report_errors(debug, as_json=as_json):
        from fedloom.data.check_folder import check as checked
        from fedloom.experiment.plugins_key import Pluggable

        datasets = Pluggable(plugins=tuple(plugins or ())).datasets
        require_known("data set", name, datasets)
        if root is not None and sys.stderr.isatty():
            echo("Decoding every image; for large data sets that takes minutes.", err=True)
        report = checked(name, root, variant, datasets=datasets)
        if as_json:
            echo_json(report.to_json())
        else:
            echo("\n".join(map(one_line, lines(report))))
    raise typer.Exit(0 if report.usable else FAILED)


@data.command()
def add(
    what: Annotated[str, typer.Argument(help="What to add: openmoji.", autocompletion=lambda: ["openmoji"])],
    package: Annotated[
        Path | None,
        typer.Option(help="The npm package, if you have already downloaded it: openmoji-17.0.0.tgz."),
    ] = None,
    network: Annotated[bool, typer.Option("--network", help="Download the package with npm.")] = False,
    root: Annotated[
        Path | None,
        typer.Option(help="Folder to put it in; by default, one where the data set finds it."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Add a part that fedloom cannot bundle to a data set: openmoji (CC BY-SA 4.0) to emoji-styles.

    Give either --network or --package. An earlier copy is replaced.
    """
    with report_errors(debug, "nothing was added", as_json=as_json):
        from fedloom.data.emoji_styles import openmoji_folder
        from fedloom.data.openmoji import PACKAGE, add_openmoji, fetch, read_package

        require_known("part of a data set", what, ["openmoji"])
        if (package is None) is not network:
            raise UserError(
                f"give either --package FILE, where FILE is what `npm pack {PACKAGE}` downloads, or --network"
            )
        folder = openmoji_folder() if root is None else root
        if sys.stderr.isatty():
            echo("Drawing nearly 2,000 SVG files; that takes a minute or more.", err=True)
        counts = add_openmoji(fetch() if package is None else read_package(package), folder)
        if as_json:
            echo_json({"folder": str(folder), "added": counts, "license": "CC BY-SA 4.0"})
            return
        echo(
            f"{folder} holds "
            + " and ".join(f"{count:,} emoji of {title}" for title, count in counts.items())
        )
        where = "" if root is None else f" with data.root={root}"
        echo(
            f"data.name=emoji-styles{where} uses them with data.variant=with-openmoji; license: CC BY-SA 4.0"
        )


def lines(report: Report) -> Iterator[str]:
    """Yield the lines of a report for people, at most 80 columns wide where names allow."""
    where = f" in {report.root}" if report.root is not None else ""
    variant = f" ({report.variant})" if report.variant else ""
    yield f"{report.name}{variant}{where}: {'can be used' if report.usable else 'cannot be used'}"
    published = [number for number in report.numbers if number.published is not None]
    other = sum(number.found != number.published for number in published)
    if other:
        yield f"{other} of {len(published)} published numbers differ from those of this folder."
    for fault in report.faults:
        yield from _wrapped(fault, "- ")
    if report.numbers:
        yield ""
        yield from _table(report.numbers)
    if report.repeats:
        yield ""
        yield from _repeats(report)
    if report.rejected:
        count = len(report.rejected)
        yield ""
        yield f"Skipped: {count:,} invalid {'record' if count == 1 else 'records'}"
        for bad in report.rejected[:SHOWN]:
            yield from _wrapped(str(bad), "- ")
        if count > SHOWN:
            yield f"- and {count - SHOWN:,} more; --json lists all"
    yield ""
    yield from _wrapped(f"License: {report.license}", "")
    if report.home not in " ".join(report.faults):
        yield ""
        yield from _wrapped(f"Where to get it: {report.home}", "")


def _wrapped(text: str, bullet: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _table(numbers: tuple[Number, ...]) -> Iterator[str]:
    # A long list of classes without published numbers would hide the other rows.
    unpublished = Counter(number.part for number in numbers if number.of and number.published is None)
    rows = [
        number
        for number in numbers
        if not number.of or number.published is not None or unpublished[number.part] <= CLASSES
    ]
    names = [number.part if number.of is None else f"  {number.of}" for number in rows]
    width = max(map(display_width, names))
    published = any(number.published is not None for number in rows)
    yield f"{'':{width}}  {'found':>7}" + ("  published" if published else "")
    for name, number in zip(names, rows, strict=True):
        line = f"{pad(name, width)}  {number.found:>7,}"
        if number.published is not None:
            missing = number.published - number.found
            difference = f"  {abs(missing):,} {'fewer' if missing > 0 else 'more'}" if missing else ""
            line += f"  {number.published:>9,}{difference}"
        yield line


def _repeats(report: Report) -> Iterator[str]:
    groups: dict[tuple[str, str, str], list[Repeat]] = {}
    for repeat in report.repeats:
        groups.setdefault((repeat.what, repeat.part, repeat.before_part), []).append(repeat)
    yield "In more than one part:"
    for (what, part, before), group in groups.items():
        first = group[0]
        count = f"{len(group):,} of {part} have" if len(group) > 1 else f"1 of {part} has"
        example = f"{first.place} and {first.before}"
        yield from _wrapped(f"{count} a {what} that {before} has too (first {example})", "- ")
