"""What a class of clients needs: memory, time of a step, and bytes of its messages.

A class holds the same modalities and trains the same values. Bytes are the lengths of real messages, of which the values are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from fedloom.client.learning_rate import steps_of
from fedloom.client.local_training import Trained
from fedloom.client.optimizers import OPTIMIZERS
from fedloom.client.site import Profile, Site
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.methods import ALONE
from fedloom.models.longest_example import longest, tokens_of
from fedloom.models.precision import device_of, precision_of
from fedloom.models.step_sizes import SLOWER, step_sizes
from fedloom.params import Part
from fedloom.runs.site_setup import algorithm_of
from fedloom.tuning.strategy_parts import Parts
from fedloom.wire.messages import Assignment, in_codec


@dataclass(frozen=True)
class ClientClass:
    """Clients that hold the same modalities and train the same values.

    Attributes:
        clients: Number of clients.
        largest: Number of the client with the most examples, whose needs these are.
        modalities: "both", "image" or "text".
        examples: Fewest and most training examples of a client.
        tokens: Tokens of the longest example that was looked at, answer included.
        steps: Most steps of a client in a round.
        memory: Bytes by kind: weights, adapter, gradients, optimizer, activations.
        step_seconds: Time of a step.
        seconds: Time that its clients train in all rounds of all methods.
        bytes: Method → bytes of a round's messages: "down" to a client and "up" from it.
    """

    clients: int
    largest: int
    modalities: str
    examples: tuple[int, int]
    tokens: int
    steps: int
    memory: dict[str, int]
    step_seconds: float
    seconds: float
    bytes: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])


def group_clients(site: Site, method: str) -> dict[tuple[str, Part | None], list[int]]:
    """Group clients by modalities and by the values that they train."""
    local, groups = site.method(method), dict[tuple[str, Part | None], list[int]]()
    for client, profile in enumerate(local.profiles):
        groups.setdefault((_modalities(profile), local.budget.up(client)), []).append(client)
    return groups


def _modalities(profile: Profile) -> str:
    return "both" if profile.images and profile.texts else "image" if profile.images else "text"


def client_class(
    experiment: Experiment,
    site: Site,
    method: str,
    federated: Sequence[str],
    members: Sequence[int],
    key: tuple[str, Part | None],
    weights: dict[str, int],
    speed: float,
    *,
    recompute: bool = False,
) -> ClientClass:
    """Return what the clients of a class need; in how many rounds they train is not counted here.

    Args:
        experiment: Every choice.
        site: The run's site.
        method: The method whose training is described.
        federated: The methods whose messages are measured.
        members: The clients.
        key: Their modalities, and the part that they report.
        weights: Bytes of the model's weights by kind.
        speed: Multiplications per second of a matrix product.
        recompute: Whether activations are computed again in the backward pass.
    """
    local, settings, vlm = site.method(method), experiment.train, site.tuned.vlm
    counts = [local.profiles[client].examples for client in members]
    largest = members[counts.index(max(counts))]
    tokens, answer = tokens_of(vlm, longest(vlm, local.conversations(largest)))
    batch = min(settings.batch_size, max(counts))
    rows = min(batch, settings.micro_batch or batch)  # in one pass
    trained = key[1].count if key[1] is not None else site.tuned.layout.size
    sizes = step_sizes(vlm, adapter_values(site))
    recompute = recompute or experiment.engine.recompute == "always"
    width = getattr(torch, precision_here(experiment)).itemsize
    plain = experiment.engine.deterministic and device_of(experiment.model.device) != "cpu"
    steps = steps_of(settings, max(counts))
    return ClientClass(
        len(members),
        largest,
        key[0],
        (min(counts), max(counts)),
        tokens,
        steps,
        {
            "weights": sum(weights.values()),
            "adapter": 4 * trained,
            "gradients": 4 * trained,
            "optimizer": 4 * trained * len(OPTIMIZERS[settings.optimizer].slots),
            "activations": sizes.activation_bytes(
                rows, tokens, answer, width, recompute=recompute, plain=plain
            ),
        },
        sizes.multiplications(batch * tokens, batch * answer)
        * (4 / 3 if recompute else 1)
        / (speed * SLOWER),
        0.0,
        {name: message_bytes(experiment, site, name, largest) for name in federated},
    )


def adapter_values(site: Site) -> int:
    """Return the number of values of the LoRA factors."""
    layout = site.tuned.layout
    return sum(
        layout.slice(name).stop - layout.slice(name).start for name in layout.names if ":lora_" in name
    )


def message_bytes(
    experiment: Experiment, site: Site, name: str, client: int, stage: int = 0
) -> dict[str, int]:
    """Return the bytes of the messages of a client's first round in a stage: "down" to it and "up" from it."""
    local, method = site.method(name), experiment.method(name)
    parts: Parts = local.stages[stage].parts
    # A stage that the method adds is trained by plain FedAvg, as in `fedloom.runs.train_method`.
    own = local.stages[stage].without_rule
    algorithm = algorithm_of(experiment, ALONE if own else method, site.tuned.layout, stage)
    broadcast = algorithm.broadcast(algorithm.init(local.start))
    nothing = Part(site.tuned.layout.size, ())
    down, up = (
        (_both(parts.down, local.budget.down(client)), _both(parts.up, local.budget.up(client)))
        if algorithm.exchanges
        else (nothing, nothing)
    )
    flat, coded = in_codec(broadcast.params.flat, down, local.codecs.down)
    params = broadcast.params.with_flat(flat)
    assignment = Assignment(name, stage, 0, client, params, broadcast.extras, -1, (), down, up, coded)
    job = site.job(assignment)
    # Rules need values to begin with; where they return the same ones, the message has its full length all the same.
    carry = job.rule.begin(job.broadcast, job.memory)
    model = None if job.rule.own is None else job.start.flat.clone()
    update = site.update(job, Trained(job.start.flat.clone(), carry, 0.0, 0.0, model))
    return {"down": assignment.length, "up": update.length}


def _both(part: Part, budget: Part | None) -> Part | None:
    whole = part if budget is None else part & budget
    return None if whole.is_whole else whole


def precision_here(experiment: Experiment) -> str:
    """Return the data type in which the language model computes here."""
    return precision_of(experiment.model.precision, device_of(experiment.model.device))
