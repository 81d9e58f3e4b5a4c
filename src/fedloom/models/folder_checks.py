"""Check the files of a model folder before anything is loaded from it.

Weights are read only from `*.safetensors` inside the folder: from `model.safetensors`, or from the files that
`model.safetensors.index.json` names. A link counts as inside if its target is inside, is a blob of the hub's cache, or
has the same extension, because users link weights that they keep elsewhere. Only regular files of a limited size are
read, so a pipe, a device or a huge file cannot block a run.
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
"""The bundled models, name → folder: with a vision encoder, and without one."""

MEBI = 2**20
SETTINGS = {
    "config.json": 16 * MEBI, "generation_config.json": MEBI, "preprocessor_config.json": MEBI,
    "processor_config.json": MEBI, "tokenizer_config.json": 64 * MEBI, "special_tokens_map.json": 16 * MEBI,
    "added_tokens.json": 64 * MEBI, "chat_template.json": 2 * MEBI, "model.safetensors.index.json": 64 * MEBI,
}  # fmt: skip
"""Files that hold one JSON object, name → the most bytes that are read."""

VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model")
"""Further files that tokenizers are read from; each may have up to `LARGEST` bytes."""
LARGEST = 512 * MEBI

UNREAD = ("video_preprocessor_config.json",)
"""Files of a processor that only stock libraries read, so that an exported model has to contain them."""

TEMPLATE = 2**20
"""Characters that a chat template may have."""

REFUSED_KEYS = {
    "transformers_weights": "weights under another name",
    "quantization_config": "quantized weights, which cannot be fine-tuned here; choose the model in full precision",
    "fusion_config": "modules that are replaced while loading",
    "kernel_config": "code from a hub",
}
"""Keys of a configuration that would make transformers open or run other files → what they ask for."""

TIMM = "timm_wrapper"
"""The `model_type` of encoders from the library timm."""

LAYERS = re.compile(r"(^|_)(n_?layers?|layers|depths?|blocks)$|layers$|^num_.*(layers|blocks)")
"""Names of keys that give a number of layers."""

SIZES = re.compile(r"(height|width|edge|pixels|size|pinpoints|patches|tiles)$")
SIDE, AREA, TILES = 2**14, 2**28, 256
"""The longest edge, the most pixels and the most tiles that an image processor may ask for."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a model folder that are read.

    Attributes:
        key: The key of the experiment that names the folder, for messages.
        name: The name or path that the user gave.
        folder: The folder.
        config: The content of `config.json`.
        weights: The safetensors files in reading order; empty if there are none.
        others: All further files.
        unread: Files that are not read here, but belong to the processor; see `UNREAD`.
    """

    key: str
    name: str
    folder: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    others: tuple[Path, ...]
    unread: tuple[Path, ...] = ()


def model_files(key: str, name: str, folder: Path, *, complete: bool = True) -> ModelFiles:
    """Check a model folder and return the files that are read from it.

    Args:
        key: The key of the experiment that names the folder.
        name: The name or path that the user gave.
        folder: The folder.
        complete: Whether the weights that the index names must exist already.

    Raises:
        UserError: A file is damaged, too large, not a regular file or a link out of the folder; the index names
            files other than safetensors in the folder; or the configuration asks for something that is not supported.
    """

    def wrong(what: str) -> UserError:
        return UserError(f"{key}: cannot load {name!r} ({what})")

    if (folder / "adapter_config.json").exists():
        raise wrong(
            "adapter_config.json: the folder holds an adapter; give the model that it belongs to, or merge it"
        )
    content: dict[str, Mapping[str, Any]] = {}
    others = [*_templates(folder), *(folder / file for file in VOCABULARY)]
    for path in others:
        _check(folder, path, TEMPLATE * 4 if path.suffix == ".jinja" else LARGEST, wrong)
    for file, most in SETTINGS.items():
        if _check(folder, folder / file, most, wrong):
            content[file] = _object(folder / file, wrong)
            others.append(folder / file)
    config = content.get("config.json")
    if config is None:
        raise wrong("there is no config.json")
    for option, value in _pairs(config):
        if option in REFUSED_KEYS and value:
            raise wrong(f"config.json asks for {REFUSED_KEYS[option]}: {option}")
        if option == "model_type" and value == TIMM:
            raise wrong(
                "config.json asks for an encoder of timm, which is not supported; choose an encoder of transformers"
            )
        if option.endswith("attn_implementation") and value not in (None, "eager", "sdpa"):
            raise wrong(f"config.json: {option} is {str(value)[:80]!r}; only eager and sdpa are supported")
    _check_ends(content.get("generation_config.json", {}).get("eos_token_id"), wrong)
    _check_padding(config, wrong)
    for file in ("preprocessor_config.json", "processor_config.json"):
        _check_sizes(file, content.get(file, {}), wrong)
        _check_normalization(file, content.get(file, {}), wrong)
    weights = tuple(folder / file for file in _weights(folder, content, wrong))
    for path in weights:
        if not _check(folder, path, None, wrong) and complete:
            raise wrong(f"{path.name} is missing")
    existing = tuple(sorted(path for path in others if path.exists()))
    unread = tuple(folder / file for file in UNREAD if _check(folder, folder / file, MEBI, wrong))
    return ModelFiles(key, name, folder, config, weights, existing, unread)


def _templates(folder: Path) -> list[Path]:
    further = folder / "additional_chat_templates"
    return [folder / "chat_template.jinja", *(sorted(further.glob("*.jinja")) if further.is_dir() else [])]


def _check(folder: Path, path: Path, most: int | None, wrong: Callable[[str], UserError]) -> bool:
    """Return whether a file exists; raise an error if it is not a regular file, leaves the folder or is too large."""
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
        raise wrong(f"{path.name} is a link to {target.name}, which is outside the folder")
    if most is not None and status.st_size > most:
        raise wrong(f"{path.name} has {status.st_size:,} bytes; at most {most:,} are read")
    return True


def _object(path: Path, wrong: Callable[[str], UserError]) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise wrong(f"{path.name} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise wrong(f"{path.name} is damaged: it holds no JSON object")
    return content


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
    """Yield the keys and values of objects nested in objects and lists, at any depth."""
    todo = [value]
    while todo:
        nested = todo.pop()
        if isinstance(nested, Mapping):
            yield from nested.items()
            todo += nested.values()
        elif isinstance(nested, list):
            todo += nested


def check_numbers(files: ModelFiles, tensors: int) -> None:
    """Raise an error if the configuration has more layers than the weights can hold, before the layers are built.

    Args:
        files: The files of the folder.
        tensors: Number of tensors in its weights; every layer has at least one.

    Raises:
        UserError: A number of the configuration is far too large.
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


