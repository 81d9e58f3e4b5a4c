"""An experiment: every choice of a run as one frozen, validated value."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationInfo, field_validator, model_validator

from fedloom.config.schema import (
    Data,
    Evaluate,
    Scenario,
    Section,
)
from fedloom.config.validation_errors import (
    Conflict,
    choice_error,
    refusal,
    resolve,
)
from fedloom.config.yaml_document import read
from fedloom.experiment.conflicts import conflicts_of, unknown_names
from fedloom.experiment.keys import Keys
from fedloom.experiment.methods import PUBLISHED_SETTINGS, default_methods
from fedloom.experiment.plugins_key import unusable
from fedloom.scenarios.published_draws import REPAIR
from fedloom.system.file_hashes import json_digest

LATER = {"data": ("validation",), "evaluate": ("round", "metrics"), "aggregate": ("over",)}
"""Keys, by section, that experiments of version 0.1 did not have."""


class Experiment(Keys):
    """Every choice of a run.

    Example:
        >>> experiment = Experiment(name="mine", train={"rounds": 2})
        >>> Experiment.from_json(experiment.to_json()) == experiment
        True
    """

    @model_validator(mode="before")
    @classmethod
    def _published_throughout(cls, value: Any) -> Any:
        """Let one switch set all others that the experiment leaves open, so that the record has them."""
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
        """Write down which labels published mode repairs, so that the record does not leave it open."""
        if scenario.mode == "corrected" or scenario.repair is not None or "data" not in info.data:
            return scenario
        return scenario.model_copy(update={"repair": REPAIR.get(info.data["data"].name, "each")})

    @model_validator(mode="after")
    def _nothing_conflicts(self) -> Experiment:
        if conflicts := _all_conflicts(self):
            raise refusal(conflicts)
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of everything but the name and how fast it is done, as hexadecimal text."""
        return self.digest_without({"name": True, "engine": True})

    def digest_without(self, left_out: Mapping[str, Any]) -> str:
        """Return the SHA-256 of everything but some keys, as hexadecimal text.

        Keys that came later count only where they are not at their defaults, so that digests stay what they were.
        """
        value = self.model_dump(mode="json", exclude={**left_out, "plugins": True})
        if self.plugins and "plugins" not in left_out:  # their code counts, not where it lies
            value["plugins"] = sorted(self.added.digests.values())
        for section, keys in LATER.items():
            for key in keys:
                if value[section][key] == type(getattr(self, section)).model_fields[key].default:
                    del value[section][key]
            if not value[section]:
                del value[section]
        return json_digest(value)

    def to_json(self) -> str:
        """Write every value, defaults too, as indented JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str, source: str = "experiment.json") -> Experiment:
        """Read what `to_json` wrote, or any other experiment in YAML or JSON.

        Args:
            text: The document.
            source: Its name in error messages.

        Raises:
            UserError: Every mistake in it, one a line.
        """
        return resolve(Experiment, read(text, source))


def _over(own: Mapping[str, Any], given: Any) -> Any:
    """Put what is given of a section over the mode's own values; what is no section is left to be refused."""
    if isinstance(given, Section):
        given = given.model_dump(exclude_unset=True)
    return {**own, **given} if isinstance(given, Mapping) else given


def _all_conflicts(experiment: Experiment) -> list[Conflict]:
    """Find all conflicts; where a name is not known, without what depends on it."""
    if found := list(unusable(experiment)):
        return found
    if not (found := list(unknown_names(experiment))):
        return list(conflicts_of(experiment))
    defaults = {"data": Data(), "methods": default_methods(), "evaluate": Evaluate()}
    wrong = {str(conflict.path[0]) for conflict in found}
    rest = conflicts_of(experiment.model_copy(update={key: defaults[key] for key in wrong}))
    return [*found, *(one for one in rest if not wrong & {key[0] for key in (one.path, *one.others)})]
