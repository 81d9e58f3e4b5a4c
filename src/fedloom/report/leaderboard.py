"""Rank methods of finished runs that answer the same question, and state which differences may be due to chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from statistics import fmean
from typing import Any, NamedTuple

from fedloom.report.confidence_intervals import difference_p, holm, interval
from fedloom.report.significance import ClientCounts, Estimate, estimate
from fedloom.report.tables import MISSING, Table, counted, label, percent, size, title

LEVEL = 0.05


class MethodResult(NamedTuple):
    """A method of one finished run.

    Attributes:
        folder: The run folder.
        seed: The run's seed.
        method: The method.
        question: What decides which question the run answers, besides the content of its data.
        contents: Digest of the content of its data.
        about: The question in words.
        settings: Key → value of every setting of the method that differs from its default.
        entry: Short digest of question, method and settings.
        metric: The name of the score.
        score: The main score on the test set; None if it is undefined.
        questions: Number of independent test questions, if the score is a share of them; else None.
        own: Mean score on data like each client's own; None if unknown.
        clients: Clients that are better and worse off than alone.
        sent: Bytes sent in both directions; None if unknown.
    """

    folder: str
    seed: int
    method: str
    question: str
    contents: str
    about: str
    settings: Mapping[str, Any]
    entry: str
    metric: str
    score: float | None
    questions: float | None
    own: float | None
    clients: ClientCounts
    sent: float | None


@dataclass(frozen=True)
class Entry:
    """A method with its settings, over its seeds; `results` has one for each seed, in their order."""

    results: tuple[MethodResult, ...]

    @property
    def first(self) -> MethodResult:
        """The result of the lowest seed, which shares method, settings and entry id with the others."""
        return self.results[0]

    @property
    def scores(self) -> dict[int, float]:
        """Seed → score, where there is one."""
        return {one.seed: one.score for one in self.results if one.score is not None}

    @property
    def estimate(self) -> Estimate | None:
        """The mean score over seeds."""
        return estimate(self.scores.values())

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval: Student's over several seeds; of one seed, or of seeds that all gave the same score,
        Wilson's over the questions, or None.
        """
        mean = self.estimate
        if mean is None:
            return None
        if (ends := mean.ends) is not None:
            return ends
        questions = next((one.questions for one in self.results if one.score is not None), None)
        return interval(mean.mean, questions) if questions and 0 <= mean.mean <= 1 else None

    @property
    def clients(self) -> ClientCounts:
        """Clients of all seeds that are better and worse off than alone."""
        counts = ClientCounts()
        for one in self.results:
            counts = counts.plus(one.clients)
        return counts

    @property
    def sent(self) -> float | None:
        """Bytes sent, mean over seeds."""
        return _mean([one.sent for one in self.results])

    @property
    def own(self) -> float | None:
        """Mean score on data like each client's own, over seeds."""
        return _mean([one.own for one in self.results])


class Lead(NamedTuple):
    """How far an entry is ahead of the next one.

    Attributes:
        difference: The mean difference over the seeds that both have; None without such a seed.
        seeds: Number of these seeds.
        p: The p-value after Holm's correction over the board; None if it cannot be tested.
    """

    difference: float | None
    seeds: int
    p: float | None

    @property
    def significant(self) -> bool | None:
        """Whether the difference is significant at 5 %; None if it cannot be tested."""
        return None if self.p is None else self.p <= LEVEL