def _check_ends(ends: Any, wrong: Callable[[str], UserError]) -> None:
    """Raise an error unless the tokens that end an answer are given by number; null is none."""
    for token in ends if isinstance(ends, list) else [ends]:
        if token is not None and (not isinstance(token, int) or isinstance(token, bool)):
            raise wrong(
                f"generation_config.json: eos_token_id is {str(ends)[:80]!r}; expected the number of a token, or a list of numbers"
            )


def _check_padding(config: Mapping[str, Any], wrong: Callable[[str], UserError]) -> None:
    """Raise an error for a padding token without an embedding; a negative number counts from the vocabulary's end."""
    for part in [config, *(value for _, value in _pairs(config) if isinstance(value, Mapping))]:
        token, size = part.get("pad_token_id"), part.get("vocab_size")
        if isinstance(token, int) and isinstance(size, int) and not -size <= token < size:
            raise wrong(
                f"config.json: pad_token_id is {str(token)[:40]}, but the vocabulary has {str(size)[:40]} tokens, numbered from 0"
            )


def _check_normalization(file: str, content: Mapping[str, Any], wrong: Callable[[str], UserError]) -> None:
    """Raise an error for numbers that would make nothing of every pixel."""
    for name, value in _pairs(content):
        if name not in ("image_mean", "image_std", "rescale_factor"):
            continue
        for number in _numbers(value):
            if not abs(number) < 2**62 or (number == 0 and name != "image_mean"):
                raise wrong(
                    f"{file}: {name} is {str(value)[:80]}; expected finite numbers"
                    + (", none of them 0" if name != "image_mean" else "")
                )


def _check_sizes(file: str, content: Mapping[str, Any], wrong: Callable[[str], UserError]) -> None:
    """Raise an error for sizes of images that do not fit into memory."""
    pairs = [(name, value) for name, value in _pairs(content) if SIZES.search(name)]
    # The processors of Qwen and GLM-4V give numbers of pixels where others give lengths of edges.
    kinds = [str(value) for name, value in _pairs(content) if name.endswith("processor_type")]
    by_area = any(re.search("Qwen|Glm4", kind) for kind in kinds)
    for name, value in pairs:
        area = name.endswith("pixels") or (by_area and name.endswith("edge"))
        most = AREA if area else TILES if name.endswith(("patches", "tiles")) else SIDE
        for number in _numbers(value):
            if isinstance(number, int) and abs(number) > most:
                raise wrong(f"{file}: {name} is {number}; at most {most:,} is allowed")


def _numbers(value: Any) -> Iterator[int | float]:
    """Yield the numbers of a value or of nested lists."""
    if isinstance(value, list):
        for element in value:
            yield from _numbers(element)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
