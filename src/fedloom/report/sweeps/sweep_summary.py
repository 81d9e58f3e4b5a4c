"""The content of a sweep's `result.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedloom.report.federation_gain import count_clients
from fedloom.report.run_results import Json, at
from fedloom.report.shared_scores import own_models, shared_model
from fedloom.report.significance import ClientCounts
from fedloom.report.sweeps.sweep_results import (
    CellRun,
    Models,
    SweepRun,
    baselines_in,
    cells_by_setting,
    mean_over_seeds,
    metric_of,
)


def _clients(cells: Sequence[CellRun], sweep: SweepRun) -> dict[str, dict[str, int]]:
    """Return method → the numbers of clients that are better off and worse off with it than with their own models."""
    baselines, counts = baselines_in(sweep), dict[str, ClientCounts]()
    for cell in cells:
        for method in cell.scores:
            local = baselines[method]
            if local is not None and local in cell.scores:
                more = count_clients(cell.scores[method], cell.scores[local])
                counts[method] = counts.get(method, ClientCounts()).plus(more)
    return {method: client_counts._asdict() for method, client_counts in counts.items()}


def _means(methods: Sequence[str], cells: Sequence[CellRun], of: Models) -> dict[str, dict[str, Any]]:
    found = {method: mean_over_seeds(cells, method, of=of) for method in methods}
    return {method: value._asdict() for method, value in found.items() if value is not None}


def _shared_beside_own(scores: Json) -> Json | None:
    return None if own_models(scores) is None else shared_model(scores)


def sweep_summary(sweep: SweepRun) -> dict[str, Any]:
    """Return the content of the sweep's `result.json`: the scores of all cells, and the means over seeds of all rows."""
    rows = [
        {
            "row": name,
            "metric": metric_of(cells),
            "methods": _means(sweep.methods, cells, lambda scores: scores),
            **({"shared": _means(sweep.methods, cells, _shared_beside_own)} if sweep.has_both else {}),
            "clients": _clients(cells, sweep),
        }
        for name, cells in cells_by_setting(sweep).items()
    ]
    cells = [
        {
            "name": cell.name,
            "values": dict(cell.values),
            "digest": cell.digest,
            "folder": cell.folder,
            "state": cell.state,
            "error": cell.error,
            "scores": dict(cell.scores),
            "bytes": at(cell.result, "bytes"),
            "seconds": at(cell.result, "seconds"),
        }
        for cell in sweep.cells
    ]
    head = {"name": sweep.name, "digest": sweep.digest, "quick": sweep.quick}
    return head | {
        "axes": dict(sweep.axes),
        "metric": None if sweep.mixed_tasks else sweep.metric,
        "rows": rows,
        "cells": cells,
    }
