"""The process of a further GPU: `python -m fedloom.runs.gpu_site` opens a run's site and answers requests."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from fedloom.client.site import Site
from fedloom.engine.gpu_processes import serve_site
from fedloom.runs.run_setup import open_site_elsewhere


def open_site(head: Mapping[str, Any]) -> AbstractContextManager[Site]:
    """Open the site that the first message describes."""
    return open_site_elsewhere(head["experiment"], head["folder"])


if __name__ == "__main__":
    serve_site(open_site)
