"""A site in a process of its own: it builds data, model and rules from an experiment's file, and gets only messages."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from fedloom.engine.in_process import InProcess
from fedloom.engine.remote_site import reply_to, serve
from fedloom.experiment.recipes import load_experiment
from fedloom.runs.run_setup import open_site


def main(experiment: str, folder: str) -> None:
    replies, sys.stdout = sys.stdout.buffer, sys.stderr  # what is printed here must not come between messages
    with open_site(load_experiment(experiment), Path(folder)) as site:
        answer = partial(reply_to, InProcess(site), site.tuned.layout)
        serve(answer, sys.stdin.buffer, replies)


if __name__ == "__main__":
    main(*sys.argv[1:])
