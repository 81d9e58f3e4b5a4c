"""A loop of a user's own, from public names only: it ends with the bits of `fedloom.run`, and the page about it runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.e2e.test_runs import experiment
from tests.shares import share

import fedloom
from fedloom.algorithms.algorithm import ServerState
from fedloom.algorithms.fedavg import fedavg
from fedloom.experiment.experiment import Experiment
from fedloom.runs.own_loop import Clients
from fedloom.system.errors import UserError
from fedloom.wire.messages import Update

PAGE = Path(__file__).parent.parent / "docs/own-loop.md"


def value(tiny_model: Path, method: str, **changes: object) -> Experiment:
    settings: dict[str, object] = {"methods": [method], "algorithms": {}, "engine": {"side_by_side": 1}}
    return experiment(tiny_model, **{**settings, **changes})


def looped(clients: Clients) -> ServerState:
    """Return the end of the loop that the page shows, with what clients keep."""
    server, norms, memory = clients.server, (), dict[int, int]()
    state = server.init(clients.start)
    for number in range(clients.rounds):
        sent = server.broadcast(state)
        admission = clients.admission(number, sent, norms)
        state, _ = server.apply(state, admission.admit(clients.train(number, sent, memory=memory)))
        assert not admission.refused and not admission.missing
        norms = admission.norms
        memory |= dict.fromkeys(admission.clients_with_memory, number)
    return state


@pytest.mark.parametrize(
    ("method", "changes"),
    share(
        [
            ("fedavg", {}),
            ("fedavg", {"train": {"rounds": 3, "batch_size": 4, "cohort": 2}}),
            ("fedavg", {"aggregate": {"over": "reporters"}, "scenario": {"clients": 3, "pattern": "cross"}}),
            ("fedavg", {"communication": {"up": "int8", "feedback": True}}),
            ("fedadam+prompt", {}),
            ("scaffold", {}),
        ],
        every=2,
        first=1,
    ),
)
def test_the_loop_ends_with_the_bits_of_a_run(
    method: str, changes: dict[str, object], tiny_model: Path, tmp_path: Path
) -> None:
    given = value(tiny_model, method, **changes)
    with fedloom.open_clients(given) as clients:
        state = looped(clients)
        params = clients.server.broadcast(state).params
        scores = {part: clients.evaluate(params, part) for part in ("both", "image", "text")}
    run = fedloom.run(given, tmp_path / "run", quiet=True)
    assert torch.equal(run.model(method).params.flat, params.flat)
    assert not torch.equal(clients.start.flat, params.flat)
    for part, of_part in scores.items():
        assert of_part == run["scores"][method]["slices"][part]


def test_an_update_that_a_run_would_refuse_is_refused(tiny_model: Path) -> None:
    with fedloom.open_clients(value(tiny_model, "fedavg")) as clients:
        first, *others = clients.train(0, clients.start)
        assert isinstance(first, Update)
        spoiled = replace(first, delta=first.delta.with_flat(first.delta.flat * float("nan")))
        admission = clients.admission(0, clients.start)
        assert [one.client for one in admission.admit([spoiled, *others])] == [1, 2]
    assert list(admission.refused) == [0] and "not finite" in admission.refused[0]


def test_the_caller_chooses_clients_and_a_round_can_be_repeated(tiny_model: Path) -> None:
    with fedloom.open_clients(value(tiny_model, "fedavg")) as clients:
        once, again = (list(clients.train(1, clients.start, [2, 0])) for _ in range(2))
        assert [one.client for one in once] == [2, 0]
        assert all(torch.equal(a.delta.flat, b.delta.flat) for a, b in zip(once, again, strict=True))
        assert clients.profiles[2].examples == once[0].weight
        for wrong in ([3], [-1]):
            with pytest.raises(UserError, match="there are 0 to 2"):
                clients.train(0, clients.start, wrong)
        with pytest.raises(UserError, match="there are both, image, text"):
            clients.evaluate(clients.start, "sound")
        with pytest.raises(UserError, match="clients 0 to 2"):
            clients.evaluate(clients.start, client=3)


def test_clients_with_models_of_their_own_are_evaluated_with_them(tiny_model: Path, tmp_path: Path) -> None:
    given = value(tiny_model, "fedavg+ditto")
    with fedloom.open_clients(given) as clients:
        state = looped(clients)
        memory = dict.fromkeys(range(3), clients.rounds - 1)
        own = [clients.evaluate(state.params, client=client, memory=memory) for client in range(3)]
    run = fedloom.run(given, tmp_path / "run", quiet=True)
    for client, scores in enumerate(own):
        rows = run.predictions.where(method="fedavg+ditto", client=client, slice="both")
        assert scores["accuracy"] == pytest.approx(sum(bool(row.correct) for row in rows) / len(rows))


@pytest.mark.parametrize(
    ("methods", "method", "strategy", "words"),
    [
        (["zero-shot"], None, "both", "none of its methods is"),
        (["fedavg"], "fedadam", "both", "choose one of fedavg"),
        (["fedavg", "local"], "local", "both", "choose one of fedavg"),
        (["fedavg"], None, "two-stage", "several stages"),
        (["fedavg+finetune"], None, "both", "stage of its own"),
    ],
)
def test_what_a_loop_cannot_do_is_said(
    methods: list[str], method: str | None, strategy: str, words: str, tiny_model: Path
) -> None:
    given = value(tiny_model, "fedavg", methods=methods, strategy={"name": strategy, "rank": 2})
    with pytest.raises(UserError, match=words), fedloom.open_clients(given, method):
        pass


def test_the_page_runs_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    loop = blocks[0].partition("with ")[0:3]
    assert len("".join(loop).strip().splitlines()) <= 22, "about twenty lines, as the page says"
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)


def test_the_models_of_a_run_with_an_algorithm_from_python_can_be_asked(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Its code is in no file, so the run keeps the value; `load_run` is given it again."""
    mine = fedloom.Plugins.of(algorithms={"half": lambda: fedavg(lr=0.5)})
    given = value(tiny_model, "fedavg").model_dump(mode="json") | {"methods": ["half"]}
    run = fedloom.run(fedloom.Experiment(**given | {"plugins": [mine]}), tmp_path / "run", quiet=True)
    loaded = fedloom.load_run(tmp_path / "run", [mine])
    answers = [one.ask(text="a cat", question="Which?", options=["a", "b"]) for one in (run, loaded)]
    assert answers[0] == answers[1] and answers[0].method == "half"
    metrics = {"one": lambda example, answer: 1.0}
    assert fedloom.evaluate(run, metrics=metrics).scores.where(metric="one")[0].value == 1
    with pytest.raises(UserError, match="which no file holds"):
        fedloom.load_run(tmp_path / "run").model()
