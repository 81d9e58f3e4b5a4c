"""Find the keys of an experiment that an unknown option was meant to set: `--rounds 3` for `--set train.rounds=3`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def keys_meant(option: str) -> list[str]:
    """Return the keys of an experiment that have the name of an option, as dotted text.

    Args:
        option: The option, such as `--batch-size` or `--train.batch_size`.

    Example:
        >>> keys_meant("--batch-size"), keys_meant("--alpha"), keys_meant("--nothing")
        (['train.batch_size'], ['scenario.alpha', 'strategy.alpha'], [])
    """
    from fedloom.config.validation_errors import key_descriptions, schema_of
    from fedloom.config.yaml_document import dotted
    from fedloom.experiment.experiment import Experiment

    name = option.lstrip("-").replace("-", "_")
    paths = [path for path, _ in key_descriptions(schema_of(Experiment))]
    leaves = [path for path in paths if not any(path == other[:-1] for other in paths)]
    return [dotted(path) for path in leaves if name in (dotted(path), path[-1])]


def set_instead(option: str, words: Sequence[str]) -> str:
    """Return the advice to use `--set` in place of an unknown option, or nothing where no key has its name.

    Args:
        option: The unknown option.
        words: The words of the command line, which may hold the option's value.

    Example:
        >>> set_instead("--rounds", ["run", "smoke", "--rounds", "3"])
        '; to change this key of the experiment, use --set train.rounds=3'
    """
    if not (keys := keys_meant(option)):
        return ""
    value = _value_after(option, words)
    changes = [f"--set {shlex.quote(f'{key}={value}') if value else f'{key}=VALUE'}" for key in keys]
    which = "this key" if len(keys) == 1 else "one of these keys"
    return f"; to change {which} of the experiment, use {' or '.join(changes)}"


def _value_after(option: str, words: Sequence[str]) -> str:
    """Return the value that the command line gives to an option, or an empty text."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == option and not following.startswith("--"):
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return ""
