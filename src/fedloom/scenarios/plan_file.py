"""Convert a plan to JSON, with its heterogeneity card and the examples of each client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedloom.scenarios.heterogeneity_card import card, client_rows, survey
from fedloom.scenarios.plan import Plan, Share
from fedloom.types import Example

ROWS = 10_000
"""Maximum number of clients for which `plan_to_json` has a row for each; beyond, it has rows for the first `SHOWN`."""

SHOWN = 100


def plan_to_json(plan: Plan, examples: Sequence[Example]) -> dict[str, Any]:
    """Return the plan as plain values, with its heterogeneity card and the examples of each client.

    For more than `ROWS` clients, only the first `SHOWN` have a row, and the arrays of all clients follow as
    texts: sizes and indices in decimal, seen modalities as a digit for each example.

    Args:
        plan: The plan.
        examples: The list that the plan was built for.
    """
    count, counted = len(plan.clients), survey(plan, examples)
    rows = [
        {
            **row,
            **_group(plan, share, examples),
            "indices": share.indices.tolist(),
            "image": share.image.astype(int).tolist(),
            "text": share.text.astype(int).tolist(),
        }
        for row, share in zip(
            client_rows(counted, count if count <= ROWS else SHOWN), plan.clients, strict=False
        )
    ]
    value = {
        "digest": plan.digest,
        "scenario": dict(plan.scenario),
        "count": count,
        "card": card(counted),
        "clients": rows,
    }
    if count > ROWS:
        value["arrays"] = {
            "sizes": " ".join(map(str, np.diff(plan.offsets).tolist())),
            "indices": " ".join(map(str, plan.indices.tolist())),
            "image": "".join("01"[seen] for seen in plan.image.tolist()),
            "text": "".join("01"[seen] for seen in plan.text.tolist()),
        }
    return value


def _group(plan: Plan, share: Share, examples: Sequence[Example]) -> dict[str, str]:
    """Return the group of a client under `by_group`, which names the client; empty if it holds several groups."""
    if plan.scenario.get("partition") != "by_group":
        return {}
    groups = {examples[place].group for place in share.indices.tolist()}
    return {"group": group} if len(groups) == 1 and (group := groups.pop()) else {}
