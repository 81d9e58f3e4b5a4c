"""Load data sets by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fedloom.data.aircraft import AIRCRAFT
from fedloom.data.coco import COCO
from fedloom.data.coco_qa import COCO_QA
from fedloom.data.crisis_mmd import CRISIS_MMD
from fedloom.data.digits import load_digits
from fedloom.data.drawn_shapes import MAKERS, STYLES, load_shapes
from fedloom.data.emoji import load_emoji
from fedloom.data.emoji_styles import TASKS as STYLE_TASKS
from fedloom.data.emoji_styles import VARIANTS as STYLE_VARIANTS
from fedloom.data.emoji_styles import load_emoji_styles
from fedloom.data.fashion_mnist import load_fashion_mnist
from fedloom.data.fedmllm_client_folders import PREPARED
from fedloom.data.fedmllm_medical import MEDICAL
from fedloom.data.fedvlmbench_client_folders import CLIENTS
from fedloom.data.fedvlmbench_multitask import NATURE, RADIOLOGY
from fedloom.data.flashcards import FLASHCARDS
from fedloom.data.hateful_memes import HATEFUL_MEMES
from fedloom.data.loading import Loader, subsample
from fedloom.data.mimic_cxr import MIMIC_CXR
from fedloom.data.own_folder import load_folder
from fedloom.data.plugin_data import PluginLoader
from fedloom.data.published_data_set import Source
from fedloom.data.python_data import PythonLoader
from fedloom.data.refcoco import REFCOCO
from fedloom.data.science_qa import SCIENCE_QA
from fedloom.data.slake import SLAKE
from fedloom.data.vqa_rad import VQA_RAD
from fedloom.system.errors import UserError
from fedloom.types import DataSet

if TYPE_CHECKING:
    from fedloom.config.schema import Data

__all__ = [
    "BUNDLED",
    "DATASETS",
    "ROOTLESS",
    "Loader",
    "Source",
    "check_usable",
    "has_validation",
    "load_data",
    "rootless",
    "tasks",
    "variants",
]

DATASETS: dict[str, Loader] = {
    "emoji": load_emoji,
    "emoji-styles": load_emoji_styles,
    "digits": load_digits,
    "shapes": load_shapes,
    "fashion-mnist": load_fashion_mnist,
    "folder": load_folder,
    "hateful-memes": HATEFUL_MEMES,
    "crisis-mmd": CRISIS_MMD,
    "vqa-rad": VQA_RAD,
    "flashcards": FLASHCARDS,
    "slake": SLAKE,
    "medical": MEDICAL,
    "fedmllm-prepared": PREPARED,
    "fgvc-aircraft": AIRCRAFT,
    "science-qa": SCIENCE_QA,
    "coco-captions": COCO,
    "coco-qa": COCO_QA,
    "refcoco": REFCOCO,
    "mimic-cxr": MIMIC_CXR,
    "nature": NATURE,
    "radiology": RADIOLOGY,
    "fedvlmbench-prepared": CLIENTS,
}

BUNDLED = ("emoji", "emoji-styles", "digits", "shapes")
"""The data sets that come with fedloom."""

ROOTLESS = (*BUNDLED, "fashion-mnist")
"""The data sets that need no `data.root`: bundled ones, and one that a system package may install."""


def rootless(name: str, datasets: Mapping[str, Loader] = DATASETS) -> bool:
    """Return whether a data set needs no folder; a plug-in's loader checks its folder itself."""
    return name in ROOTLESS or isinstance(datasets[name], PluginLoader)


def variants(name: str, datasets: Mapping[str, Loader] = DATASETS) -> tuple[str, ...]:
    """Return the variants of a data set, the default first; empty if it has none."""
    load = datasets[name]
    if isinstance(load, Source):
        return load.variants
    if load is load_emoji_styles:
        return STYLE_VARIANTS
    return tuple(STYLES) if load is load_shapes else ()


def tasks(name: str) -> tuple[str, ...]:
    """Return the values that `data.task` may have for a data set, the default first."""
    choices = {"shapes": (*MAKERS, "all"), "emoji-styles": STYLE_TASKS}
    return choices.get(name, ("classification",))


def has_validation(name: str, datasets: Mapping[str, Loader] = DATASETS) -> bool:
    """Return whether a data set may have a validation set of its owners; for data of the user's own, the records decide."""
    load = datasets[name]
    if isinstance(load, PluginLoader | PythonLoader):
        return True
    return load is load_folder or (isinstance(load, Source) and load.has_validation)


def load_data(settings: Data, seed: int, datasets: Mapping[str, Loader] = DATASETS) -> DataSet:
    """Load the data set that the settings name, check it, and keep at most `limit` training examples.

    Args:
        settings: The `data` section of an experiment.
        seed: The experiment's seed; draws come from its streams "split" and "limit".
        datasets: Name → loader.

    Raises:
        UserError: An unknown name, too many invalid records, or nothing left to train or test on.
    """
    if settings.name not in datasets:
        raise UserError(f"data.name: there is no data set {settings.name!r}; there are {', '.join(datasets)}")
    data = check_usable(datasets[settings.name](settings, seed), settings)
    if settings.limit is not None:
        data = replace(data, train=subsample(data.train, settings.limit, seed), drawn=())
    return data


def check_usable(data: DataSet, settings: Data) -> DataSet:
    """Return a data set unchanged after checking that enough of its records are valid.

    Raises:
        UserError: More than `max_rejected` of the records are invalid, or nothing is left to train or test on.
    """
    _check_rejected(data, settings.max_rejected)
    parts = [("training", data.train), ("test", data.test)]
    parts += [("validation", data.validation)] if settings.validation == "published" else []
    for part, examples in parts:
        if not examples:
            where = settings.root or settings.name
            used = f"{len(data.train)} to train, {len(data.test)} to test"
            counts = f"{used}{f', {len(data.validation)} for validation' if len(parts) > 2 else ''}, {len(data.rejected)} invalid"
            raise UserError(
                f"data: no {part} example is left of {where} ({counts}); "
                "add records, or change data.test_share or their split (records with one image, text or question are in one part)"
            )
    return data


def _check_rejected(data: DataSet, cap: float) -> None:
    count = len(data.rejected)
    total = count + len(data.examples)
    if count and count / total > cap:
        first = "".join(f"\n  {record}" for record in data.rejected[:5])
        more = f"\n  and {count - 5} more" if count > 5 else ""
        raise UserError(
            f"data.max_rejected: {count} of {total} records ({count / total:.1%}) {'is' if count == 1 else 'are'} invalid, "
            f"more than the {cap:.1%} allowed:{first}{more}\n"
            "  Fix them, or allow a larger share with data.max_rejected."
        )
