"""P3-pfl: rounds against pfl-research (arXiv 2404.06430), the fastest published simulator, in the same process.

pfl holds one model, loads and reads parameters in place and sums clients' updates as they come. It gets
ready tensors, a fused optimizer and the loss of the bare loop, so only its own work is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Bench, Measured, agree, needs, pairs
from benchmarks.models import SMALL, TINY, Size, tuned_model
from benchmarks.work import Batch, Clients, apart, bare_loss, make_clients, round_of, tensors
from fedloom.tuning.adapters import Tuned

CLIENTS = 8


class Loss(nn.Module):
    """A module in the form that pfl takes, with the loss of the bare loop."""

    def __init__(self, tuned: Tuned) -> None:
        super().__init__()
        self.model = tuned.vlm.model
        self.tuned = tuned

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch."""
        return bare_loss(self.tuned, Batch(ids, labels))

    def metrics(self, ids: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return nothing: the benchmark evaluates nothing."""
        del ids, labels
        return {}


def pfl_rounds(work: Clients, tuned: Tuned) -> Callable[[int], None]:
    """Return a function that runs a number of rounds of pfl's FedAvg over the same clients."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    def trained(parameters: Any) -> list[nn.Parameter]:
        return [one for one in parameters if one.requires_grad]

    def local(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(trained(parameters), lr=lr, weight_decay=0.0, fused=True)

    loss = Loss(tuned)
    model = PyTorchModel(loss, local, torch.optim.SGD(trained(loss.parameters()), lr=1.0))
    held = {client: _tensors(work, client) for client in work.held}
    sampler = get_user_sampler("minimize_reuse", list(held))
    data = FederatedDataset(lambda client: Dataset(held[client]), sampler)
    backend = SimulatedBackend(training_data=data, val_data=data)
    training = NNTrainHyperParams(
        local_num_epochs=work.settings.epochs,
        local_learning_rate=work.settings.lr,
        local_batch_size=work.settings.batch_size,
    )

    def run(rounds: int) -> None:
        asked = NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=10**9,
            train_cohort_size=len(held),
            val_cohort_size=None,
        )
        FederatedAveraging().run(asked, backend, model, training, send_metrics_to_platform=False)

    return run


def _tensors(work: Clients, client: int) -> tuple[Tensor, Tensor]:
    batch = tensors(work.tuned, work.held[client])
    return batch.ids, batch.labels


def against_pfl(size: Size, tokens: int, way: str) -> Callable[[], Measured]:
    """Compare rounds of eight clients with 4 steps of one example each."""

    def measure() -> Measured:
        needs("pfl")
        work = make_clients(size, clients=CLIENTS, steps=4, batch_size=1, tokens=tokens, alike=True)
        theirs = tuned_model(size)
        run, ours = pfl_rounds(work, theirs), round_of(work, way)
        run(1)
        agree("averaged adapters", apart(ours().flat, theirs.flat[0], work.tuned.start.flat), 1e-3)
        times = pairs(ours, lambda: run(1), 15)
        return times.gain, times.summary(rival="pfl", per=CLIENTS) + " a client"

    return measure


ROWS = {
    "P3-pfl-sequential": Bench("vs pfl, h256 T32, off", 1.0, 0.95, against_pfl(SMALL, 32, "sequential")),
    "P3-pfl-h64": Bench("vs pfl, h64 T16, off", 1.0, 0.95, against_pfl(TINY, 16, "sequential")),
    "P3-pfl-cohort": Bench("vs pfl, h256 T32, cohort", 1.5, 1.25, against_pfl(SMALL, 32, "cohort")),
    "P3-pfl-cohort-T16": Bench("vs pfl, h256 T16, cohort", 1.5, 1.25, against_pfl(SMALL, 16, "cohort")),
    "P3-pfl-cohort-T64": Bench("vs pfl, h256 T64, cohort", 1.5, 1.25, against_pfl(SMALL, 64, "cohort")),
}
