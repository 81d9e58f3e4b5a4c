"""Where algorithms lead on problems whose answer is known: f_i(x) = ½ Σ_j a_ij (x_j − b_ij)²."""

from dataclasses import dataclass, replace

import pytest
import torch
from tests.clients import TRAIN, held, site_of, train_without_model

from fedloom.algorithms.compose import make
from fedloom.client.local_job import Job
from fedloom.params import Layout, Params
from fedloom.wire.messages import Assignment, Update

LAYOUT = Layout.of({"x": (2,)})
START = torch.tensor([0.5, -1.0])


@dataclass
class Client:
    curve: torch.Tensor
    center: torch.Tensor
    weight: float
    steps: int

    def gradient(self, job, probe, params, carry):
        slope = self.curve * (params - self.center)
        return (slope * (params - self.center)).sum() / 2, slope, carry


def clients(steps=(3, 3), weights=(1.0, 1.0)):
    return [
        Client(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]), weights[0], steps[0]),
        Client(torch.tensor([4.0, 0.5]), torch.tensor([3.0, -2.0]), weights[1], steps[1]),
    ]


def train(algorithm, cohort, rounds, lr=0.1):
    """Run rounds of plain SGD with exact gradients; return the global parameters."""
    site = site_of(algorithm, sgd(lr), layout=LAYOUT, clients=len(cohort))
    state, since = algorithm.init(Params(LAYOUT, START)), [-1] * len(cohort)
    for number in range(rounds):
        sent, updates = algorithm.broadcast(state), []
        for k, client in enumerate(cohort):
            job = site.job(Assignment("m", 0, number, k, sent.params, sent.extras, since[k]))
            job = replace(job, conversations=held(client.steps - 1))
            update = site.update(job, train_without_model(job, client.gradient))
            since[k] = number if update.keeps else -1
            updates.append(replace(update, weight=client.weight))
        state, _ = algorithm.apply(state, updates)
    return state.params.flat


def sgd(lr):
    return TRAIN.model_copy(update={"optimizer": "sgd", "lr": lr, "clip": None, "rounds": 10**6})


def optimum(cohort, shares):
    """Minimize Σ share_i f_i in closed form."""
    total = sum(share * client.curve for share, client in zip(shares, cohort, strict=True))
    pull = sum(share * client.curve * client.center for share, client in zip(shares, cohort, strict=True))
    return pull / total


def close(left, right):
    return torch.allclose(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("left", "right", "cohort", "rounds", "same"),
    [
        (("fedprox", {"mu": 0.0}), ("fedavg", {}), clients((2, 5), (1, 3)), 4, True),
        (("fedprox", {"mu": 0.5}), ("fedavg", {}), clients((2, 5), (1, 3)), 1, False),
        (("fedavgm", {"momentum": 0.0}), ("fedavg", {}), clients((2, 5), (1, 3)), 4, True),
        (("fedavgm", {"momentum": 0.5}), ("fedavg", {}), clients(), 1, True),
        (("fedavgm", {"momentum": 0.5}), ("fedavg", {}), clients(), 2, False),
        (("fedavgm", {"published": True}), ("fedavgm", {}), clients(), 1, True),
        (("fedavgm", {"published": True}), ("fedavgm", {}), clients(), 2, False),
        (("scaffold", {}), ("fedavg", {"uniform": True}), clients((2, 5), (1, 3)), 1, True),
        (("scaffold", {}), ("fedavg", {"uniform": True}), clients((2, 5), (1, 3)), 2, False),
        (("scaffold", {"uniform": False}), ("fedavg", {}), clients((2, 5), (1, 3)), 1, True),
        (("scaffold", {"uniform": False}), ("scaffold", {}), clients((3, 3), (2, 2)), 4, True),
        (("fednova", {}), ("fedavg", {}), clients((4, 4), (1, 3)), 4, True),
        (("fednova", {}), ("fedavg", {}), clients((2, 5), (1, 3)), 1, False),
        (("fedmean", {}), ("fedavg", {"uniform": True}), clients((2, 5), (1, 3)), 4, True),
        (("fedmean", {}), ("fedavg", {}), clients((2, 5), (1, 3)), 1, False),
        (("yoco", {}), ("fedmean", {}), clients((2, 5), (1, 3)), 4, True),  # without factors A and B
        (("fedavg", {"published": True}), ("fedavg", {}), clients(), 4, True),  # one tensor, the first
        (("fedavg", {"uniform": True}), ("fedavg", {}), clients((2, 5), (2, 2)), 4, True),
        (("fedavg", {"uniform": True}), ("fedavg", {}), clients((2, 5), (1, 3)), 1, False),
        # Without any memory of squares Yogi adds a square that exceeds v, as Adagrad does.
        (("fedyogi", {"beta1": 0.0, "beta2": 0.0}), ("fedadagrad", {}), clients(), 1, True),
        (("fedyogi", {"tau": 0.5}), ("fedadam", {"tau": 0.5}), clients(), 2, False),
        (("fedadam", {"published": True}), ("fedadam", {}), clients(), 1, False),
        (("fedadam", {"published": True, "beta1": 0.0}), ("fedadam", {"beta1": 0.0}), clients(), 3, True),
    ],
)
def test_degenerate_cases_coincide_and_others_differ(left, right, cohort, rounds, same):
    actual = train(make(left[0], 2, left[1]), cohort, rounds)
    expected = train(make(right[0], 2, right[1]), cohort, rounds)
    assert close(actual, expected) == same


