"""The process of a GPU in tests: a site of `ray_site` on the CPU, which also answers questions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.engine.ray_site import failing, opened

from fedloom.client.site import Question, QuestionExamples, Site
from fedloom.config.schema import Evaluate
from fedloom.data.drawn_shapes import MAKERS
from fedloom.engine.gpu_processes import serve_site
from fedloom.seeds import stream
from fedloom.types import Presence

QUESTIONS = 80  # three batches of one model: options that are scored, and replies that are generated


def answering(site: Site) -> Site:
    """Return a site that can be asked questions."""

    def examples_of(question: Question) -> QuestionExamples:
        examples = [
            MAKERS[("vqa", "classification")[k % 2]](stream(3, "t", step=k), str(k)) for k in range(QUESTIONS)
        ]
        return QuestionExamples(examples, [Presence(True, True)] * QUESTIONS, None)

    return replace(site, examples_of=examples_of, evaluate=Evaluate())


@contextmanager
def open_site(head: Mapping[str, Any]) -> Iterator[Site]:
    with failing(**head) if "reason" in head else opened(**head) as site:
        Path(head["folder"], f"opened-{os.getpid()}").touch()
        print("this must not come between messages", flush=True)
        yield answering(site)


if __name__ == "__main__":
    serve_site(open_site)
