"""Which files of a model folder are read, and what must hold of them before anything else looks at them.

Weights come from `*.safetensors` inside the folder and from nothing else: from `model.safetensors`, or from the files
that `model.safetensors.index.json` names. A link counts as inside where it ends inside, at a blob of the hub's cache, or
at another file with the same ending, as people link weights that they keep elsewhere. Everything is a bounded read of a
regular file, so that no pipe, device or giant holds a run up.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedloom.system.errors import UserError

BUNDLED = {name: Path(__file__).parent / name for name in ("bundled", "bundled-free")}
"""The models that come with fedloom, name → folder: with a vision encoder, and without one."""

MEBI = 2**20
SETTINGS = {
    "config.json": 16 * MEBI, "generation_config.json": MEBI, "preprocessor_config.json": MEBI,
    "processor_config.json": MEBI, "tokenizer_config.json": 64 * MEBI, "special_tokens_map.json": 16 * MEBI,
    "added_tokens.json": 64 * MEBI, "chat_template.json": 2 * MEBI, "model.safetensors.index.json": 64 * MEBI,
}  # fmt: skip
"""Files that hold one JSON object, name → bytes that it may have."""

VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model")
"""Further files that tokenizers are read from; each may have `LARGEST` bytes."""
LARGEST = 512 * MEBI

TEMPLATE = 2**20
"""Characters that a chat template may have."""

REFUSED = {
    "transformers_weights": "weights under another name",
    "quantization_config": "quantized weights, which cannot be fine-tuned here; choose the model in full precision",
    "fusion_config": "modules that are replaced while loading",
    "kernel_config": "code from a hub",
}
"""Keys of a configuration that would have transformers open or run something else → what they ask for."""

TIMM = "timm_wrapper"
"""The `model_type` of encoders that the library timm makes."""

LAYERS = re.compile(r"(^|_)(n_?layers?|layers|depths?|blocks)$|layers$|^num_.*(layers|blocks)")
"""Names of numbers of layers."""

SIZES = re.compile(r"(height|width|edge|pixels|size|pinpoints|patches|tiles)$")
SIDE, AREA, TILES = 2**14, 2**28, 256
"""The longest edge, the most pixels and the most tiles that an image processor may ask for."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a model folder that are read.

    Attributes:
        key: The key of the experiment that names the folder, for messages.
        name: What the user asked for.
        folder: Where the files lie.
        config: The content of `config.json`.
        weights: The safetensors files, in the order in which they are read; empty where there are none.
        others: All further files.
    """

    key: str
    name: str
    folder: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    others: tuple[Path, ...]


def model_files(key: str, name: str, folder: Path, *, complete: bool = True) -> ModelFiles:
    """Look at a model folder before anything is loaded from it.

    Args:
        key: The key of the experiment that names the folder.
        name: What the user asked for.
        folder: The folder.
        complete: Whether the weights that the index names must be there already.

    Raises:
        UserError: A file is damaged, too large, no regular file or a link that leaves the folder; the index names
            something else than safetensors in the folder; or the configuration asks for what is not done here.
    """

    def wrong(what: str) -> UserError:
        return UserError(f"{key}: cannot load {name!r} ({what})")

    if (folder / "adapter_config.json").exists():
        raise wrong(
            "adapter_config.json: the folder holds an adapter; give the model that it belongs to, or merge it"
        )
    content: dict[str, Mapping[str, Any]] = {}
    others = [*_templates(folder), *(folder / one for one in VOCABULARY)]
    for path in others:
        _check(folder, path, TEMPLATE * 4 if path.suffix == ".jinja" else LARGEST, wrong)
    for file, most in SETTINGS.items():
        if _check(folder, folder / file, most, wrong):
            content[file] = _object(folder / file, wrong)
            others.append(folder / file)
    config = content.get("config.json")
    if config is None:
        raise wrong("there is no config.json")
    for place, found in _pairs(config):
        if place in REFUSED and found:
            raise wrong(f"config.json asks for {REFUSED[place]}: {place}")
        if place == "model_type" and found == TIMM:
            raise wrong(
                "config.json asks for an encoder of timm, which is not used here; choose one of transformers' own"
            )
        if place.endswith("attn_implementation") and found not in (None, "eager", "sdpa"):
            raise wrong(f"config.json: {place} is {str(found)[:80]!r}; only eager and sdpa are known here")
    for file in ("preprocessor_config.json", "processor_config.json"):
        _check_sizes(file, content.get(file, {}), wrong)
    weights = tuple(folder / one for one in _weights(folder, content, wrong))
    for path in weights:
        if not _check(folder, path, None, wrong) and complete:
            raise wrong(f"{path.name} is missing")
    there = tuple(sorted(path for path in others if path.exists()))
    return ModelFiles(key, name, folder, config, weights, there)


def _templates(folder: Path) -> list[Path]:
    further = folder / "additional_chat_templates"
    return [folder / "chat_template.jinja", *(sorted(further.glob("*.jinja")) if further.is_dir() else [])]


def _check(folder: Path, path: Path, most: int | None, wrong: Callable[[str], UserError]) -> bool:
    """Return whether a file is there; refuse what is no regular file, leaves the folder or is too large."""
    if not os.path.lexists(path):
        return False
    try:
        status, target = os.stat(path), path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise wrong(f"{path.name}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise wrong(f"{path.name} is not a regular file")
    if not os.access(path, os.R_OK):
        raise wrong(f"{path.name}: no permission to read it")
    home = folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    inside = home in target.parents or (blobs is not None and target.parent == blobs)
    if not inside and target.suffix != path.suffix:
        raise wrong(f"{path.name} is a link to {target.name}, which lies outside the folder")
    if most is not None and status.st_size > most:
        raise wrong(f"{path.name} has {status.st_size:,} bytes; at most {most:,} are read")
    return True


def _object(path: Path, wrong: Callable[[str], UserError]) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise wrong(f"{path.name} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise wrong(f"{path.name} is damaged: it holds no JSON object")
    return found


def _weights(
    folder: Path, content: Mapping[str, Mapping[str, Any]], wrong: Callable[[str], UserError]
) -> Sequence[str]:
    """Return the names of the files that hold the weights."""
    if os.path.lexists(folder / "model.safetensors"):
        return ["model.safetensors"]
    if any(re.match(r"shard-\d{5}-model-", path.name) for path in folder.glob("*.safetensors")):
        raise wrong("the weights are shards of a distributed run; save the model with save_pretrained")
    index = content.get("model.safetensors.index.json")
    if index is None:
        return []
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not isinstance(index.get("metadata", {}), dict):
        raise wrong("model.safetensors.index.json is damaged: it maps no tensors to files")
    for file in names.values():
        plain = isinstance(file, str) and re.fullmatch(r"[^/\\:\0]+\.safetensors", file)
        if not plain:
            raise wrong(
                f"model.safetensors.index.json names {str(file)[:80]!r}; weights must be *.safetensors inside the folder"
            )
    return sorted(set(names.values()))


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Give the keys and values of objects within objects and lists, to any depth."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, Mapping):
            yield from one.items()
            todo += one.values()
        elif isinstance(one, list):
            todo += one


def numbers_fit(files: ModelFiles, tensors: int) -> None:
    """Refuse a configuration with more layers than the weights can hold, before as many are described.

    Args:
        files: The files of the folder.
        tensors: How many tensors its weights hold; every layer has at least one.

    Raises:
        UserError: A number is out of every proportion.
    """
    for name, value in _pairs(files.config):
        listed = value if isinstance(value, list) else [value]
        for number in listed:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            most = max(tensors, 1024) if LAYERS.search(name) else 100_000 if name == "num_labels" else 2**62
            if number != number or (abs(number) > most and not (isinstance(number, float) and most == 2**62)):
                raise UserError(
                    f"{files.key}: cannot load {files.name!r} (config.json: {name} is {str(number)[:40]}, but the weights "
                    f"hold {tensors:,} tensors)"
                )


def _check_sizes(file: str, content: Mapping[str, Any], wrong: Callable[[str], UserError]) -> None:
    """Refuse sizes of images that no memory holds."""
    pairs = [(name, value) for name, value in _pairs(content) if SIZES.search(name)]
    # Processors of Qwen's kind write numbers of pixels where others write lengths of edges.
    kinds = [str(value) for name, value in _pairs(content) if name.endswith("processor_type")]
    by_area = any(re.search("Qwen|Glm4", kind) for kind in kinds)
    for name, value in pairs:
        area = name.endswith("pixels") or (by_area and name.endswith("edge"))
        most = AREA if area else TILES if name.endswith(("patches", "tiles")) else SIDE
        for number in _numbers(value):
            if isinstance(number, int) and abs(number) > most:
                raise wrong(f"{file}: {name} is {number}; at most {most:,} is taken")


def _numbers(value: Any) -> Iterator[int | float]:
    """Give the numbers of a value, or of lists within it."""
    if isinstance(value, list):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
