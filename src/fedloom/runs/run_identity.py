"""The identity of a run: digests, by name, of all that decides its results, so that any change is noticed and named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from fedloom.algorithms import PLACES
from fedloom.experiment.experiment import Experiment
from fedloom.models.family_table import FAMILIES
from fedloom.models.hub import Source
from fedloom.plugins.plugins import INSTALLED, installed_code
from fedloom.runs.run_folder import choices_digest
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import combine_digests
from fedloom.types import DataSet, Example, LazyImage
from fedloom.version import __version__

PACKAGE = Path(__file__).parent.parent

NO_RESULTS = ("cli", "report", "system/progress", "recipes", "testing", "runs/parity", "runs/write_pages")
"""Beginnings of the names of modules that decide no result: they show and write down results."""


def identity(experiment: Experiment, contents: Mapping[str, str], base: str) -> dict[str, str]:
    """Return digests of what decides a run's results, by name.

    Args:
        experiment: Every choice; names, places and speed do not count.
        contents: The digests of its data; see `contents_of`.
        base: Digest of the base model and of any other model that the experiment names.
    """
    return {"experiment": choices_digest(experiment), **contents, "base model": base, **code(experiment)}


def contents_of(data: DataSet) -> dict[str, str]:
    """Return digests of the texts and of the images of a data set's examples, part by part."""
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
        changes = [
            f"{name} ({before.get(name, 'none')}, now {now.get(name, 'none')})" if name == "code" else name
            for name in changed
        ]
        raise UserError(
            f"{folder} holds a run with other inputs: since it began, this has changed: {', '.join(changes)}. Run it "
            "again with --rerun, which discards what the folder holds, or choose another folder with --out"
        )


def content(examples: Sequence[Example]) -> tuple[str, str]:
    """Return the SHA-256 of the texts of examples, and that of their images' keys; order counts."""
    texts, images = hashlib.sha256(), hashlib.sha256()

    def plain(value: Any) -> Any:
        if hasattr(value, "pixels"):
            images.update(_key(value).encode() + b"\n")
            return "image"
        if is_dataclass(value):  # the place of a record is no part of its content
            names = [field.name for field in fields(value) if field.compare or field.name == "spare"]
            return {name: plain(getattr(value, name)) for name in names}
        return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value

    for example in examples:
        texts.update(json.dumps(plain(example), sort_keys=True).encode() + b"\n")
        images.update(b"\n")
    return texts.hexdigest(), images.hexdigest()


def _key(image: LazyImage) -> str:
    try:
        return image.key
    except UserError:  # it is skipped when the examples are checked
        return "unreadable"


def code(experiment: Experiment) -> dict[str, str]:
    """Return what identifies the code of an experiment, by name.

    This is the version of the package, or a digest of its sources if these can change; the digest of each plug-in with what
    it imports from its folder; and the digests of the parts of installed packages that the experiment uses.
    """
    own = __version__ + (f"+{_sources_digest()[:16]}" if _editable() else "")
    methods, added = [experiment.method(name) for name in experiment.methods], experiment.added
    used = {
        "algorithms": {name for method in methods for name in method.composed if name not in PLACES},
        "metrics": {*(experiment.evaluate.metrics or ())},
    }
    installed = {
        f"code of {name}": installed_code(kind, name)
        for kind, names in used.items()
        for name in sorted(names - getattr(added, kind).keys())
    }
    return {"code": own, **added.digests, **installed, **family_code(experiment)}


def family_code(experiment: Experiment) -> dict[str, str]:
    """Return the digest of the code of the base model's family, by name; empty if the family is one of fedloom's."""
    model, added = experiment.model, experiment.added
    if model.encoder is not None or not (added.families or INSTALLED.families):
        return {}
    kind = str(Source("model.path", model.path, model.network).files.config.get("model_type"))
    if kind in FAMILIES or kind not in experiment.families:
        return {}
    digest = combine_digests(added.digests) if kind in added.families else installed_code("families", kind)
    return {f"code of the family {kind}": digest}


def _editable() -> bool:
    """Return whether the package's sources may change without its version, because they are not an installed wheel."""
    try:
        text = distribution("fedloom").read_text("direct_url.json")
    except PackageNotFoundError:
        return True
    return bool(text) and bool(json.loads(text).get("dir_info", {}).get("editable"))


def _sources_digest() -> str:
    sha = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        if not name.startswith(NO_RESULTS):
            sha.update(f"{name}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return sha.hexdigest()
