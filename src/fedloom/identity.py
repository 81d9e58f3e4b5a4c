"""What a run is: all that decides its results, as digests by name, so that a change of any is noticed and named."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from uuid import uuid4

import fedloom
from fedloom.algorithms import PLACES
from fedloom.experiment import Experiment
from fedloom.folder import chosen
from fedloom.types import DataSet, Example, Picture, UserError

PACKAGE = Path(__file__).parent

NO_RESULTS = ("cli", "report", "progress", "recipes")
"""Beginnings of the names of what decides no result: it shows and writes down what others found."""

LIBRARIES = ("site-packages", "dist-packages")
"""Folders of installed packages."""

PROCESS = uuid4().hex
"""Stands for code that no source is known of, which may be another one in another process."""


def identity(experiment: Experiment, contents: Mapping[str, str], base: str) -> dict[str, str]:
    """Return what decides a run's results, by name.

    Args:
        experiment: Every choice; names, places and how fast it is done do not count.
        contents: What `contents_of` says of its data.
        base: Digest of the base model and of any other model that the experiment names.
    """
    return {"experiment": chosen(experiment), **contents, "base model": base, **code(experiment)}


def contents_of(data: DataSet) -> dict[str, str]:
    """Return digests of what a data set's examples say and of their images, part by part."""
    return {
        f"{name} {what}": digest
        for name, examples in (
            ("training", data.train),
            ("test", data.test),
            ("skipped", data.drawn),
            ("validation", data.validation),
        )
        if examples or name in ("training", "test")
        for what, digest in zip(("examples", "images"), content(examples), strict=True)
    }


def require_same(folder: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Compare the identity of the run in a folder with what the same command would run now.

    Raises:
        UserError: They differ; what changed is named.
    """
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        told = [
            f"{name} ({before.get(name, 'none')}, now {now.get(name, 'none')})" if name == "code" else name
            for name in changed
        ]
        raise UserError(
            f"{folder} holds a run of something else: since it began, this has changed: {', '.join(told)}. Run it "
            "again with --rerun, which discards what the folder holds, or choose another folder with --out"
        )


def content(examples: Sequence[Example]) -> tuple[str, str]:
    """Return the SHA-256 of what examples say, and that of their images' keys; order counts."""
    texts, images = hashlib.sha256(), hashlib.sha256()

    def plain(value: Any) -> Any:
        if hasattr(value, "pixels"):
            images.update(_key(value).encode() + b"\n")
            return "image"
        if is_dataclass(value):  # where a record stands is no part of what it says
            named = [one.name for one in fields(value) if one.compare or one.name == "spare"]
            return {name: plain(getattr(value, name)) for name in named}
        return [plain(one) for one in value] if isinstance(value, list | tuple) else value

    for example in examples:
        texts.update(json.dumps(plain(example), sort_keys=True).encode() + b"\n")
        images.update(b"\n")
    return texts.hexdigest(), images.hexdigest()


def _key(image: Picture) -> str:
    try:
        return image.key
    except UserError:  # it is skipped when the examples are checked
        return "unreadable"


def code(experiment: Experiment) -> dict[str, str]:
    """Return the version of the package, or a digest of its sources where these can change, and of outside algorithms.

    Args:
        experiment: Its methods name the algorithms and parts.
    """
    own = fedloom.__version__ + (f"+{_sources_digest()[:16]}" if _editable() else "")
    methods = [experiment.method(name) for name in experiment.methods]
    used = dict.fromkeys(name for method in methods for name in method.composed if name not in PLACES)
    outside = {f"code of {name}": source_digest(experiment.entries[name].make) for name in used}
    return {"code": own, **outside}


def source_digest(value: Callable[..., Any]) -> str:
    """Return the SHA-256 of the file that defines a function and of what that imports of its own.

    Its own are modules of the same package, and those beside a file that is in no package. Where there is no such
    file, the digest is good for this process only.
    """
    try:
        file = Path(inspect.getsourcefile(inspect.unwrap(value)) or "").resolve(strict=True)
    except (OSError, TypeError, ValueError):
        return f"without source, process {PROCESS}"
    if not file.is_file():
        return f"without source, process {PROCESS}"
    sha = hashlib.sha256()
    for name, text in sorted(_imported(file).items()):
        sha.update(f"{name}\n{len(text)}\n".encode() + text)
    return sha.hexdigest()


def _imported(file: Path) -> dict[str, bytes]:
    """Return a Python file and all of its own that it imports: path from the file's folder → content."""
    found: dict[str, bytes] = {}
    waiting, top = [file], _top(file)
    while waiting:
        one = waiting.pop()
        name = os.path.relpath(one, file.parent)
        if name not in found:
            found[name] = one.read_bytes()
            waiting += _own_imports(one, found[name], top)
    return found


def _top(file: Path) -> Path:
    """Return the folder that the outermost package of a file lies in; the file's folder, if it is in none."""
    top = file.parent
    while (top / "__init__.py").is_file():
        top = top.parent
    return top


def _own_imports(file: Path, content: bytes, top: Path) -> Iterator[Path]:
    """Yield the files that a file imports, if they are found from a folder, or from the file's own."""
    package = file.relative_to(_top(file)).parts[0]
    try:
        nodes = [*ast.walk(ast.parse(content))]
    except (SyntaxError, ValueError):  # nobody can import it
        return
    for node in nodes:
        starts = [top, _top(file), file.parent]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}".strip(".") for alias in node.names)]
            starts = [*file.parents][node.level - 1 : node.level] if node.level else starts
        else:
            continue
        for name in names:
            # Beside an installed package lie other people's.
            own = (
                start
                for start in dict.fromkeys(starts)
                if start.name not in LIBRARIES or name.split(".")[0] == package
            )
            for start in own:
                parts = name.split(".") if name else []
                places = (start.joinpath(*parts[:length]) for length in range(len(parts) + 1))
                for place in places:
                    both = (place / "__init__.py", place.parent / f"{place.name}.py")
                    yield from (one for one in both if one.is_file())


def _ours(value: Callable[..., Any]) -> bool:
    module = inspect.getmodule(value)
    return module is not None and module.__name__.partition(".")[0] == "fedloom"


def _editable() -> bool:
    """Return whether the package's sources may change without its version: they are not an installed wheel."""
    try:
        told = distribution("fedloom").read_text("direct_url.json")
    except PackageNotFoundError:
        return True
    return bool(told) and bool(json.loads(told).get("dir_info", {}).get("editable"))


def _sources_digest() -> str:
    sha = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        if not name.startswith(NO_RESULTS):
            sha.update(f"{name}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return sha.hexdigest()
