"""Translate spellings of version 0.1 that still work: keys and names in experiments and in files of older runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = {"gate": "admission"}
"""Old → new section of an experiment."""

NAMES = {"centralised": "centralized", "shipped": "bundled", "shipped-free": "bundled-free"}
"""Old → new name of a method, and of a model."""

NAMED_BY = ("method", "methods", "main", "path", "encoder", "variant")
"""Keys of experiments and of results whose values are such names."""


def current_name(name: Any) -> Any:
    """Return the new spelling of a method or a model; any other value is returned as it is.

    Example:
        >>> current_name("centralised+prompt"), current_name("fedavg"), current_name("shipped")
        ('centralized+prompt', 'fedavg', 'bundled')
    """
    if not isinstance(name, str):
        return name
    base, plus, parts = name.partition("+")
    return NAMES.get(base, base) + plus + parts


def current_keys(value: Any, keys: Mapping[str, str] = KEYS) -> Any:
    """Return a mapping with new spellings of its outermost keys; if both spellings are given, the old one stays too.

    Example:
        >>> current_keys({"gate": {"max_norm": 2.0}, "seed": 1})
        {'admission': {'max_norm': 2.0}, 'seed': 1}
    """
    if not isinstance(value, Mapping) or not keys.keys() & value.keys():
        return value
    return {key if keys.get(key, key) in value else keys[key]: inner for key, inner in value.items()}


def current_document(value: Any, key: str = "") -> Any:
    """Return a document of an older run with new spellings of methods and models, in keys and in values of `NAMED_BY`.

    Example:
        >>> current_document({"main": "centralised", "scores": {"centralised": {"auc": 0.5}}, "label": "shipped"})
        {'main': 'centralized', 'scores': {'centralized': {'auc': 0.5}}, 'label': 'shipped'}
    """
    if isinstance(value, Mapping):
        return {current_name(name): current_document(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [current_document(item, key) for item in value]
    return current_name(value) if key in NAMED_BY else value
