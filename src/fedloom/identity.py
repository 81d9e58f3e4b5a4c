"""What a run is: all that decides its results, as digests by name, so that a change of any is noticed and named."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import fedloom
from fedloom.algorithms import ALGORITHMS
from fedloom.experiment import Experiment
from fedloom.folder import chosen
from fedloom.methods import parse_method
from fedloom.sources import PROCESS, source_digest
from fedloom.types import DataSet, Example, Picture, UserError

PACKAGE = Path(__file__).parent

NO_RESULTS = ("cli", "report", "progress", "recipes", "testing")
"""Beginnings of the names of what decides no result: it shows and writes down what others found."""


def identity(experiment: Experiment, contents: Mapping[str, str], base: str) -> dict[str, str]:
    """Return what decides a run's results, by name.

    Args:
        experiment: Every choice; names, places and how fast it is done do not count.
        contents: What `contents_of` says of its data.
        base: Digest of the base model and of any other model that the experiment names.
    """
    return {"experiment": chosen(experiment), **contents, "base model": base, **code(experiment.methods)}


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


def code(methods: Sequence[str]) -> dict[str, str]:
    """Return the version of the package, or a digest of its sources where these can change, and of outside algorithms.

    Args:
        methods: Names of an experiment's methods.
    """
    own = fedloom.__version__ + (f"+{_sources_digest()[:16]}" if _editable() else "")
    bases = dict.fromkeys(method.base for method in map(parse_method, methods) if method.federated)
    outside = {name: ALGORITHMS[name] for name in bases if not _ours(ALGORITHMS[name])}
    return {"code": own, **{f"code of {name}": source_digest(make) for name, make in outside.items()}}


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
