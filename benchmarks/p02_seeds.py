"""P2: our round against the published way of simulating clients: a new Trainer, PEFT's get and set, and deep copies."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Bench, Measured, agree, pairs
from benchmarks.models import SMALL, TINY, Size, random_model
from benchmarks.work import Clients, apart, make_clients, round_of, tensors
from fedloom.tuning.adapters import PEFT_PREFIX
from fedloom.tuning.strategies import LINEARS

CLIENTS = 2


class Examples(torch.utils.data.Dataset):
    """Tokenized examples as a Trainer takes them."""

    def __init__(self, rows: list[dict[str, Tensor]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]


def peft_names(names: Iterable[str]) -> dict[str, str]:
    """Map our names of adapters to PEFT's."""
    ends = {":lora_a": ".lora_A.weight", ":lora_b": ".lora_B.weight"}
    return {name: PEFT_PREFIX + name.partition("/")[2][:-7] + ends[name[-7:]] for name in names}


def peft_model(size: Size, work: Clients) -> Any:
    """Wrap the same random model with PEFT and give it the same adapters."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=rf".*language_model.*\.({'|'.join(LINEARS)})",
        lora_dropout=0.0,
        bias="none",
    )
    model = get_peft_model(random_model(size), config)
    names = peft_names(work.tuned.layout.names)
    set_peft_model_state_dict(model, {names[name]: value for name, value in work.tuned.start.items()})
    return model


def train(model: Any, examples: Examples, work: Clients, folder: str) -> None:
    """Train one client with a Trainer of its own."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=work.settings.batch_size,
        num_train_epochs=work.settings.epochs,
        learning_rate=work.settings.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    with redirect_stdout(StringIO()):  # it prints its timings
        Trainer(model=model, args=arguments, train_dataset=examples).train()


def seeds_round(
    model: Any, held: Mapping[int, Examples], work: Clients, start: Mapping[str, Tensor], folder: str
) -> dict[str, Tensor]:
    """Run one round as FedMLLM and FedVLMBench do."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    local: dict[int, dict[str, Tensor]] = {}
    for client, examples in held.items():
        set_peft_model_state_dict(model, start)
        train(model, examples, work, folder)
        local[client] = copy.deepcopy(get_peft_model_state_dict(model))
    total = sum(len(examples) for examples in held.values())
    return {name: sum(local[client][name] * len(held[client]) / total for client in held) for name in start}


def against_seeds(size: Size, steps: int, batch_size: int, tokens: int, count: int) -> Callable[[], Measured]:
    """Compare a round of two clients."""

    def measure() -> Measured:
        from peft import get_peft_model_state_dict
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        work = make_clients(
            size, clients=CLIENTS, steps=steps, batch_size=batch_size, tokens=tokens, alike=True
        )
        model = peft_model(size, work)
        start = copy.deepcopy(get_peft_model_state_dict(model))
        held = {client: Examples(_rows(work, client)) for client in work.held}
        ours, names = round_of(work), peft_names(work.tuned.layout.names)
        with tempfile.TemporaryDirectory() as folder:
            theirs = seeds_round(model, held, work, start, folder)
            flat = torch.cat([theirs[name].reshape(-1) for name in names.values()])
            agree("averaged adapters", apart(ours().flat, flat, work.tuned.start.flat), 1e-3)
            times = pairs(ours, lambda: seeds_round(model, held, work, start, folder), count)
        return times.gain, times.summary(rival="Trainer", per=CLIENTS) + " a client"

    return measure


def _rows(work: Clients, client: int) -> list[dict[str, Tensor]]:
    times = []
    for one in work.held[client]:
        batch = tensors(work.tuned, [one])
        mask = torch.ones_like(batch.ids[0])
        times.append({"input_ids": batch.ids[0], "labels": batch.labels[0], "attention_mask": mask})
    return times


ROWS = {
    "P2-1step": Bench("vs Trainer, 1 step h64", 20, 12, against_seeds(TINY, 1, 1, 16, 9)),
    "P2-2steps": Bench("vs Trainer, 2 steps h256", 3.5, 2.5, against_seeds(SMALL, 2, 1, 64, 9)),
    "P2-10steps": Bench("vs Trainer, 10 steps h256", 1.15, 1.05, against_seeds(SMALL, 10, 4, 64, 7)),
}
