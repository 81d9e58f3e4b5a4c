"""The validation set: examples whose scores decide between rounds, learning rates and methods.

It is a share of each client's training examples, drawn after these have been divided among the clients, or the owners'
part, which is the same for all clients. Its examples are neither trained on nor in the test set.

Shape legend: N = number of training examples, K = number of clients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedloom.data.duplicates import near_duplicate_keys
from fedloom.data.loading import connected_groups, stratified_sample
from fedloom.scenarios.declared_examples import plan_with_all_examples
from fedloom.scenarios.plan import Plan, Share, build_plan, subset
from fedloom.scenarios.plan_file import ROWS, SHOWN, plan_to_json
from fedloom.seeds import stream
from fedloom.system.errors import UserError
from fedloom.types import DataSet, Example

if TYPE_CHECKING:
    from fedloom.config.schema import Data, Scenario


@dataclass(frozen=True, eq=False)
class Validation:
    """The validation examples of each client.

    Attributes:
        examples: The list that the plan's indices point into.
        plan: The examples of each client, perhaps none; if the set is common, one share with all of them.
        source: The share of each client's training examples that is held out, or "published".
        common: Whether every model is validated on all examples; else a client's own model is validated on that client's.
    """

    examples: Sequence[Example]
    plan: Plan
    source: float | str
    common: bool = False

    def share(self, client: int | None) -> Share:
        """Return the examples to validate a client's own model on; for None, those for a global model."""
        if client is None or self.common:
            return Share(self.plan.indices, self.plan.image, self.plan.text)
        return self.plan.clients[client]

    @property
    def sizes(self) -> list[int]:
        """The number of validation examples of each client; a single number if the set is common."""
        return np.diff(self.plan.offsets).tolist()

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The distinct tasks of the examples, in order of appearance."""
        return tuple(dict.fromkeys(self.examples[index].task for index in self.plan.indices.tolist()))


def plan_and_validation(
    data: DataSet, settings: Data, scenario: Scenario, seed: int
) -> tuple[Plan, Validation | None]:
    """Divide training examples among clients, and hold out the validation set.

    Args:
        data: The data set; its `validation` is the owners' validation set if the settings ask for it.
        settings: `validation` is used.
        scenario: The scenario.
        seed: The experiment's seed; each client's validation set is drawn from its stream "validation".

    Returns:
        (training examples of the clients, validation examples or None).

    Raises:
        UserError: `build_plan` fails, or no client has enough examples to hold one out.
    """
    plan = build_plan(data.train, scenario, seed, data.drawn)
    if not settings.validation:
        return plan, None
    if isinstance(settings.validation, str):
        return plan, common_validation(data.validation, settings.validation)
    trained, kept = hold_out(plan, data.train, settings.validation, seed)
    if not len(kept.indices):
        raise UserError(
            f"data.validation is {settings.validation:g}, but no client has enough examples to hold one out: "
            f"the largest holds {int(np.diff(plan.offsets).max()):,}, and examples with an image, a text or a record in "
            "common stay together; take a larger share, or fewer clients"
        )
    return trained, Validation(data.train, kept, settings.validation)


def common_validation(examples: Sequence[Example], source: float | str) -> Validation:
    """Return the validation set in which every model is validated on all examples."""
    return Validation(examples, _plan_of_all(examples), source, common=True)


def hold_out_at_site(data: DataSet, source: float | str, seed: int, site: str) -> DataSet:
    """Return the data of a site with a share of its training examples as its validation part.

    The draw depends on the site's name and data alone, since a site learns the number of its client only later.

    Args:
        data: The site's data.
        source: The share, 0 ≤ share < 1; or "published" for the validation part that the data have already.
        seed: The experiment's seed.
        site: The site's name.
    """
    if isinstance(source, str):
        return data
    if not source:
        return replace(data, validation=())
    plan = plan_with_all_examples(data.train, 1)
    parts = hold_out(plan, data.train, source, seed, f"validation at {site}")
    train, validation = ([data.train[index] for index in part.indices.tolist()] for part in parts)
    return replace(data, train=tuple(train), validation=tuple(validation))


def plan_over_sites(
    data: DataSet, settings: Data, scenario: Scenario, seed: int
) -> tuple[Plan, Validation | None]:
    """Divide blank examples among sites; see `plan_and_validation`.

    Args:
        data: Blank examples in `train`; those in `validation`, too, stand for validation examples at sites.
        settings: `validation` is used.
        scenario: The scenario, which divides examples by site.
        seed: The experiment's seed.

    Raises:
        UserError: `build_plan` fails, or no site has a validation example although the settings ask for some.
    """
    plan = build_plan(data.train, scenario, seed)
    if not settings.validation:
        return plan, None
    if not data.validation:
        raise UserError(
            f"data.validation is {settings.validation}, but no site has enough examples to hold one out: examples with "
            "an image, a text or a record in common stay together; take a larger share"
        )
    held = {example.id for example in data.validation}
    out = np.array([data.train[index].id in held for index in plan.indices.tolist()], bool)
    kept = subset(plan, out, data.train)
    return subset(plan, ~out, data.train), Validation(data.train, kept, settings.validation)


def hold_out(
    plan: Plan, examples: Sequence[Example], share: float, seed: int, purpose: str = "validation"
) -> tuple[Plan, Plan]:
    """Hold out a share of each client's examples, with similar answers and with near-duplicates in one part.

    Near-duplicates (`fedloom.data.duplicates.near_duplicate_keys`) of all clients are in one part: no client validates on
    what another trains on. Clients draw in the order of their numbers; if a client's examples have no near-duplicates
    elsewhere, its part does not depend on other clients. A client with too few examples, round(share · n) = 0, keeps all
    of them, and every client keeps at least one to train on.

    Args:
        plan: The plan.
        examples: The list that the plan was built for.
        share: Share of each client's examples, 0 < share < 1; met as closely as near-duplicates allow.
        seed: The experiment's seed.
        purpose: The name of the clients' random streams.

    Returns:
        (training examples, validation examples), both in the plan's order and with the same modalities seen.
    """
    held = [examples[index] for index in plan.indices.tolist()]
    sizes = np.diff(plan.offsets)
    client_of = np.repeat(np.arange(len(sizes)), sizes)  # [N]
    group_of = np.zeros(len(held), np.int64)
    groups = connected_groups(near_duplicate_keys(held))
    for number, places in enumerate(groups):
        group_of[places] = number
    out, decided, left = np.zeros(len(held), bool), np.zeros(len(groups), bool), sizes.copy()
    for client, size in enumerate(sizes.tolist()):
        own = np.arange(plan.offsets[client], plan.offsets[client + 1])
        free = own[~decided[group_of[own]]]
        count = round(share * size) - int(out[own].sum())
        for number in _draw_groups(held, free, group_of, count, stream(seed, purpose, client=client)):
            holders = Counter(client_of[groups[number]].tolist())
            if all(left[holder] > taken for holder, taken in holders.items()):
                out[groups[number]] = True
                for holder, taken in holders.items():
                    left[holder] -= taken
        decided[group_of[own]] = True
    return subset(plan, ~out, examples), subset(plan, out, examples)


def _draw_groups(
    held: Sequence[Example],
    free: NDArray[np.int64],
    group_of: NDArray[np.int64],
    count: int,
    rng: np.random.Generator,
) -> list[int]:
    """Draw undecided groups with at most `count` examples of one client, and return their numbers in ascending order."""
    if count <= 0:
        return []
    groups: dict[int, list[int]] = {}
    for place, number in enumerate(group_of[free].tolist()):
        groups.setdefault(number, []).append(place)
    chosen = stratified_sample([held[place] for place in free.tolist()], list(groups.values()), count, rng)
    return sorted({int(group_of[free[place]]) for place in chosen})


def _plan_of_all(examples: Sequence[Example]) -> Plan:
    """Return a plan of one share with all examples and all modalities."""
    whole = np.ones(len(examples), bool)
    plan = Plan(np.arange(len(examples)), np.array([0, len(examples)]), whole, whole, "", {})
    return subset(plan, whole, examples)


def plan_json(
    plan: Plan, examples: Sequence[Example], validation: Validation | None, *, blank: bool = False
) -> dict[str, Any]:
    """Return the contents of `plan.json`: the plan, and the validation set if there is one.

    Args:
        plan: The training examples of each client.
        examples: The training examples.
        validation: The validation set.
        blank: Whether the examples are blank; then there are no figures about labels and words, which only sites know.
    """
    value = plan_to_json(plan, examples)
    if blank:
        unknown = dict.fromkeys(("labels", "words", "total_variation", "jensen_shannon"))
        value["card"] |= {"labels": None, "words": None}
        value["clients"] = [row | unknown for row in value["clients"]]
    return value if validation is None else {**value, "validation": validation_json(validation)}


def validation_json(validation: Validation) -> dict[str, Any]:
    """Return a validation set as plain values; for more than `ROWS` clients, only the first `SHOWN` have a row.

    Returns:
        "digest" (of each client's held-out example ids and modalities), "from" (the share, or
        "published"), "examples" (their number), "without" (number of clients without any), and "clients": for each
        client, indices of training examples, or of examples of the owners' part.
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
