"""A table of federated algorithms and of the parts that can be added to them; each paper has its own module here.

The table needs no torch; the module of an entry, and torch with it, is imported when the entry is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import NamedTuple

from fedloom.algorithms.entry import Entry


class Place(NamedTuple):
    """The module of an entry, and what is known about the entry without importing it.

    Attributes:
        kind: The entry's kind; see `fedloom.algorithms.entry.KINDS`.
        module: The module whose `ENTRIES` hold it.
        label: Its name in tables and figures.
    """

    kind: str
    module: str
    label: str


PLACES: Mapping[str, Place] = {
    "fedavg": Place("server", "fedavg", "FedAvg"),
    "fedmean": Place("server", "fedmean", "FedMean"),
    "fedprox": Place("server", "fedprox", "FedProx"),
    "fedavgm": Place("server", "fedavgm", "FedAvgM"),
    "fedadagrad": Place("server", "fedopt", "FedAdagrad"),
    "fedyogi": Place("server", "fedopt", "FedYogi"),
    "fedadam": Place("server", "fedopt", "FedAdam"),
    "scaffold": Place("server", "scaffold", "SCAFFOLD"),
    "fednova": Place("server", "fednova", "FedNova"),
    "yoco": Place("server", "yoco", "YOCO"),
    "fedkseed": Place("server", "fedkseed", "FedKSeed"),
    "median": Place("aggregate", "median", "median"),
    "trimmed-mean": Place("aggregate", "trimmed_mean", "trimmed mean"),
    "krum": Place("aggregate", "krum", "Krum"),
    "multi-krum": Place("aggregate", "krum", "multi-Krum"),
    "geometric-median": Place("aggregate", "geometric_median", "geometric median"),
    "centered-clipping": Place("aggregate", "centered_clipping", "centered clipping"),
    "clip": Place("wrapper", "clip", "clipping"),
    "nearest-mixing": Place("wrapper", "nearest_mixing", "nearest-neighbor mixing"),
    "bucketing": Place("wrapper", "bucketing", "bucketing"),
    "dp": Place("wrapper", "dp", "DP mechanism"),
    "proximal": Place("rule", "fedprox", "proximal"),
    "adaptive": Place("rule", "adaptive_regularizer", "adaptive regularizer"),
    "sam": Place("rule", "fedsam", "SAM"),
    "dp-sgd": Place("rule", "dp_sgd", "DP-SGD"),
    "pfedme": Place("rule", "pfedme", "pFedMe"),
    "keep-last": Place("rule", "keep_last", "own last model"),
    "ditto": Place("pass", "ditto", "Ditto"),
    "finetune": Place("stage", "finetune", "fine-tuning"),
    "prior": Place("answers", "prior", "own prior"),
    "average-alone": Place("answers", "average_alone", "averaged with local"),
    "pool-alone": Place("answers", "pool_alone", "pooled with local"),
    "interpolate": Place("mix", "interpolate", "interpolation"),
    "fedsa-lora": Place("personal", "fedsa_lora", "FedSA-LoRA"),
    "plora": Place("personal", "plora", "pLoRA"),
    "personal-layers": Place("personal", "personal_values", "personal layers"),
    "layers": Place("part", "layer_budgets", "layer budgets"),
    "ranks": Place("part", "lora_ranks", "unequal ranks"),
    "prompt": Place("prompt", "prompt_part", "prompt"),
}
"""Name → the place of its entry. Modules are those of this package."""


class _Entries(Mapping[str, Entry]):
    """The entries of `PLACES`; the module of an entry is imported when the entry is read."""

    def __getitem__(self, name: str) -> Entry:
        return import_module(f"fedloom.algorithms.{PLACES[name].module}").ENTRIES[name]

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the entry
        return name in PLACES

    def __iter__(self) -> Iterator[str]:
        return iter(PLACES)

    def __len__(self) -> int:
        return len(PLACES)


ENTRIES: Mapping[str, Entry] = _Entries()
"""Name → entry, for everything that is bundled."""

COMPARED = "fedavg"
"""The algorithm with which others are compared, and which trains the baselines."""

SERVERS = tuple(name for name, place in PLACES.items() if place.kind == "server")
"""The algorithms to which parts are added."""
