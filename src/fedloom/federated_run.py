"""Run an experiment whose clients are at sites on other machines: the server's side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedloom import __version__
from fedloom.backends import local_backend
from fedloom.engine.envelope import Envelope
from fedloom.engine.federation import Federation, Terms
from fedloom.engine.flower_link import flower_link
from fedloom.engine.flower_processes import Security, require_flower
from fedloom.engine.rounds import Backend
from fedloom.experiment import Experiment
from fedloom.folder import FLOWER
from fedloom.manifest import read_manifest
from fedloom.messages import Update
from fedloom.progress import Progress
from fedloom.runner import Result, run_experiment
from fedloom.setting import Setting


@dataclass(frozen=True)
class Listening:
    """Where a server listens, and how its connections are secured."""

    port: int
    security: Security


def serve_experiment(
    experiment: Experiment, out: Path, progress: Progress, listening: Listening, terms: Terms
) -> Result:
    """Run an experiment over sites, or go on with it; see `fedloom.runner.run_experiment`.

    Args:
        experiment: Every choice.
        out: The run folder.
        progress: Told how far the run has come, and what happens to sites.
        listening: Where the server listens.
        terms: How long it waits for sites.

    Raises:
        UserError: Flower is not there, or sites did not join or answer as `terms` wants it.
    """
    require_flower()
    return run_experiment(experiment, out, progress, elsewhere=partial(_sites, listening, terms))


@contextmanager
def _sites(listening: Listening, terms: Terms, setting: Setting) -> Iterator[Backend]:
    """Run Flower, and wait for the sites of a run."""

    def noted(kind: str, figures: Mapping[str, Any]) -> None:
        setting.record.append(kind, figures)
        setting.progress.message(f"{kind}: {', '.join(f'{key} {value}' for key, value in figures.items())}")

    def trained(update: Update) -> None:
        setting.progress.advance(1, loss=update.metrics["loss"])

    home = setting.folder / FLOWER
    with flower_link(listening.port, listening.security, home, setting.progress.message) as link:
        found = Federation(
            link,
            local_backend(setting),
            setting.tuned.layout,
            _begin(setting),
            len(setting.plan.clients),
            terms,
            noted,
            trained,
        )
        setting.progress.message(f"waiting for sites that hold {found.clients} clients")
        found.enroll()
        yield found
        found.leave()


def _begin(setting: Setting) -> Envelope:
    """Return what a site is sent when it joins: the experiment, and digests of all that decides results."""
    manifest = read_manifest(setting.folder)
    assert manifest is not None
    return Envelope(
        "begin",
        {
            "run": setting.identity,
            "version": __version__,
            "experiment": setting.experiment.to_json(),
            "digest": setting.experiment.digest,
            "identity": dict(manifest.identity),
            "layout": setting.tuned.layout.digest,
            "threads": torch.get_num_threads(),
        },
    )