def test_scaffold_reaches_the_optimum_that_fedavg_misses():
    cohort = clients(steps=(2, 7))
    best = optimum(cohort, (0.5, 0.5))
    torch.testing.assert_close(train(make("scaffold", 2), cohort, 300), best, rtol=0, atol=1e-4)
    assert (train(make("fedavg", 2), cohort, 300) - best).norm() > 0.1


def test_weighted_scaffold_reaches_the_weighted_optimum():
    cohort = clients(steps=(2, 7), weights=(1.0, 4.0))
    best = optimum(cohort, (0.2, 0.8))
    result = train(make("scaffold", 2, {"uniform": False}), cohort, 300)
    torch.testing.assert_close(result, best, rtol=0, atol=1e-4)
    assert (train(make("scaffold", 2), cohort, 300) - best).norm() > 0.1


def test_fednova_minimizes_the_objective_and_fedavg_another_one():
    cohort = clients(steps=(1, 8), weights=(3.0, 1.0))
    best, other = optimum(cohort, (0.75, 0.25)), optimum(cohort, (0.75 * 1, 0.25 * 8))
    # A constant local step leaves a drift proportional to it, so the claim is about the limit.
    nova = [(train(make("fednova", 2), cohort, 500, lr) - best).norm() for lr in (0.04, 0.01)]
    average = [(train(make("fedavg", 2), cohort, 500, lr) - other).norm() for lr in (0.04, 0.01)]
    assert nova[1] < 0.3 * nova[0] and average[1] < 0.3 * average[0]
    assert 10 * nova[1] < (best - other).norm()


def test_scaffolds_memory_is_the_papers_option_two_under_sgd():
    rule, lr, steps = make("scaffold", 2).local, 0.1, 5
    state = make("scaffold", 2).init(Params(LAYOUT, START))
    server, own = torch.tensor([0.3, -0.2]), torch.tensor([1.0, 0.4])
    sent = make("scaffold", 2).broadcast(type(state)(state.params, 0, {"control": server}))
    client = clients()[1]
    assignment = Assignment("m", 0, 0, 0, sent.params, sent.extras)
    memory = {"control": own}
    job = Job(assignment, sent, sent.params, rule, memory, held(steps - 1), sgd(lr), seed=0)
    end = train_without_model(job, client.gradient)
    extras, memory = rule.finish(end.carry, steps)
    expected = own - server + (START - end.end) / (steps * lr)
    torch.testing.assert_close(memory["control"], expected)
    torch.testing.assert_close(extras["control"], expected - own)


def test_proximal_training_stays_nearer_to_the_start():
    cohort = clients(steps=(20, 20))
    moves = [(train(make("fedprox", 2, {"mu": mu}), cohort, 1) - START).norm() for mu in (0.0, 0.5, 2.0)]
    assert moves[0] > moves[1] > moves[2] > 0


TORCH = {
    "fedavgm": (
        {"momentum": 0.7, "lr": 0.5},
        lambda p: torch.optim.SGD([p], lr=0.5, momentum=0.7),
    ),
    "fedadagrad": (
        {"lr": 0.1, "tau": 0.2},
        lambda p: torch.optim.Adagrad([p], lr=0.1, initial_accumulator_value=0.2**2, eps=0.2),
    ),
    "fedadam": (
        {"lr": 0.1, "tau": 0.2, "beta1": 0.8, "beta2": 0.9},
        lambda p: torch.optim.Adam([p], lr=0.1, betas=(0.8, 0.9), eps=0.2),
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_server_optimizers_agree_with_torch(name):
    arguments, optimizer = TORCH[name]
    algorithm = make(name, 1, arguments)
    state = algorithm.init(Params(LAYOUT, START))
    parameter = torch.nn.Parameter(START.clone())
    other = optimizer(parameter)
    if name == "fedadam":
        # Far into a run Adam's bias correction is exactly one, which is the paper's form from the start.
        other.state[parameter] = {
            "step": torch.tensor(1e6),
            "exp_avg": torch.zeros(2),
            "exp_avg_sq": torch.full((2,), 0.2**2),
        }
    for delta in ([1.0, -2.0], [0.5, 0.0], [-3.0, 0.1], [0.2, 0.2]):
        state, _ = algorithm.apply(state, [Update(0, Params(LAYOUT, torch.tensor(delta)), 1.0)])
        parameter.grad = -torch.tensor(delta)
        other.step()
        torch.testing.assert_close(state.params.flat, parameter.detach())
