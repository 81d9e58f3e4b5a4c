"""Plug-ins: algorithms, data sets, metrics and model families that are added from outside."""

from fedloom.plugins.plugins import Plugins, read_plugin

__all__ = ["Plugins", "read_plugin"]
