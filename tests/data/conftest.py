"""Settings as an experiment gives them."""

import pytest

from fedloom.config.schema import Data


@pytest.fixture(scope="session")
def settings():
    """Return a function that makes settings from what differs from the defaults."""
    return lambda **changes: Data(**{"name": "folder", **changes})
