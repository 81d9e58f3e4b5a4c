"""The table of each site's scores on its own test part, and the words that say on which test examples scores are."""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.report.federation_gain import main_score
from fedloom.report.run_results import Json, at, number
from fedloom.report.tables import Table, label, percent, title

OVER_SITES = "Scores are means over the sites' own test parts, weighted by numbers of examples"


def is_tested_at_sites(result: Json) -> bool:
    """Return whether scores are those that sites computed on their own test parts."""
    return result.get("tested") == "sites"


def tested_on(result: Json) -> str:
    """Return the name of the examples that scores are on."""
    return "the sites' own test parts" if is_tested_at_sites(result) else "the global test set"


def site_scores_table(result: Json) -> Table | None:
    """Return the table of each site's score with each method; None if sites scored nothing.

    The note names the site with the lowest score of each method, and the sites that sent no score, with the reason.
    """
    answers = {
        method: sites
        for method, scores in result["scores"].items()
        if isinstance(sites := at(scores, "sites"), dict) and sites
    }
    if not answers:
        return None
    main, names = main_score(result), sorted({site for sites in answers.values() for site in sites})
    scores = {
        method: {site: number(sites, site, "scores", main) for site in names}
        for method, sites in answers.items()
    }
    counts = {
        site: next((count for sites in answers.values() if (count := number(sites, site, "examples"))), 0)
        for site in names
    }
    rows = tuple(
        (site, f"{counts[site]:,.0f}", *(percent(scores[method][site]) for method in answers))
        for site in names
    )
    note = [f"{title(main)} in percent, of each site on its own test part."]
    note += [
        f"Lowest with {label(method)}: {_lowest(of_sites)}."
        for method, of_sites in scores.items()
        if len([value for value in of_sites.values() if value is not None]) > 1
    ]
    note += [
        f"No score of {site} with {label(method)}: {at(answers[method], site, 'reason') or 'its owner lets none leave'}."
        for method, of_sites in scores.items()
        for site, value in of_sites.items()
        if value is None
    ]
    note += [
        f"{site} sends no {', '.join(map(title, lacking))}, so means of these are over the other sites."
        for site in names
        if (lacking := _withheld(list(answers.values()), site))
    ]
    return Table(("Site", "Test examples", *map(label, answers)), rows, " ".join(note))


def _withheld(answers: Sequence[Json], site: str) -> list[str]:
    """Return the scores that other sites send, and a site that sends some score does not."""
    lacking = dict[str, None]()
    for sites in answers:
        own = at(sites, site, "scores") or {}
        if len(own) > 1:  # "tasks" is always there
            others = [at(of_site, "scores") or {} for of_site in sites.values()]
            lacking |= dict.fromkeys(name for scores in others for name in scores if name not in own)
    return list(lacking)


def _lowest(scores: dict[str, float | None]) -> str:
    """Name the sites with the lowest score."""
    known = {site: value for site, value in scores.items() if value is not None}
    least = min(known.values())
    return f"{', '.join(site for site, value in known.items() if value == least)} ({percent(least)})"
