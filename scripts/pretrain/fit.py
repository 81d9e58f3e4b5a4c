"""Train a whole model on conversations, and resume an interrupted training from its checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedloom.models.batches import answer_losses, collate
from fedloom.models.last_layer import layers_of
from fedloom.models.load_model import Vlm
from fedloom.types import Conversation
from pretrain.teacher import WIDTH

MEANING = 1.0
"""Weight of the distance to the teacher's vector beside the loss of the answer."""

PARTS = 3
"""Passes in which a batch goes through the model."""


@dataclass(frozen=True, eq=False)
class Exercise:
    """A question with its answer, and the direction of its meaning, [E]; None or zeros if the meaning is unknown."""

    conversation: Conversation
    meaning: NDArray[np.float32] | None


@dataclass(frozen=True)
class Budget:
    """How long to train: until steps or minutes are used up, whichever comes first.

    Minutes are those of all sessions together. The learning rate rises over `warmup` steps and falls along a cosine.
    """

    minutes: float
    steps: int
    warmup: int = 150
    every: int = 100


def fit(
    vlm: Vlm,
    groups: Sequence[dict],
    batch: Callable[[int], list[Exercise]],
    place: tuple[Path, str],
    budget: Budget,
    head: Path | None = None,
) -> None:
    """Train groups of parameters, each with its `peak` learning rate, and save the model as `NAME.safetensors`.

    Args:
        vlm: The model, changed in place.
        groups: AdamW's groups of parameters.
        batch: Step → exercises; called once a step.
        place: Work folder and NAME. Training resumes from a checkpoint of that name.
        budget: When to stop.
        head: The file `NAME.meaning.safetensors` of an earlier stage; None begins with a new head.
    """
    work, name = place
    # torch's own attention takes four times as long backwards on a processor in bfloat16, a fifth of a step.
    vlm.model.set_attn_implementation("eager")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        meaning = nn.Linear(vlm.model.get_input_embeddings().embedding_dim, WIDTH)
    if head is not None:
        meaning.load_state_dict(load_file(head))
    groups = [*groups, {"params": list(meaning.parameters()), "peak": 1e-3}]
    parameters = [parameter for group in groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98))
    checkpoint = work / f"{name}.checkpoint"
    step, spent = (
        _resume(vlm, meaning, optimizer, parameters, checkpoint) if checkpoint.exists() else (0, 0.0)
    )
    begun, losses = time.time() - 60 * spent, []
    while (done := max(step / budget.steps, (time.time() - begun) / 60 / budget.minutes)) < 1:
        for group in optimizer.param_groups:
            falling = 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2
            group["lr"] = group["peak"] * min(1, (step + 1) / budget.warmup) * falling
        losses.append(_step(vlm, meaning, optimizer, parameters, batch(step)))
        step += 1
        if step % 50 == 0:
            minutes = (time.time() - begun) / 60
            answers, meanings = np.mean(losses[-50:], 0)
            print(
                f"step {step} {minutes:.1f} min ({done:.0%}) answers {answers:.3f} meaning {meanings:.3f}",
                flush=True,
            )
        if step % budget.every == 0:
            _save(vlm, meaning, optimizer, parameters, checkpoint, step, (time.time() - begun) / 60)
    _save(vlm, meaning, optimizer, parameters, checkpoint, step, (time.time() - begun) / 60)
    _write({key: value.contiguous() for key, value in _weights(vlm).items()}, work / f"{name}.safetensors")
    _write(meaning.state_dict(), work / f"{name}.meaning.safetensors")
    minutes = (time.time() - begun) / 60
    (work / f"{name}.json").write_text(json.dumps({"steps": step, "minutes": minutes}))


def _step(
    vlm: Vlm,
    meaning: nn.Linear,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    batch: list[Exercise],
) -> tuple[float, float]:
    """Take one step; return the loss of the answers and 1 − cosine to the teacher's vectors."""
    vlm.memo.features.clear(), vlm.memo.tokens.clear()
    # By length in parts: questions with an image are longer, and padding costs time.
    batch.sort(key=lambda one: _length(one.conversation))
    size, sums = -(-len(batch) // PARTS), [0.0, 0.0]
    optimizer.zero_grad()
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        with torch.autocast("cpu", torch.bfloat16):
            losses = _losses(vlm, meaning, part)
        share = len(part) / len(batch)
        ((losses[0] + MEANING * losses[1]) * share).backward()
        sums = [total + share * loss.item() for total, loss in zip(sums, losses, strict=True)]
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return sums[0], sums[1]


def _length(one: Conversation) -> float:
    return (one.picture is not None) * 100 + len(one.user) / 4 + len(one.answer) / 4


def _losses(vlm: Vlm, meaning: nn.Linear, part: Sequence[Exercise]) -> tuple[Tensor, Tensor]:
    """Compute the loss of the answers, and the distance of the last layer's input from the meaning of the questions."""
    batch, states = collate(vlm, [[one.conversation for one in part]]), []
    hook = layers_of(vlm)[-2].register_forward_hook(lambda _, __, out: states.append(out))
    try:
        loss = answer_losses(vlm, batch)[0]
    finally:
        hook.remove()
    targets = torch.from_numpy(np.stack([_target(one) for one in part]))  # [B, E]
    known = targets.square().sum(1) > 0.5
    state = states[0] if isinstance(states[0], Tensor) else states[0][0]
    asked = state[torch.arange(len(part)), torch.tensor(batch.lengths) - 1]  # [B, D]
    apart = 1 - F.cosine_similarity(meaning(F.layer_norm(asked, asked.shape[-1:])).float(), targets, dim=1)
    return loss, (apart * known).sum() / len(part)


def _target(one: Exercise) -> NDArray[np.float32]:
    return np.zeros(WIDTH, np.float32) if one.meaning is None else one.meaning


def _weights(vlm: Vlm) -> dict[str, torch.Tensor]:
    """Return all values of the model; a tied head has none of its own."""
    tied = vlm.model.config.tie_word_embeddings
    return {
        key: value for key, value in vlm.model.state_dict().items() if not (tied and key == "lm_head.weight")
    }


def _save(
    vlm: Vlm,
    meaning: nn.Linear,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[torch.nn.Parameter],
    file: Path,
    step: int,
    minutes: float,
) -> None:
    tensors = {f"model/{key}": value.contiguous() for key, value in _weights(vlm).items()}
    tensors |= {f"meaning/{key}": value for key, value in meaning.state_dict().items()}
    for number, parameter in enumerate(parameters):
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"adamw/{number}/{key}"] = optimizer.state[parameter][key]
    _write(tensors, file, {"step": str(step), "minutes": str(minutes)})


def _write(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a file atomically, so that the previous one remains if writing is interrupted."""
    temporary = file.with_name(file.name + ".tmp")
    save_file(tensors, temporary, metadata)
    temporary.replace(file)


def _resume(
    vlm: Vlm,
    meaning: nn.Linear,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    file: Path,
) -> tuple[int, float]:
    """Load a checkpoint into model, head and optimizer; return its steps and minutes."""
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    step = int(metadata["step"])
    vlm.model.load_state_dict(_below("model/", tensors), strict=False)
    meaning.load_state_dict(_below("meaning/", tensors))
    for number, parameter in enumerate(parameters):
        moments = {key: tensors[f"adamw/{number}/{key}"] for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    print(f"taken up at step {step}", flush=True)
    return step, float(metadata["minutes"])


def _below(start: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
