"""The tables of a sweep: rows are settings, columns are methods, figures are means over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedloom.report.charts import short_label
from fedloom.report.federation_gain import worst_client
from fedloom.report.run_results import at, number
from fedloom.report.shared_scores import (
    OWN_MODELS,
    SHARED_MODEL,
    for_everybody,
    has_both,
    own_models,
    shared_model,
)
from fedloom.report.significance import ROUNDING, Estimate, holm_significant
from fedloom.report.sweeps.chosen_settings import Choice
from fedloom.report.sweeps.estimate_texts import (
    ALIKE,
    BEST,
    SIGNIFICANT,
    add_legend,
    corner,
    counts_text,
    estimate_text,
)
from fedloom.report.sweeps.sweep_results import (
    CellRun,
    Models,
    SweepRun,
    baselines_in,
    cells_by_setting,
    cells_by_value,
    count_clients_in_cells,
    local_of,
    mean_over_seeds,
    metric_of,
    own_difference,
    paired_difference,
)
from fedloom.report.tables import (
    MISSING,
    Table,
    base,
    counted,
    is_federated,
    label,
    percent,
    title,
)
from fedloom.report.verdict_tables import baseline_note

HOLM = f"{SIGNIFICANT} significant: t-test over seeds (of differences marked {ALIKE}, the exact sign test) with Holm's correction over all differences of the table, at 5 %."
NAMED_MODELS: dict[Models, str] = {
    shared_model: " Of the model that all clients share; methods without one are left out.",
    own_models: " Mean over the clients' own models, each on everybody's questions; methods without own models are left out.",
    for_everybody: " Of the model that all clients share; without one, the mean over the clients' own models.",
}
"""The models whose scores a table shows → the sentence about them in its note."""

MAX_NAMED = 6  # cells that a note names; result.json has all


def global_tables(sweep: SweepRun) -> list[tuple[str, Table]]:
    """Return the tables of the main score on everybody's questions, each with its title: of shared models, and of own ones."""
    if not sweep.has_both:
        return [("", mean_table(sweep))]
    kinds: list[tuple[str, Models]] = [(SHARED_MODEL, shared_model), (OWN_MODELS, own_models)]
    return [(name, mean_table(sweep, of=of)) for name, of in kinds]


def mean_table(sweep: SweepRun, metric: str | None = None, of: Models = for_everybody) -> Table:
    """Return the table of a score; the best of several federated methods in a row is marked.

    Args:
        sweep: The sweep.
        metric: The score; None for the main score of each cell. If cells have different tasks, a column then names it.
        of: The models whose scores are shown; a method without any is left out.
    """
    methods = [
        method
        for method in sweep.methods
        if of is for_everybody
        or any(of(cell.scores[method]) for cell in sweep.cells if method in cell.scores)
    ]
    rows, max_seeds, several_federated = [], 0, sum(map(is_federated, methods)) > 1
    named = sweep.mixed_tasks and metric is None
    for name, cells in cells_by_setting(sweep).items():
        estimates = {method: mean_over_seeds(cells, method, metric, of) for method in methods}
        means = {
            method: estimate.mean
            for method, estimate in estimates.items()
            if estimate and is_federated(method)
        }
        best = {method for method, mean in means.items() if mean == max(means.values())}
        texts = [
            estimate_text(estimate) + (BEST if several_federated and method in best else "")
            for method, estimate in estimates.items()
        ]
        seeds = max((estimate.seeds for estimate in estimates.values() if estimate), default=0)
        score = [title(metric_of(cells) or MISSING)] if named else []
        rows.append((name, *score, *texts, str(seeds)))
        max_seeds = max(max_seeds, seeds)
    spread = (
        "mean ± half of the 95 % confidence interval (Student's t) over n seeds"
        if max_seeds > 1
        else "one seed, so no interval"
    )
    best_note = (
        f" {BEST} marks the federated method with the highest test score of the row; do not choose a method by test scores. "
        "If intervals overlap, another method may be as good."
    )
    note = f"{'Scores' if named else title(metric or sweep.metric)} in percent, on the global test set; {spread}."
    note += NAMED_MODELS.get(of, "") if sweep.has_both or of is not for_everybody else ""
    if several_federated:
        note += best_note
    heads = [*(["Score"] if named else []), *(short_label(method) for method in methods)]
    return Table((corner(sweep), *heads, "n"), tuple(rows), add_legend(note, rows), left=2 if named else 1)


