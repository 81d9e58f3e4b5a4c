"""The headline's rivals: the quickstart's FedAvg run as published code does it, and over Flower's simulation.

Both give the parameters that fedloom gives: the same plan, batches, learning rates and weights.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.headline import OVERRIDES
from benchmarks.work import Clients
from fedloom.client.answer_questions import answer_examples
from fedloom.client.learning_rate import learning_rate
from fedloom.client.local_job import Job
from fedloom.data import load_data
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.recipes import load_experiment
from fedloom.models.batches import encode, pad
from fedloom.models.load_model import Vlm, load_vlm
from fedloom.runs.modality_slices import SLICES, slices_of
from fedloom.scenarios.plan import build_plan
from fedloom.tasks import PROMPTS, TASKS
from fedloom.tasks.rendering import render
from fedloom.tuning.adapters import Tuned, prepare
from fedloom.tuning.export_adapter import export_adapter
from fedloom.tuning.strategies import LoRA, stage
from fedloom.types import Conversation, DataSet, Presence


@dataclass(frozen=True, eq=False)
class Run:
    """The data, plan and model that both rivals share with fedloom's own run."""

    experiment: Experiment
    data: DataSet
    clients: Clients

    @property
    def tuned(self) -> Tuned:
        """The model with its adapters."""
        return self.clients.tuned

    @property
    def weights(self) -> list[int]:
        """The number of examples of each client."""
        return [len(held) for held in self.clients.held.values()]

    @property
    def vlm(self) -> Vlm:
        """The model."""
        return self.tuned.vlm

    @property
    def clause(self) -> str | None:
        """The clause of prompts on the modalities."""
        return PROMPTS[self.experiment.evaluate.prompt]

    def job(self, client: int, round: int) -> Job:
        """Return a client's work in a round."""
        return self.clients.job(client, round)

    def evaluated(self, done: int) -> list[str]:
        """The slices of the test set that are answered after `done` rounds."""
        slices, every = slices_of(self.data.test), self.experiment.evaluate.every
        if done == self.experiment.train.rounds:
            return slices
        return slices[:1] if every and done % every == 0 else []


@cache
def run_of(recipe: str) -> Run:
    """Read a recipe's data, plan and model."""
    experiment = load_experiment(recipe, OVERRIDES)
    data = load_data(experiment.data, experiment.seed)
    plan = build_plan(data.train, experiment.scenario, experiment.seed)
    how = experiment.strategy
    tuned = prepare(load_vlm(), stage(how.name, LoRA(how.rank, how.alpha, how.targets)), experiment.seed)
    held = {
        client: render(
            [data.train[index] for index in share.indices],
            [Presence(bool(i), bool(t)) for i, t in zip(share.image, share.text, strict=True)],
            experiment.evaluate.answer,
            clause=PROMPTS[experiment.evaluate.prompt],
        )
        for client, share in enumerate(plan.clients)
    }
    return Run(experiment, data, Clients(tuned, held, experiment.train, experiment.seed))


class Batches(torch.utils.data.Dataset):
    """A client's batches of one round, in fedloom's order; images and text are prepared when asked for."""

    def __init__(self, run: Run, client: int, round: int) -> None:
        self.vlm = run.vlm
        self.batches = list(run.job(client, round).batches())

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return inputs(self.vlm, self.batches[index], answers=True)


def inputs(vlm: Vlm, conversations: Sequence[Conversation], *, answers: bool) -> dict[str, Tensor]:
    """Prepare a batch for transformers' own forward pass: ids, mask, pixels, labels."""
    encoded = [encode(vlm, one, [one.answer]) for one in conversations]
    prompts = [one.prompt for one in encoded]
    ends = [one.answers[0] if answers else () for one in encoded]
    ids, mask = pad(vlm, [[*prompt, *end] for prompt, end in zip(prompts, ends, strict=True)])
    inputs = {"input_ids": ids, "attention_mask": mask}
    images = [image.pixels() for one in conversations for image in one.pictures]
    if images:
        inputs["pixel_values"] = vlm.processor.image_processor(images=images, return_tensors="pt")[
            "pixel_values"
        ]
    if answers:
        labels = torch.full_like(ids, -100)
        for row, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
            labels[row, len(prompt) : len(prompt) + len(end)] = torch.tensor(end)
        inputs["labels"] = labels
    return inputs


