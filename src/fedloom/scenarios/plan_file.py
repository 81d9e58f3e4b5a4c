"""A plan as JSON, with its heterogeneity card and what each client holds, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom.scenarios.heterogeneity_card import card, rows, survey
from fedloom.scenarios.plan import ARRAYS, Plan, Share, digest_of, offsets_of
from fedloom.system.errors import UserError
from fedloom.types import Example

ROWS = 10_000
"""Up to this many clients `plan_to_json` has a row for each; beyond, only for the first `SHOWN`."""

SHOWN = 100


def plan_to_json(plan: Plan, examples: Sequence[Example]) -> dict[str, Any]:
    """Return the plan as plain values, with its heterogeneity card and what each client holds.

    Of more than `ROWS` clients only the first `SHOWN` are told one by one, and the arrays stand at the
    end as texts: sizes and indices in decimal, presence as a digit for each example.

    Args:
        plan: The plan.
        examples: The list the plan was built for.
    """
    count, found = len(plan.clients), survey(plan, examples)
    told = [
        {
            **row,
            **_group(plan, share, examples),
            "indices": share.indices.tolist(),
            "image": share.image.astype(int).tolist(),
            "text": share.text.astype(int).tolist(),
        }
        for row, share in zip(rows(found, count if count <= ROWS else SHOWN), plan.clients, strict=False)
    ]
    value = {
        "digest": plan.digest,
        "scenario": dict(plan.scenario),
        "count": count,
        "card": card(found),
        "clients": told,
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
    """Return the one group that a client holds under `by_group`, which names it; empty where it holds several."""
    if plan.scenario.get("partition") != "by_group":
        return {}
    groups = {examples[place].group for place in share.indices.tolist()}
    return {"group": group} if len(groups) == 1 and (group := groups.pop()) else {}


def plan_from_json(value: Mapping[str, Any], examples: Sequence[Example] | None = None) -> Plan:
    """Read what `plan_to_json` wrote; with `examples`, check that they are the ones it was made for.

    Raises:
        UserError: The digest does not fit the examples.
    """
    sizes, indices, image, text = _arrays(value)
    plan = Plan(indices, offsets_of(sizes), image, text, value["digest"], value["scenario"])
    if examples is not None:
        inside = plan.indices.max(initial=-1) < len(examples)
        if not inside or digest_of(plan, examples) != plan.digest:
            raise UserError(f"the plan {plan.digest[:12]} was made for other data: its digest does not match")
    return plan


def _arrays(value: Mapping[str, Any]) -> list[NDArray[Any]]:
    """Return the sizes [K], indices, image and text [N] of a plan that `plan_to_json` wrote."""
    if "arrays" in value:
        found = value["arrays"]
        numbers = [np.array(found[key].split(), np.int64) for key in ("sizes", "indices")]
        flags = [np.frombuffer(found[key].encode(), np.uint8) == ord("1") for key in ("image", "text")]
        return [*numbers, *flags]
    clients = value["clients"]
    sizes = np.array([len(row["indices"]) for row in clients], np.int64)
    flat = [[*chain.from_iterable(row[key] for row in clients)] for key, _ in ARRAYS]
    return [sizes, *(np.array(values, kind) for values, (_, kind) in zip(flat, ARRAYS, strict=True))]