def choice_table(sweep: SweepRun, picked: Sequence[Choice]) -> Table | None:
    """Return the table of the values that were chosen on validation; None if there are none.

    Args:
        sweep: The sweep with all its values.
        picked: Its choices.
    """
    if not picked:
        return None
    rows = tuple(
        (
            choice.row,
            short_label(choice.method),
            *(MISSING if choice.values is None else str(choice.values[axis]) for axis in sweep.choose),
            MISSING if choice.validation is None else percent(choice.validation),
            estimate_text(choice.test),
        )
        for choice in picked
    )
    lacking = list(dict.fromkeys(name for choice in picked for name in choice.missing))
    note = (
        "Chosen for each method: the value with the highest mean validation score over seeds; of equal values, the first in "
        "the recipe. Scores in percent. Test scores are those at the chosen value and were not used for the choice."
    )
    if lacking:
        more = f" and {len(lacking) - MAX_NAMED} more" if len(lacking) > MAX_NAMED else ""
        note += f" A value cannot be chosen if one of its cells has no validation score: {'; '.join(lacking[:MAX_NAMED])}{more}."
    others = [axis for axis in sweep.settings if axis not in sweep.choose]
    corner = ", ".join(axis.rpartition(".")[2] for axis in others).capitalize() or "Sweep"
    columns = (corner, "Method", *sweep.choose, "Validation", "Test")
    return Table(columns, rows, add_legend(note, rows), left=2 + len(sweep.choose))


def gain_table(sweep: SweepRun) -> Table | None:
    """Return the table of gains of federated methods over local training; None without local training."""
    pairs = [
        (method, other)
        for method, other in baselines_in(sweep).items()
        if is_federated(method) and other is not None
    ]
    note = (
        "In percentage points on the global test set: the shared model (without one, the mean over the clients' own models) minus "
        f"the mean over the models that clients train alone, paired by seed.{baseline_note(baselines_in(sweep), local_of(sweep))}"
    )
    return _differences(sweep, pairs, note)


def part_table(sweep: SweepRun) -> Table | None:
    """Return the table of gains of methods with parts over the same methods without parts; None if there are none."""
    pairs = [(method, base(method)) for method in sweep.methods if base(method) in sweep.methods]
    note = (
        "In percentage points, with minus without, paired by seed; on the global test set a shared model is compared with a shared "
        "one, or the mean over own models with such a mean."
    )
    return _differences(sweep, [pair for pair in pairs if pair[0] != pair[1]], note)


def _differences(sweep: SweepRun, pairs: Sequence[tuple[str, str]], note: str) -> Table | None:
    if not pairs:
        return None
    groups = cells_by_setting(sweep)
    clear = _significant_settings(groups, pairs)
    rows = tuple(
        (
            name,
            *(cell for pair in pairs for cell in _pair_cells(cells, pair, name in clear[pair])),
        )
        for name, cells in groups.items()
    )
    text = (
        f"{note} Own: the same on data like each client's own. Clients: how many are better off / equally well off / worse off "
        f"there, over all seeds. ± is half of a 95 % confidence interval over seeds. {HOLM}"
    )
    heads = (head for method, _ in pairs for head in (short_label(method), "own", "clients"))
    return Table((corner(sweep), *heads), rows, add_legend(text, rows))


def sweep_findings(sweep: SweepRun) -> list[str]:
    """Summarize the gains of federation over local training, and of parts over the methods without them."""
    return [f"{shared} {own}" for shared, own in finding_pairs(sweep)]


