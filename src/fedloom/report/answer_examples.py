"""Choose the test examples that a page of answers shows, by a rule that knows nothing of the examples but their order.

Two models are compared on one slice of the test set. Shown are the first examples that the first one answers wrongly and the
second one correctly, and the first ones the other way round, in the order of the test set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fedloom.report.federation_gain import local_method
from fedloom.report.findings import headline_method
from fedloom.report.run_results import Json, number
from fedloom.report.tables import base
from fedloom.tasks.predictions import Prediction

SHOWN = 3
"""Examples of each direction of each comparison."""

MOST_CLIENTS = 10
"""Clients that have comparisons of their own, the first ones."""

SEEN = {"both": "both", "image_only": "image", "text_only": "text"}
"""Count of a client's examples in the plan → the slice with the same modalities."""


class Model(NamedTuple):
    """A method's model: that of a client, or with None the shared one."""

    method: str
    client: int | None = None


@dataclass(frozen=True)
class Columns:
    """The methods whose answers are shown; each may be None.

    Attributes:
        zero_shot: The base model.
        local: Each client's own model, trained alone.
        federated: The method that the report's first sentence is about.
        centralized: The model trained on pooled data.
    """

    zero_shot: str | None
    local: str | None
    federated: str | None
    centralized: str | None

    @property
    def methods(self) -> list[str]:
        """The methods that there are, in order."""
        named = (self.zero_shot, self.local, self.federated, self.centralized)
        return [name for name in named if name is not None]


@dataclass(frozen=True)
class Comparison:
    """Two models on a slice, and the examples of which the second one's answers are right and the first one's wrong, or the
    other way round.

    Attributes:
        before: The first model.
        after: The second one.
        slice: The modalities that both saw.
        client: The client on whose behalf they are compared, or None.
        questions: Number of test examples that both answered.
        gained: Ids of the examples that became right, in the order of the test set.
        lost: Ids of those that became wrong.
    """

    before: Model
    after: Model
    slice: str
    client: int | None
    questions: int
    gained: tuple[str, ...]
    lost: tuple[str, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """Ids of the examples that a page shows."""
        return self.gained[:SHOWN] + self.lost[:SHOWN]


def columns_of(result: Json) -> Columns:
    """Return the columns of a run's page of answers."""
    names = list(result["scores"])
    zero_shot, centralized = (
        next((name for name in names if base(name) == kind), None) for kind in ("zero-shot", "centralized")
    )
    return Columns(zero_shot, local_method(result["scores"]), headline_method(result), centralized)


Right = Mapping[str, Mapping[Model, Mapping[str, bool]]]
"""Slice → model → id of an example → whether the answer is right."""


def read_right(rows: Iterable[Prediction], columns: Columns) -> Right:
    """Return which answers are right, for the models that are compared."""
    right: dict[str, dict[Model, dict[str, bool]]] = {}
    wanted = {columns.zero_shot, columns.local, columns.federated}
    for row in rows:
        if row.method in wanted and (row.client is None or row.client < MOST_CLIENTS):
            models = right.setdefault(row.slice, {})
            models.setdefault(Model(row.method, row.client), {})[row.example] = row.correct
    return right


def comparisons_of(right: Right, columns: Columns, clients: Sequence[Json]) -> list[Comparison]:
    """Compare the base model with the shared one on every slice, and each client's own model with the one it is served by.

    Args:
        right: See `read_right`.
        columns: The methods.
        clients: The rows of the plan, from which follows the slice that a client holds most of.
    """
    zero_shot, local, federated = columns.zero_shot, columns.local, columns.federated
    if federated is None:
        return []
    found = list[Comparison]()
    for name, models in right.items():
        before, after = Model(zero_shot or ""), Model(federated)
        if before in models and after in models:
            found.append(_compare(models, before, after, name, None))
    for client, row in enumerate(clients[:MOST_CLIENTS]):
        name = slice_of(row, list(right))
        models = right.get(name, {})
        before, own = Model(local or "", client), Model(federated, client)
        after = own if own in models else Model(federated)
        if before in models and after in models:
            found.append(_compare(models, before, after, name, client))
    return found


def slice_of(client: Json, slices: Sequence[str]) -> str:
    """Return the slice that a client holds most examples of; without counts, or where there is no such slice, the first one."""
    counts = {name: number(client, key) or 0 for key, name in SEEN.items() if name in slices}
    return max(counts, key=lambda name: counts[name]) if any(counts.values()) else (slices or ["both"])[0]


def _compare(
    models: Mapping[Model, Mapping[str, bool]], before: Model, after: Model, name: str, client: int | None
) -> Comparison:
    ours, theirs = models[after], models[before]
    asked = [example for example in theirs if example in ours]
    gained, lost = (
        tuple(one for one in asked if theirs[one] is not better and ours[one] is better)
        for better in (True, False)
    )
    return Comparison(before, after, name, client, len(asked), gained, lost)


Shown = Mapping[tuple[str, str], Mapping[Model, Prediction]]
"""(Slice, id of an example) → model → its answer."""


def read_shown(rows: Iterable[Prediction], columns: Columns, comparisons: Sequence[Comparison]) -> Shown:
    """Return the answers of all methods to the examples that are shown.

    Of models of single clients, only those are kept of the clients for whom an example is shown; for an example that is shown for
    nobody in particular, those of all clients that trained alone.
    """
    wanted: dict[tuple[str, str], set[int | None]] = {}
    for one in comparisons:
        for example in one.shown:
            wanted.setdefault((one.slice, example), set()).add(one.client)
    shown: dict[tuple[str, str], dict[Model, Prediction]] = {}
    methods = set(columns.methods)
    for row in rows:
        clients = wanted.get((row.slice, row.example))
        if clients is None or row.method not in methods:
            continue
        if row.client is None or row.client in clients or (row.method == columns.local and None in clients):
            shown.setdefault((row.slice, row.example), {})[Model(row.method, row.client)] = row
    return shown


def missing_reason(columns: Columns) -> str:
    """Return why a run has nothing to compare, without a full stop; "" if it has."""
    if columns.federated is None:
        return "the run has no federated method whose answers could be compared"
    if columns.zero_shot is None and columns.local is None:
        return "the run has neither zero-shot nor local training, with whose answers others could be compared"
    return ""
