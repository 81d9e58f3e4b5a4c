"""The experiment: all settings of a run as one frozen, validated value."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError, ValidationInfo, field_validator, model_validator

from fedloom.config.schema import (
    Data,
    Evaluate,
    Scenario,
    Section,
)
from fedloom.config.validation_errors import (
    Conflict,
    build_model,
    check_document,
    choice_error,
    conflict_error,
    error_text,
)
from fedloom.config.yaml_document import Document, Mistake, Place, read_document
from fedloom.data.python_data import KINDS
from fedloom.experiment.conflicts import conflicts_of, unknown_names
from fedloom.experiment.experiment_base import ExperimentBase
from fedloom.experiment.given_data import with_given_data
from fedloom.experiment.methods import PUBLISHED_SETTINGS, default_methods
from fedloom.experiment.plugins_key import unusable_plugins
from fedloom.scenarios.published_draws import REPAIR
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import json_digest

LATER = {
    "data": ("validation",),
    "evaluate": ("round", "metrics"),
    "aggregate": ("over",),
    "communication": ("up", "down", "feedback"),
    "train": ("micro_batch", "repeat"),
    "model": ("quantize", "pixels", "device_map"),
}
"""Keys, by section, that experiments of version 0.1 did not have."""

NO_CHOICES = {"engine": True, "report": True, "plugins": True}
"""Keys that are no choices: those of speed and of reports change no result, and of plug-ins the code counts."""

SOURCE = "fedloom.Experiment"
"""The name of the values that Python gives, in messages."""


class InvalidExperiment(UserError, ValueError):
    """Mistakes in an experiment that was made in Python; the message lists all of them, one a line."""


class Experiment(ExperimentBase):
    """All settings of a run.

    From Python, `data` may also be the data themselves; see `fedloom.data.python_data`.

    Example:
        >>> experiment = Experiment(name="mine", train={"rounds": 2})
        >>> Experiment.from_json(experiment.to_json()) == experiment
        True
    """

    def __init__(self, **values: Any) -> None:
        values = with_given_data(values)
        try:
            super().__init__(**values)
        except ValidationError as error:
            found = check_document(type(self), Document(SOURCE, values, values={(): Place(SOURCE)}))[1]
            found = [_with_forms_of_data(mistake) for mistake in found]
            raise InvalidExperiment(error_text(SOURCE, found) if found else str(error)) from None

    # So that pydantic, which validates documents too, does not call it.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _published_throughout(cls, value: Any) -> Any:
        """Fill in the settings of `mode: published` that the experiment does not give, so that they are saved with it."""
        if not isinstance(value, Mapping) or value.get("mode") != "published":
            return value
        return {
            **value,
            **{name: _over(own, value.get(name, {})) for name, own in PUBLISHED_SETTINGS.items()},
        }

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
            raise choice_error(
                f'"{name}" cannot name a folder; use at most 80 letters, digits, ".", "_" and "-"'
            )
        return name

    @field_validator("scenario")
    @classmethod
    def _repaired_as_published(cls, scenario: Scenario, info: ValidationInfo) -> Scenario:
        """Fill in the labels that published mode repairs, so that they are saved with the experiment."""
        if scenario.mode == "corrected" or scenario.repair is not None or "data" not in info.data:
            return scenario
        return scenario.model_copy(update={"repair": REPAIR.get(info.data["data"].name, "each")})

    @model_validator(mode="after")
    def _nothing_conflicts(self) -> Experiment:
        if conflicts := _all_conflicts(self):
            raise conflict_error(conflicts)
        return self

    @property
    def digest(self) -> str:
        """The SHA-256 of all settings but `name`, `engine` and `report`, as hexadecimal text."""
        return self.digest_without({"name": True})

    def digest_without(self, left_out: Mapping[str, Any]) -> str:
        """Return the SHA-256 of all settings but some keys, as hexadecimal text; those of speed and reports never count.

        Keys that are newer than version 0.1 count only if they differ from their defaults, so older digests stay valid.
        """
        value = self.model_dump(mode="json", exclude={**left_out, **NO_CHOICES})
        if self.plugins and "plugins" not in left_out:  # their code counts, not their paths
            value["plugins"] = sorted(self.added.digests.values())
        for section, keys in LATER.items():
            for key in keys:
                if value[section][key] == type(getattr(self, section)).model_fields[key].default:
                    del value[section][key]
            if not value[section]:
                del value[section]
        if (
            value.get("model", {}).get("precision") == "auto"
        ):  # as on CPUs; other machines name it in the identity
            value["model"]["precision"] = "float32"
        return json_digest(value)

    def to_json(self) -> str:
        """Return all settings, with defaults, as indented JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str, source: str = "experiment.json") -> Experiment:
        """Read an experiment in YAML or JSON, such as `to_json` returns.

        Args:
            text: The document.
            source: Its name in error messages.

        Raises:
            UserError: The document has mistakes; the message lists all of them, one a line.
        """
        return build_model(Experiment, read_document(text, source))


def _with_forms_of_data(mistake: Mistake) -> Mistake:
    """Return a mistake that, if `data` are no data, names what Python may give."""
    if not mistake.message.startswith("data is "):
        return mistake
    return mistake._replace(message=f"{mistake.message}; in Python it may also be {KINDS}")


def _over(own: Mapping[str, Any], section: Any) -> Any:
    """Return a section with the mode's own values where none is given; a value that is no section is refused later."""
    if isinstance(section, Section):
        section = section.model_dump(exclude_unset=True)
    return {**own, **section} if isinstance(section, Mapping) else section


def _all_conflicts(experiment: Experiment) -> list[Conflict]:
    """Return all conflicts, except those that depend on an unknown name."""
    if plugin_errors := list(unusable_plugins(experiment)):
        return plugin_errors
    if not (unknown := list(unknown_names(experiment))):
        return list(conflicts_of(experiment))
    defaults = {"data": Data(), "methods": default_methods(), "evaluate": Evaluate()}
    wrong = {str(conflict.path[0]) for conflict in unknown}
    others = conflicts_of(experiment.model_copy(update={key: defaults[key] for key in wrong}))
    return [
        *unknown,
        *(
            conflict
            for conflict in others
            if not wrong & {key[0] for key in (conflict.path, *conflict.others)}
        ),
    ]