def finding_pairs(sweep: SweepRun) -> list[tuple[str, str]]:
    """Return the findings as a sentence about the global test set and one about the clients, for each comparison."""
    plain = next((method for method in sweep.methods if is_federated(method)), None)
    baselines, local = baselines_in(sweep), local_of(sweep)
    pairs = [(plain, other)] if plain and (other := baselines[plain]) else []
    pairs += [
        (method, other)
        for method, other in baselines.items()
        if method != plain and is_federated(method) and other is not None and other != local
    ]
    pairs += [
        (method, base(method))
        for method in sweep.methods
        if method != base(method) and base(method) in sweep.methods
    ]
    return [(_test_sentence(sweep, *pair), _client_sentence(sweep, *pair)) for pair in pairs]


def _test_sentence(sweep: SweepRun, method: str, other: str) -> str:
    differences = [paired_difference(cells, method, other) for cells in cells_by_setting(sweep).values()]
    known = [difference for difference in differences if difference is not None]
    ours, theirs = _shared_phrase(sweep, method), _baseline_phrase(other)
    if not known:
        if any({method, other} <= cell.scores.keys() for cell in sweep.cells):
            return (
                f"On the global test set {label(method)} and {label(other)} are not compared, because only one of them has a "
                "model that all clients share."
            )
        return f"No cell has scores of both {ours} and {theirs}."
    if len(known) == 1:
        return f"On the global test set {ours} scores {_single_difference(known[0], theirs)}"
    higher, lower = (sum(sign * difference.mean > ROUNDING for difference in known) for sign in (1, -1))
    if not higher and not lower:
        return f"On the global test set {ours} scores the same as {theirs} in all {len(known)} settings, on average over seeds."
    sentence = (
        f"On the global test set {ours} scores higher than {theirs} in {higher} of {counted(len(known), 'setting')} and "
        f"lower in {lower}"
    )
    if all(difference.half is None for difference in known):
        return f"{sentence}; with one seed there is no test of significance."
    clear = zip(known, holm_significant(known), strict=True)
    significant = [difference.mean > 0 for difference, yes in clear if yes]
    all_equal = sum(difference.all_equal for difference in known)
    zero_width_clause = (
        f"; in {all_equal} all seeds agree exactly, and the test is the sign test" if all_equal else ""
    )
    return (
        f"{sentence}: significantly higher in {sum(significant)}, significantly lower in {len(significant) - sum(significant)} "
        f"(t-test over seeds, Holm's correction over settings, 5 %{zero_width_clause})."
    )


def _shared_phrase(sweep: SweepRun, method: str) -> str:
    """Name the models of a method that are scored on everybody's questions."""
    scores = [cell.scores[method] for cell in sweep.cells if method in cell.scores]
    if has_both(dict(enumerate(scores))):
        return f"the shared model of {label(method)}"
    return (
        label(method)
        if any(map(shared_model, scores))
        else f"the mean over clients' models of {label(method)}"
    )


def _single_difference(difference: Estimate, theirs: str) -> str:
    """Describe the difference in the only setting of a sweep, as the end of a sentence."""
    if abs(difference.mean) <= ROUNDING and (difference.half is None or difference.all_equal):
        return f"the same as {theirs}."
    how = "higher" if difference.mean > 0 else "lower"
    size = estimate_text(difference._replace(mean=abs(difference.mean)))
    if difference.half is None:
        return f"{how} than {theirs}, by {size} points; with one seed there is no test of significance."
    (clear,) = holm_significant([difference])
    verdict = "significant" if clear else "not significant"
    test = "sign test" if difference.all_equal else "t-test"
    return f"{how} than {theirs}, by {size} points, which is {verdict} ({test} over {difference.seeds} seeds, 5 %)."


