"""A plan: who holds which example and which modalities of it are seen, with a digest to compare it by."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedloom.scenarios.partition import PARTITIONS
from fedloom.scenarios.pattern import PATTERNS, PatternSettings, coins
from fedloom.seeds import stream
from fedloom.types import Example, UserError


class ScenarioSettings(PatternSettings, Protocol):
    """The `scenario` section of an experiment."""

    @property
    def partition(self) -> str:
        """A key of `PARTITIONS`."""
        ...

    @property
    def alpha(self) -> float:
        """Concentration of the Dirichlet partition, > 0."""
        ...

    @property
    def pattern(self) -> str:
        """A key of `PATTERNS`."""
        ...


FIELDS = ("clients", "partition", "alpha", "pattern", "rate", "image_clients", "p")


@dataclass(frozen=True, eq=False)
class Share:
    """What one client holds, in the order of example ids; the arrays are read-only.

    Attributes:
        indices: Places in the list of training examples, shape [n], int64.
        image: Whether the client sees the image of each, shape [n], bool.
        text: Whether it sees the text, shape [n], bool.
    """

    indices: NDArray[np.int64]
    image: NDArray[np.bool_]
    text: NDArray[np.bool_]

    def __post_init__(self) -> None:
        for name, kind in (("indices", np.int64), ("image", np.bool_), ("text", np.bool_)):
            array = np.array(getattr(self, name), dtype=kind)
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, eq=False)
class Plan:
    """The outcome of a scenario; client k of a run holds `clients[k]`.

    Attributes:
        clients: One share for each client.
        digest: SHA-256 of who holds which example ids with which modalities; equal plans have equal digests.
        scenario: The settings it came from, as plain values.
    """

    clients: tuple[Share, ...]
    digest: str
    scenario: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return the plan as plain values, with counts of modalities and answers for each client.

        Args:
            examples: The list the plan was built for.
        """
        clients = [_share_json(number, share, examples) for number, share in enumerate(self.clients)]
        return {"digest": self.digest, "scenario": dict(self.scenario), "clients": clients}

    @staticmethod
    def from_json(value: Mapping[str, Any], examples: Sequence[Example] | None = None) -> Plan:
        """Read what `to_json` wrote; with `examples`, check that they are the ones it was made for.

        Raises:
            UserError: The digest does not fit the examples.
        """
        shares = tuple(Share(row["indices"], row["image"], row["text"]) for row in value["clients"])
        plan = Plan(shares, value["digest"], value["scenario"])
        if examples is not None:
            inside = all(share.indices.max(initial=-1) < len(examples) for share in shares)
            if not inside or _digest(shares, examples) != plan.digest:
                raise UserError(
                    f"the plan {plan.digest[:12]} was made for other data: its digest does not fit"
                )
        return plan


def build_plan(examples: Sequence[Example], settings: ScenarioSettings, seed: int) -> Plan:
    """Divide examples among clients and decide which modalities each client sees.

    The plan depends on the settings, the seed and the set of examples, but not on their order.

    Args:
        examples: Training examples with unique ids.
        settings: The scenario.
        seed: The experiment's seed.

    Raises:
        UserError: Ids repeat, more clients than examples, or a setting that the data cannot meet.
    """
    order = sorted(range(len(examples)), key=lambda index: examples[index].id)
    found = [examples[index] for index in order]
    ids = [example.id for example in found]
    for before, after in pairwise(ids):
        if before == after:
            raise UserError(f"two training examples have the id {after!r}; ids must be unique")
    labels = np.array([-1 if example.label is None else example.label for example in found], dtype=np.int64)
    groups = [example.group for example in found]
    divide, hide = PARTITIONS[settings.partition], PATTERNS[settings.pattern]
    parts = divide(labels, groups, settings.clients, stream(seed, "partition"), settings.alpha)
    client_of = np.empty(len(found), dtype=np.int64)
    for client, part in enumerate(parts):
        client_of[part] = client
    held = np.array([(example.image is not None, example.text is not None) for example in found])
    present = hide(client_of, held, coins(ids, seed), stream(seed, "pattern"), settings)
    places = np.array(order, dtype=np.int64)
    shares = tuple(Share(places[part], present[part, 0], present[part, 1]) for part in parts)
    return Plan(shares, _digest(shares, examples), {name: getattr(settings, name) for name in FIELDS})


def pooled(plan: Plan) -> Plan:
    """Return a plan with one client that holds everything, with the same modalities seen."""
    union = Share(
        np.concatenate([share.indices for share in plan.clients]),
        np.concatenate([share.image for share in plan.clients]),
        np.concatenate([share.text for share in plan.clients]),
    )
    return Plan((union,), _derived(plan, "pooled"), plan.scenario)


def only(plan: Plan, client: int) -> Plan:
    """Return a plan whose one client, number 0, holds what `client` holds in `plan`."""
    return Plan((plan.clients[client],), _derived(plan, f"only {client}"), plan.scenario)


def _derived(plan: Plan, how: str) -> str:
    return hashlib.sha256(f"{how}/{plan.digest}".encode()).hexdigest()


def _digest(shares: Iterable[Share], examples: Sequence[Example]) -> str:
    rows = [
        [
            [examples[index].id, int(image), int(text)]
            for index, image, text in zip(share.indices, share.image, share.text, strict=True)
        ]
        for share in shares
    ]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def _share_json(number: int, share: Share, examples: Sequence[Example]) -> dict[str, Any]:
    labels = Counter(_label(examples[index]) for index in share.indices)
    return {
        "id": number,
        "indices": share.indices.tolist(),
        "image": share.image.astype(int).tolist(),
        "text": share.text.astype(int).tolist(),
        "size": len(share),
        "both": int((share.image & share.text).sum()),
        "image_only": int((share.image & ~share.text).sum()),
        "text_only": int((~share.image & share.text).sum()),
        "none": int((~share.image & ~share.text).sum()),
        "labels": dict(sorted(labels.items())),
    }


def _label(example: Example) -> str:
    # Free answers are nearly all different; counting them would tell nothing.
    return example.answer if example.options else example.group or example.task
