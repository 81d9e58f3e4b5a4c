"""Build plans: which client holds which example, and which modalities of it the client sees.

A plan consists of four flat arrays, so that a million clients need no more memory than a million examples; a client's
share is a view of them. Plans are compared by a digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from fedloom.scenarios.modality_pattern import PATTERNS, Flags, seen_modalities, uniform_draws
from fedloom.scenarios.partition import PARTITIONS, Pool, check_clients
from fedloom.scenarios.published_draws import published_draws
from fedloom.seeds import stream
from fedloom.system.errors import UserError
from fedloom.types import Example

if TYPE_CHECKING:
    from fedloom.config.schema import Scenario

ARRAYS = (("indices", np.int64), ("image", np.bool_), ("text", np.bool_))


@dataclass(frozen=True, eq=False)
class Share:
    """The examples of one client; the arrays are read-only.

    Attributes:
        indices: Indices of training examples, in the order of their ids, in published mode in that of the draw,
            shape [n], int64.
        image: Whether the client sees the image of each example, shape [n], bool.
        text: Whether it sees the text, shape [n], bool.
    """

    indices: NDArray[np.int64]
    image: NDArray[np.bool_]
    text: NDArray[np.bool_]

    def __post_init__(self) -> None:
        for name, kind in ARRAYS:
            object.__setattr__(self, name, _frozen(getattr(self, name), kind))

    def __len__(self) -> int:
        return len(self.indices)


class Shares(Sequence[Share]):
    """The shares of a plan's clients, each a view of the plan's arrays that is created on access."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __len__(self) -> int:
        return len(self._plan.offsets) - 1

    @overload
    def __getitem__(self, client: int) -> Share: ...
    @overload
    def __getitem__(self, client: slice) -> tuple[Share, ...]: ...
    def __getitem__(self, client: int | slice) -> Share | tuple[Share, ...]:
        places = range(len(self))[client]
        if isinstance(places, range):
            return tuple(self[place] for place in places)
        plan = self._plan
        part = slice(plan.offsets[places], plan.offsets[places + 1])
        return Share(plan.indices[part], plan.image[part], plan.text[part])


@dataclass(frozen=True, eq=False)
class Plan:
    """The outcome of a scenario; client k of a run holds `clients[k]`.

    Attributes:
        indices: The examples of client 0, then of client 1, and so on, shape [N], int64.
        offsets: The start of each client's examples, and at the end N, shape [K + 1], int64.
        image: Whether its client sees the image of each example, shape [N], bool.
        text: Whether its client sees the text of each example, shape [N], bool.
        digest: SHA-256 of which client holds which example ids with which modalities; equal plans have equal digests.
        scenario: The settings of the scenario, as plain values.
    """

    indices: NDArray[np.int64]
    offsets: NDArray[np.int64]
    image: NDArray[np.bool_]
    text: NDArray[np.bool_]
    digest: str
    scenario: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in (*ARRAYS, ("offsets", np.int64)):
            object.__setattr__(self, name, _frozen(getattr(self, name), kind))

    @property
    def clients(self) -> Shares:
        """The shares of all clients."""
        return Shares(self)


