"""The validation part: examples by whose scores rounds, rates and methods are chosen.

It is a share of each client's training examples, drawn after these have been divided among the clients, or the owners'
own part, which is everybody's. No example of it is trained on or is in the test part.

Shape legend: N = number of training examples, K = number of clients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedloom.data.duplicates import twins
from fedloom.data.loading import families, spread
from fedloom.scenarios.plan import Plan, Share, build_plan, chosen_of
from fedloom.scenarios.plan_file import ROWS, SHOWN, plan_to_json
from fedloom.seeds import stream
from fedloom.system.errors import UserError
from fedloom.types import DataSet, Example

if TYPE_CHECKING:
    from fedloom.config.schema import Data, Scenario


@dataclass(frozen=True, eq=False)
class Validation:
    """Examples to validate on, and which of them each client has.

    Attributes:
        examples: The list that the plan's indices point into.
        plan: The examples of each client, of which there may be none; where the part is common, one share for all.
        source: The share of each client's training examples that is kept out, or "published".
    """

    examples: Sequence[Example]
    plan: Plan
    source: float | str

    @property
    def common(self) -> bool:
        """Whether each model is validated on all examples; else a client's own model on that client's."""
        return self.source == "published"

    def share(self, client: int | None) -> Share:
        """Return the examples on which the model of a client, or with None a global model, is validated."""
        if client is None or self.common:
            return Share(self.plan.indices, self.plan.image, self.plan.text)
        return self.plan.clients[client]

    @property
    def sizes(self) -> list[int]:
        """How many examples each client validates on; where the part is common, one number."""
        return np.diff(self.plan.offsets).tolist()

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the examples, each once, in order of appearance."""
        return tuple(dict.fromkeys(self.examples[index].task for index in self.plan.indices.tolist()))


def divided(data: DataSet, settings: Data, scenario: Scenario, seed: int) -> tuple[Plan, Validation | None]:
    """Divide training examples among clients, and keep the validation part out of what they train on.

    Args:
        data: The data set; its `validation` is the owners' own part where the settings ask for it.
        settings: Where the validation part comes from.
        scenario: Who holds what.
        seed: The experiment's seed; draws of the validation part come from its streams "validation", one a client.

    Returns:
        (what clients train on, what they validate on, None for nothing).

    Raises:
        UserError: As `build_plan`, or no client has enough examples to keep one out.
    """
    plan = build_plan(data.train, scenario, seed, data.drawn)
    if not settings.validation:
        return plan, None
    if isinstance(settings.validation, str):
        return plan, Validation(data.validation, _everything(data.validation), settings.validation)
    trained, kept = keep_out(plan, data.train, settings.validation, seed)
    if not len(kept.indices):
        raise UserError(
            f"data.validation is {settings.validation:g}, but no client has enough examples to hold one out: "
            f"the largest holds {int(np.diff(plan.offsets).max()):,}, and examples with an image, a text or a record in "
            "common stay together; take a larger share, or fewer clients"
        )
    return trained, Validation(data.train, kept, settings.validation)


def keep_out(plan: Plan, examples: Sequence[Example], share: float, seed: int) -> tuple[Plan, Plan]:
    """Keep a share of each client's examples out of training, alike in answers and with twins on one side.

    Twins (`fedloom.data.duplicates.twins`) stay on one side over all clients: what one client trains on, no other validates
    on. Clients take their turns by number; one whose examples have no twins elsewhere draws the same part whatever
    other clients there are. A client of too few examples, round(share · n) = 0, keeps all of them, and every client
    keeps at least one to train on.

    Args:
        plan: Who holds what.
        examples: The list it was built for.
        share: Share of each client's examples, 0 < share < 1; met as closely as twins allow.
        seed: The experiment's seed.

    Returns:
        (what clients train on, what they validate on), both in the plan's order and with the same modalities seen.
    """
    held = [examples[index] for index in plan.indices.tolist()]
    sizes = np.diff(plan.offsets)
    client_of = np.repeat(np.arange(len(sizes)), sizes)  # [N]
    family_of = np.zeros(len(held), np.int64)
    together = families(twins(held))
    for number, places in enumerate(together):
        family_of[places] = number
    out, decided, left = np.zeros(len(held), bool), np.zeros(len(together), bool), sizes.copy()
    for client, size in enumerate(sizes.tolist()):
        own = np.arange(plan.offsets[client], plan.offsets[client + 1])
        free = own[~decided[family_of[own]]]
        count = round(share * size) - int(out[own].sum())
        for number in _drawn(held, free, family_of, count, stream(seed, "validation", client=client)):
            holders = Counter(client_of[together[number]].tolist())
            if all(left[one] > taken for one, taken in holders.items()):
                out[together[number]] = True
                for one, taken in holders.items():
                    left[one] -= taken
        decided[family_of[own]] = True
    return chosen_of(plan, ~out, examples), chosen_of(plan, out, examples)


def _drawn(
    held: Sequence[Example],
    free: NDArray[np.int64],
    family_of: NDArray[np.int64],
    count: int,
    rng: np.random.Generator,
) -> list[int]:
    """Draw families that are undecided yet, ascending, of at most `count` examples of one client."""
    if count <= 0:
        return []
    groups: dict[int, list[int]] = {}
    for place, number in enumerate(family_of[free].tolist()):
        groups.setdefault(number, []).append(place)
    chosen = spread([held[place] for place in free.tolist()], list(groups.values()), count, rng)
    return sorted({int(family_of[free[place]]) for place in chosen})


def _everything(examples: Sequence[Example]) -> Plan:
    """Return a plan of one share with all examples and all evidence."""
    whole = np.ones(len(examples), bool)
    plan = Plan(np.arange(len(examples)), np.array([0, len(examples)]), whole, whole, "", {})
    return chosen_of(plan, whole, examples)


def plan_json(plan: Plan, examples: Sequence[Example], validation: Validation | None) -> dict[str, Any]:
    """Return what `plan.json` holds: what clients train on, and beside it the validation part where there is one.

    Args:
        plan: What clients train on.
        examples: The training examples.
        validation: What they validate on.
    """
    value = plan_to_json(plan, examples)
    return value if validation is None else {**value, "validation": validation_json(validation)}


def validation_json(validation: Validation) -> dict[str, Any]:
    """Return a validation part as plain values; of more than `ROWS` clients the first `SHOWN` are listed one by one.

    Returns:
        "digest" (of which client keeps which example ids out, with which modalities), "from" (the share, or
        "published"), "examples" (how many), "without" (clients that have none), and "clients": indices into the
        training examples for each client, or into the owners' part.
    """
    sizes = validation.sizes
    listed = validation.plan.clients[: len(sizes) if len(sizes) <= ROWS else SHOWN]
    value = {
        "digest": validation.plan.digest,
        "from": validation.source,
        "examples": len(validation.plan.indices),
        "without": sizes.count(0),
        "clients": [share.indices.tolist() for share in listed],
    }
    if len(sizes) > ROWS:
        value["arrays"] = {
            "sizes": " ".join(map(str, sizes)),
            "indices": " ".join(map(str, validation.plan.indices.tolist())),
        }
    return value
