"""Data that are given to an experiment as a Python value, in place of the settings of its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedloom.config.schema import Data
from fedloom.data.python_data import PythonLoader, expanded, is_python_data, require_one_set
from fedloom.plugins.plugins import Plugins
from fedloom.types import DataSet, Example

GIVEN = "given"
"""The name of the data set that a value becomes."""

RECORDS = "records"
"""The key of the section `data` under which a value may stand beside settings such as `test_share`."""


def with_given_data(value: dict[str, Any]) -> dict[str, Any]:
    """Return the values of an experiment in which data that are a Python value have become a plug-in.

    Args:
        value: The values that Python gives, whose `data` are a section, or data in a form of `fedloom.data.python_data.KINDS`, or a section with
            such data under "records".

    Raises:
        UserError: The data are a dict of several data sets or of columns.
    """
    data, settings = expanded(value.get("data")), dict[str, Any]()
    if isinstance(data, Mapping):
        if RECORDS not in data:
            require_one_set({key: inner for key, inner in data.items() if key not in Data.model_fields})
            return value
        settings = {key: inner for key, inner in data.items() if key != RECORDS}
        data = expanded(data[RECORDS])
    elif data is None or isinstance(data, Data) or not (isinstance(data, DataSet) or is_python_data(data)):
        return value
    examples = isinstance(data, list | tuple) and data and all(isinstance(one, Example) for one in data)
    known = isinstance(data, DataSet) or examples
    added = Plugins.of(datasets={GIVEN: data if known else PythonLoader(data)})
    plugins = value.get("plugins") or ()
    return {
        **value,
        "data": {**settings, "name": GIVEN},
        "plugins": [*plugins, added] if isinstance(plugins, list | tuple) else plugins,
    }
