"""Run one side of `benchmarks.against`: our half of its rows, by one checkout's own code, one call at a time.

It runs as a script with a checkout's `src` and root on PYTHONPATH, so `fedloom` and `benchmarks` are that checkout's.
Of them it uses only what does not change with the engine's interfaces: `ROWS` of the rows' modules, `Bench`, `measured`
and `machine` of the harness, and `engine` and `run` of `p07_growth`.

Requests are lines on standard input; answers are JSON objects on standard output, one on each line:

    row MODULE KEY     {"ready": true}: the row is prepared, both of its sides agree, and ours ran once untimed;
                       {"figure": F}: the row is one measurement, and this is it; or {"error": "why"}
    run                {"figure": F}: our side ran once more and took F seconds by the row's clock
    done               no answer; the row is put away
    machine            {"machine": {…}}

The first line, before any request, is {"fedloom": FILE, "benchmarks": FILE, "vocabulary": N, "model": FOLDER}.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any, NoReturn, TextIO


class Done(BaseException):
    """Raised to end the row in progress; a BaseException, so that code that catches a row's errors does not catch it."""


def serving(
    requests: Iterator[str], answer: Callable[..., None]
) -> Callable[[Callable[[], object], object, int], NoReturn]:
    """Return a replacement of `harness.pairs`: our side runs once for each request, the rival never.

    Args:
        requests: The lines to come.
        answer: Writes an answer.
    """

    def pairs(
        ours: Callable[[], object],
        rival: object,
        count: int,
        *,
        clock: Callable[[], float] = time.process_time,
        budget: float = 0.0,
    ) -> NoReturn:
        ours()
        answer(ready=True)
        for line in requests:
            if line.strip() != "run":
                break
            begun = clock()
            ours()
            answer(figure=clock() - begun)
        raise Done

    return pairs


def growth(harness: Any, module: Any) -> dict[str, Callable[[], Any]]:
    """Return P7's rounds by themselves: the rows of its module compare them with each other or with a rival."""
    return {
        "P7-1000": lambda: harness.pairs(lambda: module.engine(1_000), None, 1),
        "P7-10000": lambda: (_many(module)["seconds"], ""),
        "P7-peak": lambda: ([_many(module)["peak"]], ""),
    }


@cache
def _many(module: Any) -> dict[str, Any]:
    """Return the figures of a process with 10,000 clients, which two rows read."""
    return module.run("engine", 10_000)


def bench_of(harness: Any, module: Any, key: str) -> Any:
    """Find a row of a module, or one of P7's rounds."""
    own = growth(harness, module) if module.__name__.endswith("p07_growth") else {}
    return harness.Bench(key, 1.0, None, own[key]) if key in own else module.ROWS[key]


def answer_row(harness: Any, name: str, key: str, answer: Callable[..., None]) -> None:
    """Prepare a row, and run it while there are requests for it."""
    try:
        bench = bench_of(harness, importlib.import_module(f"benchmarks.{name}"), key)
        row = harness.measured(bench)
        if row.ratio is None:
            answer(error=row.detail)
        else:
            answer(figure=row.ratio)
    except Done:
        pass
    except Exception as error:  # the row's module cannot be imported, or lacks the row
        answer(error=f"{type(error).__name__}: {error}")


def serve(lines: TextIO, out: TextIO, vocabulary: int) -> None:
    """Answer requests until there are no more.

    Args:
        lines: Where requests come from.
        out: Where answers go.
        vocabulary: Size of the rows' models' vocabulary, so that it is the same on both sides; 0 leaves the checkout's.
    """
    import fedloom
    from benchmarks import harness, models

    def answer(**content: Any) -> None:
        out.write(json.dumps(content) + "\n")
        out.flush()

    requests = iter(lines)
    harness.pairs = serving(requests, answer)  # before rows' modules are imported: they take it by name
    known = models.Size().vocabulary
    for name in ("TINY", "SMALL"):
        setattr(models, name, replace(getattr(models, name), vocabulary=vocabulary or known))
    answer(
        fedloom=fedloom.__file__,
        benchmarks=harness.__file__,
        vocabulary=known,
        model=str(models.BUNDLED["bundled"]),
    )
    for line in requests:
        match line.split():
            case ["row", name, key]:
                answer_row(harness, name, key, answer)
            case ["machine"]:
                answer(machine=harness.machine())
            case _:  # "done" with a row that has ended by itself
                pass


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # so that what libraries print is not read as an answer
    serve(sys.stdin, answers, int(sys.argv[1]))
