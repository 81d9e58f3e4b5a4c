"""The command `fedloom cache`: list what fedloom keeps between runs, and remove it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from fedloom.cli.options import Commands, Debug, Json, echo, echo_json, report_errors, require_known

cache = typer.Typer(
    name="cache",
    cls=Commands,
    help="List or remove what fedloom keeps between runs, such as features of your images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Kept(NamedTuple):
    """One part of the cache.

    Attributes:
        patterns: Its files, as patterns below the cache folder; files with other names are not fedloom's.
        about: What it holds.
        anew: Whether a run computes it again by itself; otherwise a command of the user has added it.
    """

    patterns: tuple[str, ...]
    about: str
    anew: bool


PARTS = {
    "features": Kept(
        ("features/*/*.safetensors",),
        "what image encoders computed from the images of your runs; computed again when needed",
        True,
    ),
    "hashes": Kept(
        ("hashes/images.json", "hashes/models.json"),
        "paths and SHA-256 of images and model files that were read; computed again when needed",
        True,
    ),
    "models": Kept(
        ("models/smollm2/*", "models/minilm/*"), "models that `fedloom models add` has added", False
    ),
    "emoji-styles": Kept(
        ("emoji-styles/openmoji.zip", "emoji-styles/openmoji.json"),
        "drawings that `fedloom data add openmoji` has added",
        False,
    ),
}


@cache.callback()
def _cache() -> None:
    """List or remove what fedloom keeps between runs, such as features of your images."""


@cache.command()
def ls(as_json: Json = False, debug: Debug = False) -> None:
    """List the parts of the cache with their sizes."""
    with report_errors(debug, as_json=as_json):
        from fedloom.report.tables import size
        from fedloom.system.file_hashes import cache_folder

        folder, rows = cache_folder(), {}
        for name, part in PARTS.items():
            files = list(_files(folder, part))
            rows[name] = {
                "bytes": sum(file.stat().st_size for file in files),
                "files": len(files),
                "about": part.about,
            }
        if as_json:
            echo_json({"folder": str(folder), "parts": rows})
            return
        echo(f"{folder} (another one: set FEDLOOM_CACHE)")
        for name, row in rows.items():
            echo(f"{name:12}  {size(row['bytes']):>8}  {row['about']}")


def _complete_part(incomplete: str) -> list[str]:
    return [name for name in PARTS if name.startswith(incomplete)]


@cache.command()
def clear(
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PART...]",
            help="Parts to remove; the default is all that runs compute again by themselves.",
            autocompletion=_complete_part,
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove parts of the cache; no result changes, and runs compute features and digests again."""
    with report_errors(debug, as_json=as_json):
        from fedloom.report.tables import size
        from fedloom.system.file_hashes import cache_folder

        names = parts or [name for name, part in PARTS.items() if part.anew]
        for name in names:
            require_known("part of the cache", name, PARTS)
        freed = 0
        for name in dict.fromkeys(names):
            for file in _files(cache_folder(), PARTS[name]):
                freed += file.stat().st_size
                file.unlink()
                if not any(file.parent.iterdir()):
                    file.parent.rmdir()
        if as_json:
            echo_json({"removed": list(dict.fromkeys(names)), "bytes": freed})
        else:
            echo(f"removed {', '.join(dict.fromkeys(names))}: {size(freed)}")


def _files(folder: Path, part: Kept) -> Iterator[Path]:
    """Yield the files of a part that exist; links are not followed."""
    for pattern in part.patterns:
        for file in sorted(folder.glob(pattern)):
            if file.is_file() and not file.is_symlink():
                yield file
