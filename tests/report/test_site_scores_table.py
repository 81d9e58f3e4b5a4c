"""The report of a run whose models are tested at sites says so, and shows each site beside the mean."""

from __future__ import annotations

from typing import Any

from fedloom.report.findings import run_findings, short_summary
from fedloom.report.score_tables import score_table
from fedloom.report.site_scores_table import OVER_SITES, site_scores_table
from fedloom.report.terminal_summary import terminal_table


def scored(own: dict[str, tuple[int, float] | None], **more: float) -> dict[str, Any]:
    """Scores as sites' answers give them; None is a site that does not answer."""
    known = [one for one in own.values() if one is not None]
    mean = sum(count * value for count, value in known) / sum(count for count, _ in known)
    clients = [None if one is None else one[1] for one in own.values()]
    return {
        "accuracy": mean,
        "tasks": {"choice": {"accuracy": mean}},
        "slices": {"both": {"accuracy": mean}},
        "clients": clients,
        "client_tasks": [{} if one is None else {"choice": one} for one in clients],
        "sites": {
            site: {"reason": "it is away"}
            if one is None
            else {"examples": one[0], "scores": {"accuracy": one[1], "tasks": {}}}
            for site, one in own.items()
        },
        **more,
    }


RESULT: dict[str, Any] = {
    "tested": "sites",
    "main": "fedavg",
    "scoring": "likelihood",
    "scores": {
        "local": scored({"east": (1, 0.0), "west": (3, 1.0)}, best=1.0, worst=0.0),
        "fedavg": scored({"east": (1, 1.0), "west": (3, 1 / 3)}),
    },
    "bytes": {},
    "seconds": {},
}


def test_each_site_is_shown_and_the_lowest_is_named() -> None:
    table = site_scores_table(RESULT)
    assert table is not None
    assert table.columns == ("Site", "Test examples", "local (mean)", "FedAvg")
    assert table.rows == (("east", "1", "0.0", "100.0"), ("west", "3", "100.0", "33.3"))
    assert "Lowest with local (mean): east (0.0)." in table.note
    assert "Lowest with FedAvg: west (33.3)." in table.note


def test_a_site_without_a_score_is_named_with_its_reason() -> None:
    scores = {"fedavg": scored({"east": (1, 1.0), "north": (2, 0.5), "west": None})}
    table = site_scores_table({**RESULT, "scores": scores})
    assert table is not None
    assert table.rows[2] == ("west", "0", "—")
    assert "No score of west with FedAvg: it is away." in table.note


def test_scores_that_an_owner_withholds_are_named() -> None:
    scores = scored({"east": (1, 1.0), "west": (3, 1 / 3)})
    scores["sites"]["west"]["scores"]["auc"] = 0.5
    table = site_scores_table({**RESULT, "scores": {"fedavg": scores}})
    assert table is not None
    assert "east sends no AUC, so means of these are over the other sites." in table.note
    assert "west sends no" not in table.note


def test_no_sentence_calls_the_sites_parts_a_global_test_set() -> None:
    """1 · 1 + 3 · 1/3 of four examples are right with FedAvg, three of four with the sites' own models."""
    texts = [score_table(RESULT).note, terminal_table(RESULT), short_summary(RESULT), *run_findings(RESULT)]
    assert not [text for text in texts if "global test set" in " ".join(text.split())]
    assert "On the sites' own test parts FedAvg reaches 50.0%" in short_summary(RESULT)
    assert "clients' own models reach a mean of 75.0%" in short_summary(RESULT)
    assert "On their own test parts, 1 of 2 clients is better off" in short_summary(RESULT)
    assert OVER_SITES in score_table(RESULT).note


def test_other_runs_have_neither() -> None:
    here = {key: value for key, value in RESULT.items() if key != "tested"}
    plain = {
        method: {key: value for key, value in scores.items() if key != "sites"}
        for method, scores in RESULT["scores"].items()
    }
    assert site_scores_table({**here, "scores": plain}) is None
    assert "On the global test set FedAvg reaches 50.0%" in short_summary({**here, "scores": plain})