def build_plan(
    examples: Sequence[Example], settings: Scenario, seed: int, drawn: Sequence[Example] = ()
) -> Plan:
    """Divide examples among clients and decide which modalities each client sees.

    In corrected mode the plan depends on the settings, the seed and the set of examples, but not on their
    order; in published mode on their order, but not on the seed.

    An example with neither image nor text counts as an example with a text, its question.

    Args:
        examples: Training examples with unique ids.
        settings: The scenario.
        seed: The experiment's seed.
        drawn: In published mode, the examples together with placeholders of skipped records: the published code draws
            with all of them, and a skipped record does not change the place of others. Empty for none.

    Raises:
        UserError: Ids repeat, there are more clients than examples, or the data cannot meet a setting.
    """
    order = sorted(range(len(examples)), key=lambda index: examples[index].id)
    for before, after in pairwise(order):
        if examples[before].id == examples[after].id:
            raise UserError(f"two training examples have the id {examples[after].id!r}; ids must be unique")
    published = settings.mode == "published"
    listed = (drawn or examples) if published else [examples[place] for place in order]
    check_clients(len(listed), settings.clients)  # before arrays are made with a row for each client
    place_of = {example.id: place for place, example in enumerate(examples)}
    places = np.array([place_of.get(example.id, -1) for example in listed], np.int64)
    pool_examples = [
        example if place < 0 else examples[place]
        for example, place in zip(listed, places.tolist(), strict=True)
    ]
    held = np.array(
        [
            (example.image is not None, example.text is not None or example.image is None)
            for example in pool_examples
        ]
    )
    pool = Pool(
        labels=np.array(
            [-1 if example.label is None else example.label for example in pool_examples], np.int64
        ),
        groups=[example.group for example in pool_examples],
        has_image=held[:, 0],
        holds=_holds(settings, seed, published),
    )
    if published:
        parts, seen = published_draws(pool, held, settings)
        parts = [[place for place in part if places[place] >= 0] for part in parts]
        sizes = np.array([len(part) for part in parts], np.int64)
        divided = np.array([*chain.from_iterable(parts)], np.int64)
    else:
        client_of = PARTITIONS[settings.partition](pool, stream(seed, "partition"), settings.alpha)
        draws = uniform_draws([example.id for example in pool_examples], seed)
        seen = seen_modalities(held, pool.holds[client_of], draws, settings)
        sizes = np.bincount(client_of, minlength=settings.clients)
        divided = np.argsort(client_of, kind="stable")
    return _with_digest(places[divided], offsets_of(sizes), seen[divided], examples, settings.model_dump())


def _holds(settings: Scenario, seed: int, published: bool) -> Flags:
    """Draw which modalities each client holds, shape [K, 2]; in published mode that is drawn elsewhere."""
    if published:
        return np.ones((settings.clients, 2), bool)
    return PATTERNS[settings.pattern](settings, stream(seed, "pattern"))


def pooled(plan: Plan) -> Plan:
    """Return a plan in which one client holds all examples, with the same modalities seen."""
    whole = np.array([0, len(plan.indices)])
    return Plan(plan.indices, whole, plan.image, plan.text, _derived(plan, "pooled"), plan.scenario)


def subset(plan: Plan, kept: NDArray[np.bool_], examples: Sequence[Example]) -> Plan:
    """Return a plan in which clients hold a subset of their examples.

    Args:
        plan: The plan.
        kept: Whether its client keeps an example, in the order of `plan.indices`, shape [N].
        examples: The list that the plan was built for.
    """
    ends = np.concatenate([[0], np.cumsum(kept)])[plan.offsets]
    seen = np.stack([plan.image, plan.text], axis=1)[kept]
    return _with_digest(plan.indices[kept], ends, seen, examples, plan.scenario)


def _derived(plan: Plan, how: str) -> str:
    return hashlib.sha256(f"{how}/{plan.digest}".encode()).hexdigest()


def _with_digest(
    indices: NDArray[np.int64],
    offsets: NDArray[np.int64],
    seen: Flags,
    examples: Sequence[Example],
    scenario: Mapping[str, Any],
) -> Plan:
    plan = Plan(indices, offsets, seen[:, 0], seen[:, 1], "", scenario)
    return replace(plan, digest=digest_of(plan, examples))


def offsets_of(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the start of each client's examples, and at the end the number of examples, shape [K + 1]."""
    return np.concatenate([[0], np.cumsum(sizes)])


def _frozen(values: Any, kind: type[np.generic]) -> NDArray[Any]:
    """Return a read-only array; a copy unless the array is already read-only."""
    array = np.asarray(values, dtype=kind)
    if array.flags.writeable:
        array = array.copy()
        array.setflags(write=False)
    return array


def digest_of(plan: Plan, examples: Sequence[Example]) -> str:
    """Return the SHA-256 of the compact JSON text of [[[id, image, text], …] for each client], one client at a time."""
    digest = hashlib.sha256(b"[")
    flat = zip(plan.indices.tolist(), plan.image.tolist(), plan.text.tolist(), strict=True)
    for client, size in enumerate(np.diff(plan.offsets).tolist()):
        triples = (
            f"[{json.dumps(examples[index].id)},{image:d},{text:d}]"
            for index, image, text in islice(flat, size)
        )
        digest.update(f"{',' if client else ''}[{','.join(triples)}]".encode())
    digest.update(b"]")
    return digest.hexdigest()
