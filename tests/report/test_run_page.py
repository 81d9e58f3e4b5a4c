"""Laws of the page: it is complete, self-contained and escaped, and claims nothing that the scores do not show."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.experiment.experiment import Experiment
from fedloom.report import read_run, run_findings, write_report
from fedloom.report.findings import gap_share
from fedloom.report.run_page import render
from fedloom.report.run_settings import client_loop_text, mode_text
from fedloom.report.tables import label

VOID = {"meta", "line", "rect", "circle", "path", "br", "link", "img", "input", "hr"}
LOADING = {"src", "srcset", "data", "poster", "action", "background", "xlink:href"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that elements are closed in order."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(*folders) -> Page:
    out = folders[0].parent / "report.html"
    write_report(list(folders), out)
    page = Page(out.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_every_method_is_on_the_page(run_folder):
    folder = run_folder()
    text = page_of(folder).text
    assert all(label(method) in text for method in read_run(folder).scores)


def test_the_page_has_what_a_new_reader_needs(run_folder):
    text = page_of(run_folder()).text
    for phrase in (
        "emoji",
        "5 clients",
        "268 held-out questions",
        "seed 0",
        "without training on this data",
        "Mode corrected",
        "ab" * 32,
        "fedloom run run/experiment.json",
        "PeftModel",
        "1 client update was refused or missing; the server accepted 89",
        "5 records",
    ):
        assert phrase in text


def test_the_page_loads_nothing(run_folder):
    folder = run_folder()
    page = page_of(folder)
    assert not any(tag in {"script", "link", "img", "iframe", "object", "embed"} for tag, _ in page.tags)
    for tag, attributes in page.tags:
        assert not LOADING & set(attributes), tag
        assert attributes.get("href", "#").startswith("#") or (
            "download" in attributes and attributes["href"].startswith(("data:text/csv", "data:text/x-tex"))
        )
    markup = (folder.parent / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?:", markup)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


HOSTILE = "</title><script>alert('x')</script><img src=x onerror=alert(1)>"


def test_markup_in_names_is_shown_and_not_run(run_folder):
    reasons = [f"{HOSTILE}, line 3: broken"]
    choices = {"name": HOSTILE, "model": {"path": HOSTILE}, "data": {"name": HOSTILE}}
    arguments = {"names": [HOSTILE, 1], "labels": [HOSTILE, "b"], "methods": [HOSTILE, "fedavg", "local"]}
    folder = run_folder(rejected=reasons, experiment=choices, **arguments)
    page = page_of(folder)
    assert not any(tag in {"script", "img"} for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "alert('x')" in page.text


@pytest.mark.parametrize("control", ["\0", "\x1b", "\x7f"])
def test_control_characters_of_names_are_shown_as_such(run_folder, control):
    page = page_of(folder := run_folder(names=[f"a{control}b", "c"], labels=[f"x{control}y", "z"]))
    assert control not in (folder.parent / "report.html").read_text(encoding="utf-8")
    assert "a\ufffdb" in page.text


ELEMENTS = set(
    "html head meta title style body header main footer section article nav p h1 h2 h3 h4 a ul ol li "
    "dl div dt dd span table caption thead tbody tr th td small details summary pre code figure figcaption "
    "svg desc g path line rect circle text".split()
)


@given(name=st.text(min_size=1, max_size=30) | st.text("<>&\"'{}%/b=", min_size=1, max_size=12))
def test_no_name_brings_an_element_into_the_page(scratch_run, name):
    page = page_of(scratch_run(names=[name], labels=[name], methods=["fedavg"], rounds=1))
    assert {tag for tag, _ in page.tags} <= ELEMENTS


def test_the_page_is_accessible_in_structure(run_folder):
    page = page_of(run_folder("a"), run_folder("b", seed=1))
    assert ("html", {"lang": "en"}) in page.tags
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    names = [tag for tag, _ in page.tags]
    assert names.count("caption") == names.count("table") > 0
    for tag, attributes in page.tags:
        assert tag != "svg" or (attributes["role"] == "img" and attributes["aria-label"])
        assert tag != "th" or attributes["scope"] in ("col", "row")
    anchors = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(anchors)) == len(anchors)
    assert {a["href"][1:] for tag, a in page.tags if tag == "a" and "download" not in a} <= set(anchors)


def test_several_runs_are_averaged_and_each_has_its_section(run_folder):
    folders = [run_folder(f"s{seed}", seed=seed) for seed in (3, 4)]
    page = page_of(*folders, run_folder("other", experiment={"train": {"rounds": 9}}))
    links = [a["href"] for tag, a in page.tags if tag == "a" and "download" not in a]
    assert links == []  # none of the runs has a report of its own
    assert "±" in page.text and "seeds 3, 4" in page.text and "2 experiments" in page.text
    assert page.text.count("held-out questions") == 0  # setups are in the runs' own reports
    write_report(folders[:1], folders[0] / "report.html")
    again = page_of(*folders)
    assert [a["href"] for tag, a in again.tags if tag == "a" and "download" not in a] == ["s3/report.html"]


def test_what_was_found_comes_before_the_setup(run_folder):
    """Scores, verdicts and limits are on the first screen; settings and digests come after the results."""
    text = page_of(run_folder()).text
    order = ["On the global test set FedAvg", "What limits this", "Final scores", "Experiment digest"]
    places = [text.index(phrase) for phrase in order]
    assert places == sorted(places)
    assert text.index("federated fine-tuning".capitalize()) > text.index("Final scores")


def test_both_scores_stand_side_by_side(run_folder):
    page = page_of(run_folder())
    for phrase in (
        "Global test set",
        "Data like each client's own",
        "Own data",
        "Clients on data like their own",
    ):
        assert phrase in page.text


def test_equal_folders_give_equal_pages(run_folder, tmp_path):
    folder = run_folder()
    pages = []
    for name in ("a.html", "b.html"):
        write_report([folder], tmp_path / name)
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_twenty_long_runs_stay_below_the_limit(run_folder):
    rejected = [f"images/{number}.png, line {number}: cut short" for number in range(5000)]
    run = read_run(run_folder(names=range(10), rounds=200, rejected=rejected))
    five, six = (len(render([run] * count).encode()) for count in (5, 6))
    assert len(render([run]).encode()) < 500_000
    assert five + 15 * (six - five) <= 2_500_000


def test_a_bare_run_still_gives_a_page(run_folder):
    folder = run_folder(methods=["zero-shot"], names=[])
    (folder / "record.jsonl").write_text("")
    (folder / "plan.json").write_text('{"clients": []}')
    (folder / "experiment.json").write_text('{"name": "bare"}')
    (folder / "result.json").write_text('{"scores": {"zero-shot": {"accuracy": null}}}')
    assert "no gain from federation to report" in page_of(folder).text


def test_half_a_surrogate_pair_in_a_label_does_not_stop_the_report(run_folder):
    folder = run_folder()
    plan = (folder / "plan.json").read_text(encoding="utf-8")
    (folder / "plan.json").write_text(plan.replace("smileys", r"\ud83d"), encoding="utf-8")
    assert "animals" in page_of(folder).text


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_report([], tmp_path / "report.html")


# ---- the findings ------------------------------------------------------------------------------------


def result_of(**accuracies: float) -> dict:
    return {"scores": {name: {"accuracy": value} for name, value in accuracies.items()}}


def test_the_share_of_the_gap_by_hand():
    result = result_of(local=0.4, centralized=0.8, fedavg=0.7)
    assert gap_share(result, "fedavg") == pytest.approx(0.75)
    assert "closes 75% of the gap" in run_findings(result)[0]


@pytest.mark.parametrize(
    ("accuracies", "phrase"),
    [
        ({"local": 0.4, "centralized": 0.8, "fedavg": 0.3}, "closes none of the gap"),
        ({"local": 0.4, "centralized": 0.8, "fedavg": 0.9}, "closes all of the gap"),
        ({"local": 0.8, "centralized": 0.4, "fedavg": 0.5}, "no gap to close"),
        ({"local": 0.4, "fedavg": 0.5}, "cannot be computed"),
        ({"centralized": 0.4, "fedavg": 0.5}, "cannot be computed"),
        ({"local": 0.4, "centralized": 0.8}, "no gain from federation"),
    ],
)
def test_what_cannot_be_claimed_is_not_claimed(accuracies, phrase):
    first = run_findings(result_of(**accuracies))[0]
    assert phrase in first
    assert phrase.startswith("closes") or "closes" not in first.replace("it closes cannot", "")


def test_a_gap_that_is_not_significant_gives_no_share():
    result = result_of(local=0.70, centralized=0.72, fedavg=0.71)
    assert "is not significant on 100 test questions" in run_findings(result, 100)[0]
    assert "closes 50%" in run_findings(result, 1_000_000)[0]


def test_a_better_method_and_a_better_baseline_are_named():
    text = " ".join(run_findings(result_of(local=0.4, centralized=0.8, fedavg=0.6, fedadam=0.7, linear=0.75)))
    assert "FedAdam scores highest on the test set, with 70.0% (75% of the gap)" in text
    assert (
        "linear baseline reaches 75.0%, above the federated method that scores highest on the test set"
        in text
    )


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.none() | st.integers(1, 10_000))
def test_findings_are_sentences_whatever_the_scores(local, centralized, fedavg, questions):
    for sentence in run_findings(result_of(local=local, centralized=centralized, fedavg=fedavg), questions):
        assert sentence.endswith(".") and "None" not in sentence.split() and "nan" not in sentence


def test_a_missing_score_is_shown_as_a_dash(run_folder):
    folder = run_folder()
    path = folder / "result.json"
    result = json.loads(path.read_text())
    result["scores"]["fedavg"] = {"accuracy": None}
    path.write_text(json.dumps(result))
    cells = page_of(folder).words
    assert cells[cells.index("FedAvg", cells.index("Final scores and cost of each method")) + 1] == "—"


def test_the_mode_is_named() -> None:
    as_published = {"fedadam": {"published": True}, "fedavg": {"published": False}}
    assert mode_text({"mode": "published"}).startswith("published: ")
    assert mode_text({"mode": "corrected", "algorithms": as_published}).endswith(
        "; but as published: FedAdam"
    )
    assert mode_text({}) == mode_text({"mode": "corrected", "algorithms": {}})
    assert mode_text({}).startswith("corrected: ")


def test_the_clients_loop_is_named() -> None:
    published = Experiment(mode="published").model_dump(mode="json")
    assert client_loop_text(published) == (
        "AdamW with β₂ = 0.95; learning rate published over the rounds, published inside each; LoRA dropout 0.05"
    )
    # A record from before the settings existed is described by what was done then.
    assert client_loop_text({}) == client_loop_text(Experiment().model_dump(mode="json"))
    assert client_loop_text({"train": {"optimizer": "sgd"}}).startswith("SGD; ")


def test_a_plan_that_lists_its_first_clients_only_still_counts_all(run_folder):
    folder = run_folder()
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    (folder / "plan.json").write_text(json.dumps({**plan, "count": 20_000}), encoding="utf-8")
    assert "divided among 20000 clients" in page_of(folder).text


def test_the_modes_of_split_and_sampler_are_named(run_folder):
    folder = run_folder()
    assert "corrected: drawn with the experiment's seed" in page_of(folder).text
    settings = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))
    settings["scenario"]["mode"] = settings["train"]["sampler"] = "published"
    (folder / "experiment.json").write_text(json.dumps(settings), encoding="utf-8")
    text = page_of(folder).text
    assert "published: drawn as in FedMLLM's code" in text
    assert "published: the clients of a round are those of FedMLLM's code" in text
