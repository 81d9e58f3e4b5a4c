"""What clients gain over training alone, from the cells of a sweep: the gain of each client, and tables of gains.

`grid_tables.py` prints the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from statistics import NormalDist, fmean, variance
from typing import Any, NamedTuple, TypeVar

from fedloom.report.client_verdicts import LEVEL, bottom_fifth, verdict_on
from fedloom.report.confidence_intervals import Z, holm
from fedloom.report.shared_scores import for_everybody
from fedloom.report.significance import SAME, Estimate, count_by_sign, estimate
from fedloom.report.sweeps.estimate_texts import estimate_text
from fedloom.report.sweeps.sweep_results import SEED, CellRun, SweepRun, mean_over_seeds
from fedloom.report.tables import MISSING, Table, label, signed

REPEAT = "train.repeat"
"""The axis of another training on the same data and clients."""

COUNTS = "Better / same / worse"
"""Clients by their mean gain; as in reports, a gain below `SAME` is none."""

Json = Mapping[str, Any]
Key = TypeVar("Key")


class ClientGain(NamedTuple):
    """A client's gain over a baseline in each of several trainings.

    Attributes:
        setting: The labels of the setting.
        seed: The seed.
        client: The number of the client.
        gains: Its gain in each training, fractions.
        questions: The variance of a gain that comes from the choice of questions, which all trainings share; None if unknown,
            as for scores of captions.
    """

    setting: tuple[str, ...]
    seed: Any
    client: int
    gains: tuple[float, ...]
    questions: float | None

    @property
    def key(self) -> tuple[tuple[str, ...], Any, int]:
        """Which client it is: setting, seed and number."""
        return self.setting, self.seed, self.client

    @property
    def mean(self) -> float:
        """The mean over trainings."""
        return fmean(self.gains)


def setting_of(cell: CellRun) -> tuple[str, ...]:
    """Return the labels of a cell on all axes but those of the seed and of the training."""
    return tuple(str(value) for axis, value in cell.values.items() if axis not in (SEED, REPEAT))


def gains_of(sweep: SweepRun, method: str, alone: str) -> list[ClientGain]:
    """Return the gain of every client of every setting and seed, over all trainings that have both methods.

    How answers agree is recorded for the baseline that a report takes, which is training alone with or without fine-tuning; the
    answers of these two are so alike that it serves for either.
    """
    found: dict[tuple[tuple[str, ...], Any, int], list[tuple[float, float | None]]] = {}
    for cell in sweep.cells:
        if cell.result is None or not {method, alone} <= set(cell.scores):
            continue
        agreed = {
            key: cell.result.get("agreement", {}).get(method, {}).get(key) for key in ("own", "clients")
        }
        scores = {name: cell.scores[name] for name in (alone, method)}
        verdict = verdict_on({**cell.result, "scores": scores, "agreement": {method: agreed}}, method)
        for gain in verdict.gains if verdict else ():
            key = setting_of(cell), cell.values[SEED], gain.client
            spread = gain.interval and ((gain.interval[1] - gain.interval[0]) / 2 / Z) ** 2
            found.setdefault(key, []).append((gain.points, spread))
    return [
        ClientGain(*key, tuple(gain for gain, _ in pairs), _mean(spread for _, spread in pairs))
        for key, pairs in found.items()
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of numbers; None if one is unknown."""
    known = list(values)
    return None if None in known else fmean(value for value in known if value is not None)


def p_values(gains: Sequence[ClientGain]) -> list[float] | None:
    """Return the two-sided p-value of each client's mean gain, for the noise of questions and of trainings together; None if unknown.

    The noise of trainings is pooled over clients, since a client has few of them; with one training of each client it is unknown
    and left out.
    """
    questions = [gain.questions for gain in gains if gain.questions is not None]
    if len(questions) < len(gains):
        return None
    several = [gain.gains for gain in gains if len(gain.gains) > 1]
    freedom = sum(len(one) - 1 for one in several)
    training = sum(variance(one) * (len(one) - 1) for one in several) / freedom if freedom else 0.0
    return [
        2 * NormalDist().cdf(-abs(gain.mean) / spread)
        if (spread := sqrt(training / len(gain.gains) + noise))
        else 1.0
        for gain, noise in zip(gains, questions, strict=True)
    ]


def grouped(gains: Sequence[ClientGain], key: Callable[[ClientGain], Key]) -> dict[Key, list[ClientGain]]:
    """Return the gains that have each key, keys in the order of their first gain."""
    found: dict[Key, list[ClientGain]] = {}
    for gain in gains:
        found.setdefault(key(gain), []).append(gain)
    return found


def over_seeds(
    gains: Sequence[ClientGain], of: Callable[[ClientGain], float] = lambda gain: gain.mean
) -> Estimate | None:
    """Return the mean gain, or another figure of clients: over the clients of a seed, and then over seeds."""
    by_seed = grouped(gains, lambda gain: gain.seed)
    return estimate(fmean(map(of, those)) for those in by_seed.values())


def summary(gains: Sequence[ClientGain]) -> dict[str, str]:
    """Return what every table says of the gains of some clients, by column."""
    means = [gain.mean for gain in gains]
    counts = count_by_sign(means)
    return {
        "Mean gain": estimate_text(over_seeds(gains), "+"),
        COUNTS: f"{counts.better} / {counts.same} / {counts.worse}",
        "Worst": signed(min(means)),
        "Bottom fifth": signed(bottom_fifth(means)),
    }