def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Average over the answer tokens of each conversation, then over conversations, as fedloom does."""
    logits, wanted = outputs["logits"][:, :-1], labels[:, 1:]
    learnt = wanted != -100
    shares = (learnt / learnt.sum(1, keepdim=True))[learnt]
    return (F.cross_entropy(logits[learnt], wanted[learnt], reduction="none") * shares).sum() / len(labels)


def published(recipe: str, out: Path) -> dict[str, float]:
    """Run as the two papers' code does: a new Trainer for each client, deep copies, generation one by one."""
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    run = run_of(recipe)
    export_adapter(run.tuned, run.tuned.start, out)
    model: Any = PeftModel.from_pretrained(load_vlm().model, str(out), is_trainable=True)
    shared = copy.deepcopy(get_peft_model_state_dict(model))
    weights = run.weights
    scores: dict[str, float] = {}
    for round in range(run.experiment.train.rounds):
        local = []
        for client in range(len(weights)):
            set_peft_model_state_dict(model, shared)
            _trainer(run, model, client, round)
            local.append(copy.deepcopy(get_peft_model_state_dict(model)))
        shared = {
            name: sum(one[name] * weight / sum(weights) for one, weight in zip(local, weights, strict=True))
            for name in shared
        }
        set_peft_model_state_dict(model, shared)
        for name in run.evaluated(round + 1):
            scores[name] = _generated(run, model, name)
    model.save_pretrained(str(out))
    return scores


def _trainer(run: Run, model: Any, client: int, round: int) -> None:
    from transformers import Trainer, TrainingArguments

    train = run.experiment.train
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=1,  # an item is a batch already
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            learning_rate=learning_rate(train, round),
            lr_scheduler_type="constant",
            weight_decay=train.weight_decay,
            max_grad_norm=train.clip or 0.0,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
        )
        model.train()
        Trainer(
            model=model,
            args=arguments,
            train_dataset=Batches(run, client, round),
            data_collator=lambda items: items[0],
            compute_loss_func=loss_of,
        ).train()


@torch.no_grad()
def _generated(run: Run, model: Any, name: str) -> float:
    model.eval()
    test, form = run.data.test, run.experiment.evaluate.answer
    asked = render(test, [SLICES[name]] * len(test), form, clause=run.clause)
    room = max(len(run.vlm.tokenizer(one.answer)["input_ids"]) for one in asked) + 4
    right = 0
    for example, one in zip(test, asked, strict=True):
        given = inputs(run.vlm, [one], answers=False)
        made = model.generate(**given, max_new_tokens=room, do_sample=False, pad_token_id=0)
        reply = run.vlm.tokenizer.decode(made[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        right += TASKS[example.task].parse(reply.strip(), example, answer_form=form) == example.label
    return right / len(test)


def client_parameters(recipe: str, client: int, round: int, flat: Tensor) -> Tensor:
    """Return the update that a client sends over Flower: its parameters after training, shape [P]."""
    run = run_of(recipe)
    sent = run.tuned.start.with_flat(flat)
    (update,) = run.clients.updates([run.clients.job(client, round, sent)])
    return flat + update.delta.flat


def flower(recipe: str, out: Path) -> dict[str, float]:
    """Run over Flower's Ray simulation, with the model cached in the workers."""
    from flwr.app import ArrayRecord, ConfigRecord, Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg

    from benchmarks.flower_side import HEADLINE, pack, ray_simulation, unpack

    logging.getLogger("flwr").setLevel(logging.ERROR)
    run, app, scores = run_of(recipe), ServerApp(), {}

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        count = len(run.weights)
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=count, min_available_nodes=count)
        params = run.tuned.start
        for round in range(run.experiment.train.rounds):
            config = ConfigRecord({"recipe": recipe, "round": round})
            sent = strategy.configure_train(round + 1, pack(params, whole=False), config, grid)
            averaged, _ = strategy.aggregate_train(round + 1, grid.send_and_receive(sent, timeout=600))
            if not isinstance(averaged, ArrayRecord):
                raise RuntimeError("Flower's clients failed")
            params = params.with_flat(unpack(averaged, params))
            run.tuned.write(params)
            for name in run.evaluated(round + 1):
                shown = [SLICES[name]] * len(run.data.test)
                judged = answer_examples(
                    run.vlm, run.data.test, shown, run.experiment.evaluate, clause=run.clause
                )
                hits = [a == e.label for a, e in zip(judged.answers, run.data.test, strict=True)]
                scores[name] = sum(hits) / len(hits)
        export_adapter(run.tuned, params, out)

    ray_simulation(app, HEADLINE, len(run.weights))
    if not scores:
        raise RuntimeError("Flower's simulation ended before the run was done")
    return scores


def apart(one: Path, other: Path, start: Path) -> float:
    """Return the distance of two exported adapters over the distance of the first from the start."""
    a, b, zero = (load_file(folder / "adapter_model.safetensors") for folder in (one, other, start))
    if set(a) != set(b):
        return float("nan")
    away = sum(float((a[name] - b[name]).double().square().sum()) for name in a)
    moved = sum(float((a[name] - zero[name]).double().square().sum()) for name in a)
    return (away / moved) ** 0.5
