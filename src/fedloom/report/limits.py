"""What limits the conclusions of a run: chance, unequal work, estimates, and what was left out."""

from __future__ import annotations

from fedloom.report.client_verdicts import verdict_on
from fedloom.report.federation_gain import local_method
from fedloom.report.findings import chance_sentences, headline_method
from fedloom.report.run_results import Run, at, number
from fedloom.report.tables import counted, is_federated, label
from fedloom.report.training_work import is_equal_work, work_by_method, work_sentence


def limits(run: Run) -> list[str]:
    """Return what limits the conclusions of a run, the most important first."""
    method, questions = headline_method(run.result), run.questions(run.fullest_slice)
    work = work_by_method(run.rounds, number(run.experiment, "train", "batch_size"))
    sentences = [
        *chance_sentences(run.result, questions),
        _significance_sentence(run, method),
        "" if is_equal_work(work, method) else work_sentence(work, method),
        _estimate_sentence(run),
        _unused_sentence(run),
    ]
    known = [sentence for sentence in sentences if sentence]
    if not any("seed" in sentence for sentence in known):
        known.insert(0, "This is one run with one seed; scores also vary by seed.")
    return known


def _significance_sentence(run: Run, method: str | None) -> str:
    """State for how many clients the difference from training alone is significant."""
    verdict = verdict_on(run.result, method) if method else None
    if verdict is None or verdict.gained is None or verdict.lost is None or len(verdict.gains) < 2:
        return ""
    gained, lost, clients = len(verdict.gained), len(verdict.lost), len(verdict.gains)
    if not gained + lost:
        return f"For none of the {clients} clients alone is the gain or loss significant (Holm's correction, 5 %)."
    return (
        f"Of the {clients} clients, {gained} {'gains' if gained == 1 else 'gain'} and {lost} {'loses' if lost == 1 else 'lose'} "
        f"significantly with {label(verdict.method)} (Holm's correction, 5 %)."
    )


def _estimate_sentence(run: Run) -> str:
    if local_method(run.scores) is None or at(run.result, "independent_questions") is None:
        return ""
    return (
        "Scores on a client's own data are estimated from the common test questions, weighted by the labels and modalities "
        "that the client holds."
    )


def _unused_sentence(run: Run) -> str:
    """State how many updates were not used, if any."""
    rounds = [entry for entry in run.rounds if is_federated(entry["method"])]
    unused = sum(len(at(entry, "refused") or []) + len(at(entry, "missing") or []) for entry in rounds)
    return (
        f"{counted(unused, 'client update')} {'was' if unused == 1 else 'were'} refused or missing."
        if unused
        else ""
    )