@dataclass(frozen=True)
class Board:
    """The ranking of the entries that answer one question.

    Attributes:
        about: The question in words.
        metric: The name of the score.
        entries: The entries, the highest mean score first; those without a score come last.
        leads: How far each entry but the last is ahead of the next.
    """

    about: str
    metric: str
    entries: tuple[Entry, ...]
    leads: tuple[Lead, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the board as plain values."""
        leads: list[Lead | None] = [*self.leads, None]
        return {
            "about": self.about,
            "metric": self.metric,
            "entries": [
                _row(rank, entry, lead)
                for rank, (entry, lead) in enumerate(zip(self.entries, leads, strict=True), 1)
            ],
        }

    def table(self) -> Table:
        """Return the board as a table for people."""
        words = {None: "?", True: "ahead", False: "n.s."}
        ahead = [*(words[lead.significant] for lead in self.leads), ""]
        rows = tuple(
            (
                entry.first.entry,
                label(entry.first.method),
                settings_id(entry.first) if entry.first.settings else MISSING,
                percent(entry.estimate.mean if entry.estimate else None),
                _interval_text(entry.interval),
                str(len(entry.scores)),
                f"{entry.clients.better}/{entry.clients.worse}" if entry.clients else MISSING,
                size(entry.sent),
                note,
            )
            for entry, note in zip(self.entries, ahead, strict=True)
        )
        columns = (
            "Entry", "Method", "Settings", title(self.metric), "95 %", "n", "Better / worse", "Sent", "Next",
        )  # fmt: skip
        return Table(columns, rows, self._note(), left=3)

    def _note(self) -> str:
        means = [entry.estimate for entry in self.entries if entry.estimate is not None]
        several, single = (any((mean.ends is None) == alike for mean in means) for alike in (False, True))
        notes = [
            "In percent on the test set; n seeds.",
            "Intervals are Student's over seeds." if several else "",
            "Of one seed, and of seeds that all gave the same score, intervals are Wilson's and account for the questions only."
            if single
            else "",
            "Better/worse: clients better and worse off than alone, on data like their own, over all seeds.",
            "Next: whether the entry is significantly ahead of the one below (paired by seed where both have two or more: a t-test, or "
            "the exact sign test if all differences are the same; Holm's correction, 5 %), n.s. if not, ? if that cannot be tested.",
            _settings_note(self.entries),
        ]
        return " ".join(filter(None, notes))


def boards(results: Sequence[MethodResult]) -> list[Board]:
    """Group results by question, and rank the entries of each.

    The content of the data may depend on the seed, so results belong together if, of every seed, all have the same content.
    Of several results with the same entry, seed and content, the last one counts.
    """
    by_question: dict[str, list[MethodResult]] = {}
    for one in results:
        by_question.setdefault(one.question, []).append(one)
    found = list[Board]()
    for group in by_question.values():
        contents: dict[int, set[str]] = {}
        for one in group:
            contents.setdefault(one.seed, set()).add(one.contents)
        if all(len(of_seed) == 1 for of_seed in contents.values()):
            found.append(_board(group))
        else:
            for content in dict.fromkeys(one.contents for one in group):
                found.append(_board([one for one in group if one.contents == content]))
    return found


def settings_id(result: MethodResult) -> str:
    """Return a short digest of a result's settings."""
    from fedloom.system.file_hashes import json_digest

    return json_digest(dict(result.settings))[:6]


def _board(group: Sequence[MethodResult]) -> Board:
    by_entry: dict[str, dict[int, MethodResult]] = {}
    for one in group:
        by_entry.setdefault(one.entry, {})[one.seed] = one
    entries = [Entry(tuple(seeds[seed] for seed in sorted(seeds))) for seeds in by_entry.values()]
    entries.sort(key=lambda entry: (-(entry.estimate.mean if entry.estimate else -inf), entry.first.method))
    leads = [_lead(one, other) for one, other in pairwise(entries)]
    adjusted = iter(holm([lead.p for lead in leads if lead.p is not None]))
    leads = [lead if lead.p is None else lead._replace(p=next(adjusted)) for lead in leads]
    return Board(group[0].about, group[0].metric, tuple(entries), tuple(leads))


def _lead(one: Entry, other: Entry) -> Lead:
    common = [seed for seed in one.scores if seed in other.scores]
    paired = estimate([one.scores[seed] - other.scores[seed] for seed in common])
    if paired is None:
        return Lead(None, 0, None)
    p = paired.p
    if (
        p is None
    ):  # one seed: only the questions can be accounted for; they are taken as independent, which is conservative
        questions = one.first.questions and other.first.questions
        pair = one.scores[common[0]], other.scores[common[0]]
        if questions and all(0 <= score <= 1 for score in pair):
            p = difference_p(*pair, questions)
    return Lead(paired.mean, paired.seeds, p)


def _row(rank: int, entry: Entry, lead: Lead | None) -> dict[str, Any]:
    first, mean = entry.first, entry.estimate
    low, high = entry.interval or (None, None)
    return {
        "rank": rank,
        "entry": first.entry,
        "method": first.method,
        "settings": dict(first.settings),
        "score": mean.mean if mean else None,
        "low": low,
        "high": high,
        "seeds": [one.seed for one in entry.results],
        "own_data": entry.own,
        "clients_better": entry.clients.better if entry.clients else None,
        "clients_worse": entry.clients.worse if entry.clients else None,
        "bytes": entry.sent,
        "ahead_of_next": None if lead is None else {**lead._asdict(), "significant": lead.significant},
        "runs": [one.folder for one in entry.results],
    }


def board_csv(found: Sequence[Board]) -> str:
    """Return the entries of all boards as one table in CSV, with plain numbers."""
    names = (
        "rank",
        "entry",
        "method",
        "score",
        "low",
        "high",
        "own_data",
        "clients_better",
        "clients_worse",
        "bytes",
    )
    rows = list[tuple[str, ...]]()
    for number, board in enumerate(found, 1):
        for row in board.to_json()["entries"]:
            lead = row["ahead_of_next"] or {}
            cells = [MISSING if row[name] is None else str(row[name]) for name in names]
            p = MISSING if lead.get("p") is None else str(lead["p"])
            rows.append((str(number), board.about, board.metric, *cells, str(len(row["seeds"])), p))
    return Table(("board", "question", "metric", *names, "seeds", "p_next"), tuple(rows)).csv()


def _settings_note(entries: Sequence[Entry]) -> str:
    """Name the settings in which entries differ."""
    every = {settings_id(entry.first): entry.first.settings for entry in entries if entry.first.settings}
    keys = sorted({key for settings in every.values() for key in settings})
    other = [key for key in keys if len({str(settings.get(key)) for settings in every.values()}) > 1]
    texts = [
        f"{name}: {', '.join(f'{key} {settings[key]}' for key in other if key in settings) or 'defaults'}"
        for name, settings in every.items()
    ]
    return (
        f"{counted(len(every), 'setting')}; {'; '.join(texts)} (keys at their defaults are left out)."
        if other
        else ""
    )


def _interval_text(ends: tuple[float, float] | None) -> str:
    return MISSING if ends is None else f"{percent(ends[0])}–{percent(ends[1])}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