def _client_sentence(sweep: SweepRun, method: str, other: str) -> str:
    counts = count_clients_in_cells(sweep.cells, method, other)
    if not counts:
        return "The scores of single clients, on data like their own, were not recorded."
    own = "their own model trained alone" if base(other) == "local" else label(other)
    own += (
        f" and fine-tuned in the same way ({short_label(other)})"
        if other not in (base(other), local_of(sweep)) and base(other) == "local"
        else ""
    )
    sentence = (
        f"On data like their own, {counts.better} of {counted(counts.known, 'client')} over all cells {'is' if counts.better == 1 else 'are'} better off with "
        f"{label(method)} than with {own}, {counts.same} equally well off and {counts.worse} worse off"
    )
    sentence += _gain_clause(sweep, method, other)
    losses = [
        (worst["gain"], cell.name, worst)
        for cell in sweep.cells
        if method in cell.scores
        and other in cell.scores
        and (worst := worst_client(cell.scores[method], cell.scores[other]))
    ]
    gain, cell, worst = min(losses, key=lambda row: row[:2], default=(0.0, "", {}))
    if gain >= 0:
        return f"{sentence}."
    figures = (
        f"{percent(worst['score'])} instead of {percent(worst['alone'])} percent"
        if worst["score"] is not None
        else f"{percent(gain)} percent (relative)"
    )
    return f"{sentence}; client {worst['client']} in {cell} loses most: {figures}."


def _gain_clause(sweep: SweepRun, method: str, other: str) -> str:
    """Describe the mean difference on clients' own data, over the cells of a seed and then over seeds."""
    gain = None if sweep.mixed_tasks else own_difference(sweep.cells, method, other)
    if gain is None:
        return ""
    return f" (mean difference {estimate_text(gain, '+')} points)"


def _baseline_phrase(method: str) -> str:
    if base(method) != "local":
        return label(method)
    return f"the clients' own models do on average{'' if method == base(method) else f' ({short_label(method)})'}"


Pair = tuple[str, str]
"""A method and the one that it is compared with."""


def _significant_settings(
    groups: Mapping[str, Sequence[CellRun]], pairs: Sequence[Pair]
) -> dict[Pair, set[str]]:
    """Return for each pair the settings in which it differs on the global test set, corrected for all of them together."""
    keys = [(pair, name) for pair in pairs for name in groups]
    clear = holm_significant([paired_difference(groups[name], *pair) for pair, name in keys])
    return {
        pair: {name for (other, name), yes in zip(keys, clear, strict=True) if yes and other == pair}
        for pair in pairs
    }


def _pair_cells(cells: Sequence[CellRun], pair: Pair, significant: bool) -> tuple[str, str, str]:
    counts = count_clients_in_cells(cells, *pair)
    shared = estimate_text(paired_difference(cells, *pair), "+") + (SIGNIFICANT if significant else "")
    return shared, estimate_text(own_difference(cells, *pair), "+"), counts_text(counts)


def published_table(sweep: SweepRun) -> Table | None:
    """Return the table of our figures next to published ones; None if the recipe has none."""
    scores, metric = at(sweep.published, "scores") or {}, str(at(sweep.published, "metric") or "accuracy")
    methods = list(dict.fromkeys(method for figures in scores.values() for method in figures))
    cells_of = {name: cells for axis in sweep.settings for name, cells in cells_by_value(sweep, axis).items()}
    rows = []
    for name in (name for name in cells_of if name in scores):
        pairs = []
        for method in methods:
            theirs = number(scores[name], method)
            ours = estimate_text(mean_over_seeds(cells_of[name], method, metric))
            pairs += [ours, MISSING if theirs is None else f"{theirs:.1f}"]
        rows.append((name, *pairs))
    if not rows:
        return None
    columns = [word for method in methods for word in (f"{short_label(method)}, ours", "published")]
    note = (
        f"{title(metric)} in percent. Published: {at(sweep.published, 'source')}. Ours come from "
        "the model and data of this sweep; if those differ, compare how scores change, not their level."
    ) + _held_out(sweep)
    return Table((corner(sweep), *columns), tuple(rows), note)


def _held_out(sweep: SweepRun) -> str:
    """Describe the examples that were held out for validation; "" if there were none."""
    done = [cell.result for cell in sweep.cells if cell.result]
    parts = [at(result, "validation", "from") for result in done]
    kinds = list(dict.fromkeys(part for part in parts if part is not None))
    if not kinds:
        return ""
    named = [
        "the owners' validation set"
        if part == "published"
        else f"a share of {part} of each client's training examples"
        for part in kinds
    ]
    where = "some of our runs" if None in parts else "our runs"
    return f" In {where}, {' or '.join(named)} was held out for validation."