def significant_counts(gains: Sequence[ClientGain]) -> str:
    """Return how many clients are significantly better and worse off at `LEVEL` after Holm's correction; a dash if unknown."""
    if (raw := p_values(gains)) is None:
        return MISSING
    clear = [gain.mean for gain, p in zip(gains, holm(raw), strict=True) if p <= LEVEL]
    return f"{sum(one > 0 for one in clear)} / {sum(one < 0 for one in clear)}"


def gain_table(sweep: SweepRun, alone: str) -> Table:
    """Return what each method brings clients over a baseline, with every client's trainings averaged."""
    rows = []
    for method in sweep.methods:
        gains = [] if method == alone else gains_of(sweep, method, alone)
        if not gains:
            continue
        better = over_seeds(gains, lambda gain: gain.mean >= SAME)  # clients of a seed are not independent
        about = summary(gains)
        rows.append(
            (
                label(method),
                about["Mean gain"],
                about[COUNTS],
                f"{estimate_text(better)} %",
                significant_counts(gains),
                about["Worst"],
                about["Bottom fifth"],
                str(min(len(gain.gains) for gain in gains)),
            )
        )
    heads = (
        "Method",
        "Mean gain",
        COUNTS,
        "Better off",
        "Significantly better / worse",
        "Worst",
        "Bottom fifth",
        "Trainings",
    )
    return Table(heads, tuple(rows))


def setting_table(sweep: SweepRun, method: str, alone: str) -> Table:
    """Return the gains of a method by setting, beside the score of its shared model."""
    rows = list[tuple[str, ...]]()
    for setting, gains in grouped(gains_of(sweep, method, alone), lambda gain: gain.setting).items():
        cells = [cell for cell in sweep.cells if setting_of(cell) == setting]
        shared = estimate_text(mean_over_seeds(cells, method, of=for_everybody))
        rows.append((", ".join(setting) or "all", shared, *summary(gains).values()))
    return Table(("Setting", "Shared model", "Mean gain", COUNTS, "Worst", "Bottom fifth"), tuple(rows))


def kind_of(setting: tuple[str, ...]) -> str:
    """Return the kind of a setting: what stands before the first hyphen of its label, such as "missing" of "missing-30"."""
    return setting[0].partition("-")[0] if setting else "all"


def by_kind(gains: Sequence[ClientGain]) -> dict[str, list[ClientGain]]:
    """Return the gains of each kind of setting, kinds in the order of their first setting."""
    return grouped(gains, lambda gain: kind_of(gain.setting))


def kinds_of(sweep: SweepRun) -> list[str]:
    """Return the kinds of a sweep's settings, in the order of its cells."""
    return list(dict.fromkeys(kind_of(setting_of(cell)) for cell in sweep.cells))


def kind_table(sweep: SweepRun, alone: str) -> Table:
    """Return what each method brings clients over a baseline, by kind of setting."""
    rows, kinds = list[tuple[str, ...]](), kinds_of(sweep)
    for method in sweep.methods:
        found = {} if method == alone else by_kind(gains_of(sweep, method, alone))
        about = {kind: summary(gains) for kind, gains in found.items()}
        if about:
            texts = {kind: f"{one['Mean gain']}; {one[COUNTS]}" for kind, one in about.items()}
            rows.append((label(method), *(texts.get(kind, MISSING) for kind in kinds)))
    return Table(("Method", *map(str.capitalize, kinds)), tuple(rows))


def part_table(sweep: SweepRun, alone: str) -> Table:
    """Return what each part adds to a method: each two methods that differ in one part, compared client by client."""
    rows, kinds = list[tuple[str, ...]](), kinds_of(sweep)
    for method, without, part in pairs_of(sweep.methods):
        before = {gain.key: gain.mean for gain in gains_of(sweep, without, alone)}
        gains = [
            gain._replace(gains=(gain.mean - before[gain.key],))
            for gain in gains_of(sweep, method, alone)
            if gain.key in before
        ]
        if gains:
            about, found = summary(gains), by_kind(gains)
            means = (estimate_text(over_seeds(found.get(kind, ())), "+") for kind in kinds)
            rows.append((part, label(without), about["Mean gain"], *means, about[COUNTS], about["Worst"]))
    heads = ("Part", "Added to", "All", *map(str.capitalize, kinds), COUNTS, "Worst")
    return Table(heads, tuple(rows), left=2)


def pairs_of(methods: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return each method, another one that is the same without one part, and that part; training alone is what others are compared with."""
    found = []
    for method in methods:
        base, *parts = method.split("+")
        for part in parts if base != "local" else ():
            without = "+".join([base, *(other for other in parts if other != part)])
            if without in methods:
                found.append((method, without, part))
    return found


def size_table(value: Json, sweep: SweepRun, method: str, alone: str) -> Table:
    """Return the gains of a method by the number of examples that a client holds, in four groups with about as many clients each."""
    examples = {
        (setting_of(cell), cell.values[SEED], client): count
        for cell in sweep.cells
        for client, count in enumerate(value["cells"][cell.name]["examples"])
    }
    gains = gains_of(sweep, method, alone)
    sizes = sorted(examples[gain.key] for gain in gains)
    starts = sorted({sizes[len(sizes) * quarter // 4] for quarter in range(4)})
    rows = list[tuple[str, ...]]()
    for start, end in zip(starts, [*starts[1:], sizes[-1] + 1], strict=True):
        group = [gain for gain in gains if start <= examples[gain.key] < end]
        rows.append((f"{start} to {end - 1}", *summary(group).values()))
    return Table(("Examples", "Mean gain", COUNTS, "Worst", "Bottom fifth"), tuple(rows))
