"""The page of answers of a run: single test examples with their images, and what each method answers."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fedloom.data.thumbnails import thumbnail
from fedloom.report.answer_examples import SHOWN, Columns, Comparison, Model, Shown
from fedloom.report.charts import SLICES, short_label
from fedloom.report.client_charts import client_names
from fedloom.report.run_results import Run, at
from fedloom.report.tables import MISSING, percent
from fedloom.report.templates import load_template
from fedloom.report.verdict_tables import name_in
from fedloom.system.errors import UserError
from fedloom.tasks.predictions import Prediction
from fedloom.types import Example, LazyImage

MOST_LETTERS = 600  # of a text or a question
MOST_IN_CELL = 120  # letters of an answer or an option
MOST_OPTIONS = 5
MOST_IMAGES = 2  # of an example


@dataclass(frozen=True)
class Cell:
    """A figure or an answer in a table of answers.

    Attributes:
        text: What is written.
        right: Whether it is right; None if that does not apply.
        share: A probability, 0..1, drawn as a bar; None if there is none.
    """

    text: str
    right: bool | None = None
    share: float | None = None


def shows_images(run: Run) -> bool:
    """Return whether a run's page of answers shows images, as its experiment says."""
    return at(run.experiment, "report", "images") is not False


def render_answers(
    run: Run,
    columns: Columns,
    comparisons: Sequence[Comparison],
    shown: Shown,
    examples: Mapping[str, Example],
    report: str,
) -> str:
    """Return the HTML page of answers.

    Args:
        run: The run.
        columns: The methods whose answers are shown.
        comparisons: The pairs of models, from which follows which examples are shown.
        shown: The answers.
        examples: Id → test example. An example that is missing, or is another one than was answered, is shown without question and
            image.
        report: The name of the report's file beside the page.
    """
    names = client_names(run.clients)
    same = {one.id: one for one in examples.values() if _is_same(one, shown)}
    wanted = {example for one in comparisons for example in one.shown}
    return load_template("answers.html.j2").render(
        title=str(run.experiment["name"]),
        report=report,
        images=shows_images(run),
        lacking=len(wanted - set(same)),
        limit=SHOWN,
        groups=[_group(run, columns, one, shown, same, names) for one in comparisons],
    )


def _is_same(example: Example, shown: Shown) -> bool:
    """Return whether an example is the one that was answered, as far as its answers tell."""
    rows = [row for (_, name), models in shown.items() if name == example.id for row in models.values()]
    return all(row.expected == example.answer and row.options == example.options for row in rows)


def _group(
    run: Run,
    columns: Columns,
    one: Comparison,
    shown: Shown,
    examples: Mapping[str, Example],
    names: Sequence[str],
) -> dict[str, Any]:
    after, name = short_label(one.after.method), SLICES[one.slice].lower()
    own = " (its own model)" if one.after.client is not None else ""
    if one.client is None:
        heading = f"{short_label(one.before.method)} and {after}: {name}"
        before = short_label(one.before.method)
    else:
        heading = f"{name_in(names, one.client)}, trained alone and with {after}{own}: {name}"
        before = "the model that the client trained alone"
    directions = [
        (f"{len(one.gained)} became right", one.gained, f"wrong with {before}, right with {after}"),
        (f"{len(one.lost)} became wrong", one.lost, f"right with {before}, wrong with {after}"),
    ]
    return {
        "heading": heading[0].upper() + heading[1:],
        "questions": one.questions,
        "directions": [
            (count, meaning, len(ids), [_card(run, columns, one, shown, examples, k) for k in ids[:SHOWN]])
            for count, ids, meaning in directions
        ],
    }


def _card(
    run: Run,
    columns: Columns,
    one: Comparison,
    shown: Shown,
    examples: Mapping[str, Example],
    name: str,
) -> dict[str, Any]:
    """Return the template's values for an example."""
    models, example = shown[one.slice, name], examples.get(name)
    sides = _sides(columns, one, models)
    first = next(iter(models.values()))
    sees_image, sees_text = one.slice in ("both", "image"), one.slice in ("both", "text")
    pictures = example.pictures[:MOST_IMAGES] if example is not None and sees_image else ()
    uris = [_uri(image) for image in pictures] if shows_images(run) else []
    return {
        "id": name,
        "known": example is not None,
        "question": _short(example.question) if example else "",
        "text": _short(example.text) if example and example.text and sees_text else "",
        "images": [uri for uri in uris if uri],
        "unreadable": any(uri is None for uri in uris),
        "expected": _short(first.expected, MOST_IN_CELL),
        "heads": [head for head, _ in sides],
        "answers": [_answer(rows) for _, rows in sides],
        **_options(first, [rows for _, rows in sides]),
    }


def _sides(
    columns: Columns, one: Comparison, models: Mapping[Model, Prediction]
) -> list[tuple[str, list[Prediction]]]:
    """Return for each method the heading of its column and its answers: one, or those of all clients that trained alone."""
    sides = list[tuple[str, list[Prediction]]]()
    for method in columns.methods:
        if method == columns.local and one.client is None:
            rows = [row for model, row in models.items() if model.method == method]
            head = f"{short_label(method)}, {len(rows)} models"
        else:
            own = models.get(Model(method, one.client))
            row = own if own is not None else models.get(Model(method))
            rows, head = ([] if row is None else [row]), short_label(method)
        sides.append((head, rows))
    return sides


def _answer(rows: Sequence[Prediction]) -> Cell:
    if not rows:
        return Cell(MISSING)
    if len(rows) > 1:
        return Cell(f"{sum(row.correct for row in rows)} of {len(rows)} right")
    row = rows[0]
    written = row.reply if row.answer is None else row.answer
    text = ", ".join(f"{value:g}" for value in written) if isinstance(written, tuple) else str(written or "")
    return Cell(_short(text, MOST_IN_CELL) or "no answer", row.correct)


def _options(first: Prediction, sides: Sequence[Sequence[Prediction]]) -> dict[str, Any]:
    """Return the rows of options with their probabilities, at most `MOST_OPTIONS`, and how many more there are.

    Those that are right or were chosen come first, then the most probable ones; they keep their order.
    """
    chances = [[row.scores for row in rows if row.scores is not None] for rows in sides]
    if not first.options or not any(chances):
        return {"options": [], "more": 0}
    count = len(first.options)
    means = [
        [fmean(scores[k] for scores in known) for k in range(count)] if known else None for known in chances
    ]
    chosen = {row.label for rows in sides for row in rows} | {
        k for k, option in enumerate(first.options) if option == first.expected
    }
    highest = [max((column[k] for column in means if column), default=0.0) for k in range(count)]
    order = sorted(range(count), key=lambda k: (k not in chosen, -highest[k]))
    kept = sorted(order[:MOST_OPTIONS])
    rows = [
        (
            _short(first.options[k], MOST_IN_CELL),
            first.options[k] == first.expected,
            [
                Cell(MISSING) if column is None else Cell(f"{percent(column[k], 0)}%", share=column[k])
                for column in means
            ],
        )
        for k in kept
    ]
    return {"options": rows, "more": count - len(kept)}


def _short(text: str, most: int = MOST_LETTERS) -> str:
    return text if len(text) <= most else f"{text[:most].rstrip()} …"


def _uri(image: LazyImage) -> str | None:
    """Return a small version of an image as an address that holds it; None if it cannot be read."""
    try:
        return f"data:image/jpeg;base64,{base64.b64encode(thumbnail(image.pixels())).decode()}"
    except (UserError, OSError):
        return None
