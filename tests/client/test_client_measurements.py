"""Probes measure the mean loss over all of a client's examples, and change nothing."""

from __future__ import annotations

import torch
from tests.clients import asked_about, assigned, real_site

from fedloom.engine.in_process import InProcess
from fedloom.models.batches import answer_losses, collate
from fedloom.system.timing import Clock
from fedloom.tuning.adapters import Tuned
from fedloom.wire.messages import Missing, Update


def test_gradient_norms_are_those_of_the_mean_loss(tuned: Tuned) -> None:
    backend = InProcess(real_site(tuned))
    results = list(backend.measure(assigned(tuned), "gradient_norms"))
    for client, one in enumerate(results):
        assert isinstance(one, Update)
        tuned.write(tuned.start)
        tuned.grads.zero_()
        losses = [
            answer_losses(tuned.vlm, collate(tuned.vlm, [[example]])).sum() for example in asked_about(client)
        ]
        torch.stack(losses).mean().backward()
        wanted = [float(tuned.grads[0][tuned.layout.slice(name)].norm()) for name in tuned.layout.names]
        torch.testing.assert_close(one.extras["norms"], torch.tensor(wanted), rtol=1e-4, atol=1e-6)
        assert one.weight == len(asked_about(client))
        assert one.length == len(one.to_bytes()) < 2000  # no parameters travel


def test_measuring_changes_nothing(tuned: Tuned) -> None:
    (before,) = InProcess(real_site(tuned)).train(assigned(tuned)[:1], Clock())
    list(InProcess(real_site(tuned)).measure(assigned(tuned), "gradient_norms"))
    (after,) = InProcess(real_site(tuned)).train(assigned(tuned)[:1], Clock())
    assert isinstance(before, Update)
    assert isinstance(after, Update)
    assert torch.equal(before.delta.flat, after.delta.flat)


def test_an_unknown_probe_makes_the_client_missing(tuned: Tuned) -> None:
    (result,) = InProcess(real_site(tuned)).measure(assigned(tuned)[:1], "nothing")
    assert isinstance(result, Missing)
    assert "gradient_norms" in result.reason
