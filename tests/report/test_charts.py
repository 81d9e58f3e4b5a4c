"""Laws of charts: they are well-formed and escaped, and nothing overlaps or leaves its range."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedloom.report import charts
from fedloom.report.axis_ticks import percent_ticks
from fedloom.report.client_charts import training_panels
from fedloom.report.confidence_intervals import interval
from fedloom.report.pareto_chart import pareto_front
from fedloom.report.run_page import CHARTS
from fedloom.report.run_results import read_run
from fedloom.report.svg_elements import (
    SMALL,
    clip,
    legend,
    row_name,
    scale,
    spread,
    tag,
    text,
    text_width,
    thin,
    ticks,
)
from fedloom.report.tables import is_federated, label, percent

POSITIONS = st.lists(st.floats(-100, 400), min_size=1, max_size=12)


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize("width", [400, 760])
def test_charts_are_well_formed_named_and_described(run_folder, chart, width):
    root = ElementTree.fromstring(CHARTS[chart](read_run(run_folder(validation="best")), width))
    assert root.get("role") == "img" and root.get("aria-label")
    assert [child.tag for child in root][:2] == ["title", "desc"]
    assert all(child.text for child in list(root)[:2])


@pytest.mark.parametrize("chart", CHARTS)
def test_charts_escape_names(run_folder, chart):
    hostile = "<script>alert(1)</script>&\"'"
    run = read_run(run_folder(names=[hostile, 1], labels=[hostile, "b"], validation="last"))
    drawn = CHARTS[chart](run, 760)
    assert "<script" not in drawn
    ElementTree.fromstring(drawn)


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize("width", [400, 760])
def test_no_coordinate_is_beyond_the_image_to_the_right(run_folder, chart, width):
    drawn = CHARTS[chart](read_run(run_folder(names=range(60), rounds=3, validation="last")), width)
    root = ElementTree.fromstring(drawn)
    box = [float(side) for side in root.attrib["viewBox"].split()]
    assert box[2] == width

    def rightmost(element, moved):
        if element.tag == "g" and "translate" in element.get("transform", ""):
            moved += float(element.attrib["transform"][len("translate(") :].split()[0])
        for key in ("x", "cx", "x2"):
            if element.get(key):
                yield moved + float(element.attrib[key]) + float(element.get("width", 0))
        for child in element:
            yield from rightmost(child, moved)

    assert max(rightmost(root, 0.0)) <= width + 0.5


@pytest.mark.parametrize("chart", CHARTS)
def test_a_run_with_nothing_to_draw_gives_no_chart_and_no_error(run_folder, chart):
    folder = run_folder(methods=["zero-shot"], names=[])
    (folder / "record.jsonl").write_text("")
    (folder / "result.json").write_text('{"scores": {"zero-shot": {}}}')
    assert CHARTS[chart](read_run(folder), 760) == ""


def test_learning_curves_have_a_line_for_each_federated_method_and_a_level_for_each_baseline(run_folder):
    run = read_run(run_folder())
    drawn = charts.score_curves(run)
    assert set(drawn) == {method for method in run.scores if is_federated(method)}
    text = charts.learning_curves(run, 760)
    for method in run.scores:
        assert label(method) in text
        assert percent(charts.full_score(run, method)) in text or method in drawn


def test_curves_hold_what_was_recorded(run_folder):
    run = read_run(run_folder())
    recorded = [
        (entry["round"], entry["scores"]["accuracy"])
        for entry in run.evaluations
        if entry["method"] == "fedavg" and entry["slice"] == "both"
    ]
    assert charts.score_curves(run)["fedavg"][1:] == sorted(recorded)


def test_curves_begin_with_the_untrained_model_where_it_was_scored(run_folder):
    run = read_run(run_folder(methods=("zero-shot", "fedavg")))
    assert charts.score_curves(run)["fedavg"][0] == (0.0, charts.full_score(run, "zero-shot"))
    without = read_run(run_folder("without", methods=("fedavg",)))
    assert charts.score_curves(without)["fedavg"][0][0] == 1


def test_training_charts_need_two_rounds(run_folder):
    one, two = (read_run(run_folder(f"r{rounds}", rounds=rounds)) for rounds in (1, 2))
    for key in ("loss", "norm"):
        assert training_panels(key, one, 760) == "" != training_panels(key, two, 760)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(3, 8))
def test_ticks_in_percent_are_distinct_and_at_most_100(one, other, most):
    marks = percent_ticks(min(one, other), max(one, other), most)
    texts = [name for _, name in marks]
    assert len(set(texts)) == len(texts) and all(mark <= 1 for mark, _ in marks)
    assert all(float(name) == pytest.approx(100 * mark, abs=1e-3) for mark, name in marks)


def test_ticks_just_below_100_do_not_repeat():
    """The axis of a report once read 99, 100, 100, 100, 101."""
    assert [name for _, name in percent_ticks(0.99, 1.0, 5)] == ["99.0", "99.5", "100.0"]


POINTS = st.dictionaries(
    st.sampled_from("abcdefgh"), st.tuples(st.integers(1, 5).map(float), st.integers(0, 5).map(float))
)


@given(POINTS)
def test_a_method_is_on_the_front_unless_another_is_at_least_as_good_in_both_and_better_in_one(points):
    front = pareto_front(points)
    for name, (sent, score) in points.items():
        beaten = any(
            (other[0] <= sent and other[1] > score) or (other[0] < sent and other[1] >= score)
            for other in points.values()
        )
        assert (name in front) != beaten
    assert [points[name] for name in front] == sorted(points[name] for name in front)


def test_learning_curves_need_two_rounds(run_folder):
    ElementTree.fromstring(charts.learning_curves(read_run(run_folder(rounds=2)), 760))
    assert charts.learning_curves(read_run(run_folder(rounds=1)), 760) == ""


def test_methods_keep_colors_apart(run_folder):
    methods = [
        "fedavg",
        "fedprox",
        "fedavgm",
        "fedadam",
        "scaffold",
        "fednova",
        "fedyogi",
        "local",
        "centralized",
    ]
    assert len({charts.color_style(method, methods) for method in methods}) == len(methods)


@given(POSITIONS, st.floats(0, 40), st.floats(0, 50), st.floats(0, 300))
def test_spread_keeps_the_gap_the_order_and_the_range(positions, gap, low, room):
    moved = spread(positions, gap, low, low + room)
    kept = min(gap, room / max(len(positions) - 1, 1))
    order = sorted(range(len(positions)), key=lambda place: positions[place])
    assert all(moved[b] - moved[a] >= kept - 1e-6 for a, b in pairwise(order))
    assert all(low - 1e-6 <= place <= low + room + 1e-6 for place in moved)


@given(POSITIONS, st.floats(0, 40))
def test_spread_moves_nothing_that_is_far_enough_apart(positions, gap):
    apart = [index * (gap + 1) for index in range(len(positions))]
    assert spread(apart, gap, 0, apart[-1]) == pytest.approx(apart)


def test_spread_by_hand():
    # Two labels that want the same place with a gap of 10 part by 5 each; one far away stays.
    assert spread([50, 50, 90], 10, 0, 100) == pytest.approx([45, 55, 90])


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6), st.integers(3, 10))
def test_ticks_are_even_and_enclose_the_range(low, span, most):
    marks = ticks(low, low + span, most)
    steps = {round((b - a) / (marks[1] - marks[0]), 3) for a, b in pairwise(marks)}
    slack = 1e-6 * max(abs(low), span)
    assert steps == {1.0}
    assert marks[0] <= low + slack and marks[-1] >= low + span - slack
    assert len(marks) <= most + 2


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=400), st.integers(2, 60))
def test_thinning_keeps_the_ends_and_the_order(points, most):
    kept = thin(points, most)
    assert len(kept) == min(len(points), most)
    assert kept[0] == points[0] and kept[-1] == points[-1]
    places = iter(points)
    assert all(any(point == other for other in places) for point in kept)


@given(st.text(max_size=40), st.floats(20, 200))
def test_clipped_text_fits(text, width):
    shown = clip(text, width)
    assert text_width(shown) <= width
    assert shown == text or shown.endswith("…")


def shown_lines(drawn):
    return [
        (part.text or "", float(part.attrib["y"])) for part in ElementTree.fromstring(f"<svg>{drawn}</svg>")
    ]


@given(st.text("abc +<", min_size=1, max_size=80), st.floats(40, 300))
def test_names_of_rows_fit_in_one_line_or_two(name, width):
    lines = shown_lines(row_name(width, 12.0, name, width))
    assert len(lines) <= 2
    assert all(0 < y < 24 and text_width(part, SMALL) <= width for part, y in lines)
    if not lines[-1][0].endswith("…"):
        assert " ".join(part for part, _ in lines).split() == name.split()


def test_the_longest_names_of_methods_are_shown_whole():
    for name in ("FedAvg + pooled with local + own prior", "FedAvg + averaged with local + own prior"):
        assert " ".join(part for part, _ in shown_lines(row_name(180.0, 12.0, name, 180.0))) == name


@given(st.floats(0, 1), st.integers(1, 10**6))
def test_intervals_hold_the_share_and_lie_between_none_and_all(share, count):
    low, high = interval(share, count)
    assert 0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1


def test_interval_agrees_with_the_equation_it_solves():
    # The ends of Wilson's interval are the p with |share − p| = z · sqrt(p (1 − p) / n).
    for end in interval(0.3, 50):
        assert abs(0.3 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 50))


def test_tags_escape_text_and_attributes_but_not_markup():
    assert (
        tag("g", text(1, 2, "a<b"), class_='"x"')
        == '<g class="&#34;x&#34;"><text x="1" y="2">a&lt;b</text></g>'
    )


def test_an_empty_range_maps_to_the_middle():
    assert scale(3, 3, 0, 10)(3) == 5


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=10), st.floats(300, 800))
@example(["short", "a very long answer " * 20], 400.0)
def test_legend_rows_fit(names, width):
    drawn, height = legend([(tag("g"), name) for name in names], width)
    root = ElementTree.fromstring(f"<svg>{drawn}</svg>") if all(map(str.isprintable, names)) else None
    assert height > 0
    if root is not None:
        ends = [float(text.attrib["x"]) + text_width(text.text or "") for text in root.iter("text")]
        assert max(ends) <= width + 0.1


def test_data_without_text_are_drawn_with_their_only_modality(run_folder):
    folder = run_folder()
    path = folder / "record.jsonl"
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if '"slice": "both"' not in line]
    path.write_text("\n".join(lines).replace('"slice": "text"', '"slice": "image"'), encoding="utf-8")
    run = read_run(folder)
    assert run.fullest_slice == "image"
    assert charts.full_score(run, "fedavg") == run.scores["fedavg"]["slices"]["image"]["accuracy"]
    assert set(charts.score_curves(run)) == {method for method in run.scores if is_federated(method)}
