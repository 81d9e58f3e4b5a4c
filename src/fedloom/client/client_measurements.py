"""Measurements that a server may ask of clients before it assigns work; none of them changes anything."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fedloom.client.local_job import Job
from fedloom.models.batches import answer_losses, collate
from fedloom.tuning.adapters import Tuned, side_by_side
from fedloom.types import Tensors


def gradient_norms(tuned: Tuned, job: Job) -> Tensors:
    """Return the norm of each tensor's gradient of a client's mean loss over all its examples.

    Args:
        tuned: The model with one row; its live values are overwritten.
        job: The client's start and examples.

    Returns:
        "norms": shape [number of the layout's names], in their order; zero for what the client does not train.
    """
    scale = SAFE_SCALE if tuned.vlm.precision == torch.float16 else 1
    layout, settings, examples = tuned.layout, job.settings, job.conversations
    size = min(settings.batch_size, settings.micro_batch or settings.batch_size)
    tuned.write(job.start)
    tuned.grads.zero_()
    with side_by_side(tuned, 1, [job.scale]):
        for start in range(0, len(examples), size):
            batch = examples[start : start + size]
            loss = answer_losses(tuned.vlm, collate(tuned.vlm, [list(batch)])).sum()
            if loss.requires_grad:  # not where only the connector is trained and no image is shown
                (loss * len(batch) / len(examples) * scale).backward()
    flat = tuned.grads[0].cpu() / scale
    flat = flat if job.trained is None else job.trained.zero_outside(flat)
    norms = [torch.linalg.vector_norm(flat[layout.slice(name)]) for name in layout.names]
    return {"norms": torch.stack(norms)}


SAFE_SCALE = 2**10
"""Scale of losses whose gradients pass through float16; see `fedloom.client.backpropagation`."""

PROBES: dict[str, Callable[[Tuned, Job], Tensors]] = {"gradient_norms": gradient_norms}
"""The measurements, by name."""
