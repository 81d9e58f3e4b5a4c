"""Algorithms, data sets, metrics and model families that others add."""

from fedloom.plugins.plugins import Plugins, read_plugin

__all__ = ["Plugins", "read_plugin"]
