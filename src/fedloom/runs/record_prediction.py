"""Record what a run is predicted to need, beside which its log has what it did need."""

from __future__ import annotations

from dataclasses import replace

from fedloom.client.client_memory import InMemory
from fedloom.engine.machine_choices import this_machine
from fedloom.run_log import read_lines
from fedloom.runs.resource_plan import machine_speed, predict
from fedloom.runs.run_context import RunContext
from fedloom.system.errors import error_sentence
from fedloom.system.memory import resident_bytes

MOST_CLIENTS = 10_000
"""Clients above which nothing is predicted, because every client is looked at."""


def record_prediction(context: RunContext) -> None:
    """Append the prediction to the run's log as a line of the kind "plan", once for each run; see `ResourcePlan`.

    A prediction that fails does not end the run; the line then has the reason.
    """
    if len(context.plan.clients) > MOST_CLIENTS:
        return
    if any(line["kind"] == "plan" for _, line in read_lines(context.record.path)):
        return
    device = context.vlm.device
    try:
        site = replace(context.site, memory=InMemory())
        loaded = sum(value.nbytes for value in context.vlm.model.parameters() if value.device.type == "cpu")
        plan = predict(
            context.experiment,
            site,
            context.data,
            context.plan,
            this_machine(device),
            machine_speed(device),
            max(0, resident_bytes() - loaded),
        ).to_json()
    except Exception as error:
        plan = {"failed": error_sentence(error)}
    context.record.append("plan", plan)
