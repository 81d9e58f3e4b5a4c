"""Ask several models of a finished run the same question, for the page of `fedloom demo`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from http.server import ThreadingHTTPServer
from importlib import resources
from threading import Lock
from typing import Any

from fedloom.data.python_images import image_as_png
from fedloom.report.tables import label
from fedloom.runs.evaluate_run import unchanged_test_set
from fedloom.runs.run_setup import load_run_data
from fedloom.runs.saved_models import UNTRAINED, SavedModels
from fedloom.runs.trained_model import Reply, TrainedModel
from fedloom.system.errors import UserError
from fedloom.system.live_server import page_server
from fedloom.system.manifest import read_manifest
from fedloom.types import Example

EXAMPLES = 12
"""Number of examples of the test set that the page offers."""

SIDE = 384
"""Longest side, in pixels, of the images of examples on the page; models are asked about the whole images."""

Ask = Callable[..., Reply]
"""A model's way to answer; see `TrainedModel.ask`."""


def compared_models(models: SavedModels, methods: Sequence[str], client: int) -> list[TrainedModel]:
    """Return the models that are shown side by side.

    Args:
        models: The models of the run.
        methods: The methods; empty for the base model, the one that is trained on pooled data, the one whose adapter the run
            exported, and one client's own, as far as the run has them.
        client: The client whose model it is, for methods that give each client its own.

    Raises:
        UserError: There is no such method or client.
    """
    experiment, chosen = models.experiment, list(methods)
    models.require_client(client)
    if not chosen:
        bases = {name: experiment.method(name).base for name in experiment.methods}
        first = {base: name for name, base in reversed(bases.items())}
        wanted = (UNTRAINED, first.get("centralized"), experiment.exported, first.get("local"))
        chosen = [name for name in wanted if name is not None]
    found = list[TrainedModel]()
    for name in dict.fromkeys(chosen):
        method = name if name == UNTRAINED else models.method(name)
        own = models.clients_with_models(method)
        found.append(TrainedModel(models, models.question(method, None if None in own else client)))
    return found


def heading(model: TrainedModel) -> str:
    """Return the name of a model for people, such as "local, client 2"."""
    if model.method == UNTRAINED:
        return "base model, untrained"
    name = label(model.method).removesuffix(" (mean)")
    return name if model.client is None else f"{name}, client {model.client}"


def side_by_side(
    asked: Mapping[str, Ask], image: Any, text: str | None, question: str | None, options: Sequence[str]
) -> list[dict[str, Any]]:
    """Ask each model the same question.

    Args:
        asked: Name of a model → its way to answer.
        image: See `TrainedModel.ask`, also for the others.
        text: The text.
        question: The question.
        options: The possible answers.

    Returns:
        For each model its "name", "answer" and "scores", pairs of option and probability, the likeliest first; without options
        "scores" is empty.
    """
    replies = {name: ask(image, text, question, options) for name, ask in asked.items()}
    return [
        {
            "name": name,
            "answer": reply.answer,
            "scores": sorted((reply.scores or {}).items(), key=lambda pair: -pair[1]),
        }
        for name, reply in replies.items()
    ]


def offered_examples(test: Sequence[Example], most: int = EXAMPLES) -> list[Example]:
    """Return at most `most` examples in even steps over a test set; conversations of several turns are left out."""
    single = [example for example in test if not example.turns]
    count = min(most, len(single))
    return [single[k * len(single) // count] for k in range(count)]


def example_value(example: Example) -> dict[str, Any]:
    """Return an example as the page shows it, as a JSON value."""
    image = None if example.image is None else _data_url(image_as_png(example.image, SIDE))
    return {
        "id": example.id,
        "question": example.question,
        "text": example.text or "",
        "options": list(example.options),
        "answer": example.answer,
        "image": image,
    }


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def asked_image(value: Any, examples: Sequence[Example]) -> Any:
    """Return the image that a page sends: null for none, the number of an example, or the bytes of a file in base64.

    Raises:
        UserError: It is none of these.
    """
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(examples):
        return examples[value].image
    try:
        if isinstance(value, str):
            return base64.b64decode(value.partition("base64,")[2] or value, validate=True)
    except ValueError:
        pass
    raise UserError("image: the page sent no image that can be read")


def demo_server(
    port: int, models: SavedModels, compared: Sequence[TrainedModel]
) -> tuple[ThreadingHTTPServer, str]:
    """Return a server of the page, for this machine alone, and its address.

    Args:
        port: The port; 0 takes a free one.
        models: The models of the run.
        compared: Those that are shown.

    Raises:
        UserError: The port is in use.
    """
    examples, note = _examples(models)
    about = {
        "name": models.experiment.name,
        "models": [heading(model) for model in compared],
        "images": models.context.vlm.family.images,
        "examples": [example_value(example) for example in examples],
        "note": note,
    }
    asked, one_at_a_time = {heading(model): model.ask for model in compared}, Lock()

    def answer(value: Mapping[str, Any]) -> Mapping[str, Any]:
        image = asked_image(value.get("image"), examples)
        with one_at_a_time:  # the models share one base model
            return {
                "answers": side_by_side(
                    asked, image, value.get("text") or None, value.get("question"), value.get("options") or ()
                )
            }

    page = resources.files("fedloom.runs").joinpath("demo_page.html").read_text(encoding="utf-8")
    return page_server(port, page, {"/about": lambda: about}, {"/ask": answer})


def _examples(models: SavedModels) -> tuple[list[Example], str]:
    """Return the examples that the page offers, and why there are none or ""."""
    folder = models.context.folder
    try:
        data = load_run_data(models.experiment)
        return offered_examples(unchanged_test_set(folder, data, read_manifest(folder))), ""
    except UserError as error:
        where = (
            ""
            if models.experiment.data.root is None
            else " If the data have moved, give --set data.root=FOLDER."
        )
        return [], f"There are no examples of the test set: {str(error).rstrip('.')}.{where}"
