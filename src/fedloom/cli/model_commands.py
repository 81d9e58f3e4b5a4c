"""Commands that use the models of a finished run: `fedloom ask`, `demo`, `eval` and `export`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from fedloom.cli.options import Debug, Json, Places, PluginFiles, Quiet, echo, echo_json, report_errors

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method", metavar="NAME", help="The method; the default is the one whose adapter the run exported."
    ),
]
ClientNumber = Annotated[
    int | None,
    typer.Option("--client", min=0, help="The client, for methods that give each client its own model."),
]


def ask(
    folder: RunFolder,
    question: Annotated[str, typer.Option(help="The question.")],
    image: Annotated[Path | None, typer.Option(help="An image: PNG, JPEG or WebP.")] = None,
    text: Annotated[str | None, typer.Option(help="A text that belongs to the question.")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--options", metavar="TEXT", help="A possible answer; repeat for each, or separate them by |."
        ),
    ] = None,
    method: MethodName = None,
    client: ClientNumber = None,
    changes: Places = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask a model of a finished run a question about an image or a text."""
    with report_errors(debug, as_json=as_json):
        from fedloom.runs.saved_models import open_models
        from fedloom.runs.trained_model import TrainedModel, check_question
        from fedloom.system.errors import UserError
        from fedloom.system.progress import make_progress

        given = [one.strip() for several in options or () for one in several.split("|") if one.strip()]
        if options and not given:
            raise UserError("--options: expected possible answers, such as --options 'yes|no'")
        check_question(image, text, question, given)  # before the model is loaded
        with closing(make_progress(quiet)) as progress:
            models = open_models(folder, changes or (), (), progress)
            model = TrainedModel(models, models.question(models.method(method), client))
            progress.stage("answer", 1)
            reply = model.ask(image, text, question, given)
            progress.advance()
        if as_json:
            echo_json(
                {
                    "answer": reply.answer,
                    "scores": reply.scores,
                    "method": reply.method,
                    "client": reply.client,
                }
            )
            return
        echo(reply.answer)
        for option, score in sorted((reply.scores or {}).items(), key=lambda pair: -pair[1]):
            echo(f"  {100 * score:5.1f} %  {option}")


def demo(
    folder: RunFolder,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="A method; may be repeated. The default is the base model, the pooled one, the federated one and a client's.",
        ),
    ] = None,
    client: Annotated[
        int,
        typer.Option("--client", min=0, help="The client whose own model is shown, if clients have some."),
    ] = 0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 0,
    changes: Places = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask models of a finished run side by side, on a page that only this machine can open; Ctrl-C ends it."""
    with report_errors(debug, "the page has ended", as_json=as_json):
        from fedloom.runs.demo import compared_models, demo_server, heading
        from fedloom.runs.saved_models import open_models
        from fedloom.system.progress import make_progress

        with closing(make_progress(quiet)) as progress:
            models = open_models(folder, changes or (), (), progress)
        compared = compared_models(models, methods or (), client)
        server, address = demo_server(port, models, compared)
        with server:
            headings = [heading(model) for model in compared]
            if as_json:
                echo_json({"address": address, "models": headings})
            else:
                echo(f"{'; '.join(headings)}\n{address}")
                echo("This page is for you alone: its token gives access. Ctrl-C ends it.")
            server.serve_forever(poll_interval=0.2)


def evaluate(
    folder: RunFolder,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder or file of records, or a folder of images by class; the default is the run's own test set, whose "
            "stored predictions are scored again."
        ),
    ] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", metavar="NAME", help="A method; may be repeated.")
    ] = None,
    client: ClientNumber = None,
    plugins: PluginFiles = None,
    out: Annotated[Path | None, typer.Option(help="File of the predictions, as JSON lines.")] = None,
    changes: Places = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score the models of a finished run on other data, or with other metrics."""
    with report_errors(debug, as_json=as_json):
        from fedloom.runs.evaluate_run import evaluate as run_evaluation
        from fedloom.runs.finished_run import load_run
        from fedloom.runs.run_folder import refuse_file_of_run
        from fedloom.system.json_files import refuse_folder, write_atomic
        from fedloom.system.progress import make_progress
        from fedloom.tasks.predictions import prediction_line

        if out is not None:
            refuse_folder(out)  # before the models answer
            refuse_file_of_run(out)
        with closing(make_progress(quiet)) as progress:
            found = run_evaluation(
                load_run(folder),
                data,
                methods,
                client,
                {},
                plugins=plugins or (),
                changes=changes or (),
                progress=progress,
            )
        for reason in found.skipped:
            echo(f"data: {reason}", err=True)
        if out is not None:
            write_atomic(out, map(prediction_line, found.predictions))
        if as_json:
            echo_json({"scores": found.scores.to_dicts()})
            return
        echo(_table(found.scores.to_dicts()), nl=False)


def export(
    folder: RunFolder,
    out: Annotated[Path, typer.Option(help="The folder to write; it must be missing or empty.")],
    method: MethodName = None,
    client: ClientNumber = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Write a whole model, in which the adapter is merged.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank of the exported adapter, at most that of the run.")
    ] = None,
    with_base: Annotated[
        bool, typer.Option("--with-base", help="Write the base model beside the adapter, too.")
    ] = False,
    changes: Places = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Export a model of a finished run: an adapter for PEFT with model card, prompt form and processor."""
    with report_errors(debug, as_json=as_json):
        from fedloom.runs.export_models import export_from_run
        from fedloom.system.progress import make_progress

        with closing(make_progress(quiet)) as progress:
            export_from_run(
                folder,
                out,
                method=method,
                client=client,
                merged=merged,
                rank=rank,
                with_base=with_base,
                changes=tuple(changes or ()),
                progress=progress,
            )
        kind = "model" if merged else "adapter"
        if as_json:
            echo_json({"kind": kind, "folder": str(out)})
        else:
            echo(f"{kind.capitalize()}: {out}")


def _table(scores: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of all scores but those by a paper's own rules."""
    from fedloom.report.tables import MISSING, Table

    rows = [
        (
            one["method"],
            one["slice"],
            one["task"] or "",
            one["metric"],
            MISSING if one["value"] is None else f"{one['value']:.4f}",
        )
        for one in scores
        if not str(one["metric"]).endswith("_published")
    ]
    return Table(("Method", "Modalities", "Task", "Score", "Value"), tuple(rows), left=4).text()
