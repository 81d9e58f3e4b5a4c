"""Sentences about a method over several seeds: its score on everybody's questions, and the verdicts of clients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedloom.report.client_verdicts import Verdict, bottom_fifth, verdict_on
from fedloom.report.federation_gain import local_method, main_score
from fedloom.report.findings import global_score, subject
from fedloom.report.run_results import Json, number
from fedloom.report.significance import ClientCounts, Estimate, estimate
from fedloom.report.site_scores_table import tested_on
from fedloom.report.tables import percent, signed


def seeds_findings(results: Sequence[Json], method: str | None) -> list[str]:
    """Describe a federated method over runs that differ only in their seed, in one or two sentences.

    Args:
        results: The contents of the runs' result.json; at least one.
        method: The method; None if no federated method was scored.
    """
    scored = [result for result in results if method in result["scores"]] if method else []
    reached = estimate(_known(global_score(result, method or "") for result in scored))
    if method is None or reached is None:
        return ["No federated method was scored, so there is no gain from federation to report."]
    alone = local_method(scored[0]["scores"])
    other = "" if alone is None else _alone_clause(scored, alone)
    sentence = f"Over {reached.seeds} seeds {subject(scored[0], method)} reaches {spread(reached)} on {tested_on(scored[0])}{other}."
    verdicts = [verdict for result in scored if (verdict := verdict_on(result, method)) is not None]
    return [sentence, _clients_sentence(verdicts)] if verdicts else [sentence]


def _alone_clause(results: Sequence[Json], alone: str) -> str:
    own = estimate(_known(number(result["scores"].get(alone), main_score(result)) for result in results))
    return "" if own is None else f", clients' own models {spread(own)}"


def _clients_sentence(verdicts: Sequence[Verdict]) -> str:
    counts = ClientCounts()
    for verdict in verdicts:
        counts = counts.plus(verdict.counts)
    gain = estimate(verdict.mean for verdict in verdicts)
    lowest = bottom_fifth([gain.points for verdict in verdicts for gain in verdict.gains])
    worst = min((verdict.worst.points for verdict in verdicts), default=0.0)
    verb = "is" if counts.better == 1 else "are"
    mean = "" if gain is None else f" the mean gain is {spread(gain, sign=True)},"
    return (
        f"On data like their own, {counts.better} of {counts.known} clients over all seeds {verb} better off than alone, "
        f"{counts.same} equally well off and {counts.worse} worse off;{mean} that of the bottom fifth {signed(lowest)}, and "
        f"the lowest of a client {signed(worst)}."
    )


def spread(value: Estimate, *, sign: bool = False) -> str:
    """Write a mean with half of its 95 % interval over seeds, in percent or, with `sign`, in points.

    Example:
        >>> spread(Estimate(0.5, 0.012, 3)), spread(Estimate(-0.05, None, 1), sign=True), spread(Estimate(0.5, 0.0, 2))
        ('50.0 ± 1.2%', '−5.0 points', '50.0% (all seeds alike)')
    """
    mean, unit = (signed(value.mean), " points") if sign else (percent(value.mean), "%")
    if value.half is None:
        return f"{mean}{unit}"
    return f"{mean}{unit} (all seeds alike)" if value.all_equal else f"{mean} ± {percent(value.half)}{unit}"


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
