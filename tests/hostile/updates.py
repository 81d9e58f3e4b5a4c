"""Bad updates: functions that turn an honest client's update into one that no server may accept.

BAD         for any algorithm
BAD_EXTRAS  by algorithm, for those that send more than a delta
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from tests.clients import CLIENTS, LAYOUT, TRAIN, Corrupted, run_of, site_of

from fedloom.algorithms.compose import make
from fedloom.config.schema import Limits, Train
from fedloom.engine.rounds import TrainingState, run_rounds
from fedloom.params import Layout, Params, Part
from fedloom.wire.messages import Update

Corrupt = Callable[[Update], Update]


def run(
    name: str,
    bad: Mapping[int, Corrupt] | None = None,
    clients: tuple[int, ...] = tuple(range(CLIENTS)),
    train: Train = TRAIN,
    arguments: Mapping[str, Any] | None = None,
    limits: Limits = Limits(),
    rounds: tuple[int, ...] = (0, 1, 2),
) -> tuple[TrainingState, list[dict[str, Any]]]:
    """Train with some bad clients; return the final state and the figures of the rounds."""
    algorithm, logs = make(name, CLIENTS, arguments), list[dict[str, Any]]()
    one = run_of(
        name, clients, train, limits, algorithm=algorithm, after_round=lambda now, log: logs.append(log)
    )
    backend = Corrupted(site_of(algorithm, train), dict(bad or {}), rounds)
    return run_rounds([one], backend)[0], logs


def _delta(change: Callable[[torch.Tensor], torch.Tensor]) -> Corrupt:
    def corrupt(good: Update) -> Update:
        return replace(good, delta=Params(good.delta.layout, change(good.delta.flat.clone())))

    return corrupt


def scaled(factor: float) -> Corrupt:
    """Multiply a delta."""
    return _delta(lambda flat: factor * flat)


def _at(place: int, value: float) -> Corrupt:
    def change(flat: torch.Tensor) -> torch.Tensor:
        flat[place] = value
        return flat

    return _delta(change)


def _layout(**shapes: tuple[int, ...]) -> Corrupt:
    layout = Layout.of({name.replace("_", "/"): shape for name, shape in shapes.items()})
    return lambda good: replace(good, delta=Params.zeros(layout))


def _with(**fields: Any) -> Corrupt:
    return lambda good: replace(good, **fields)


def _extras(change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> Corrupt:
    return lambda good: replace(good, extras=change(dict(good.extras)))


def _extra(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Corrupt:
    return _extras(lambda extras: {**extras, name: change(extras[name])})


def _reshaped(good: Update) -> Update:
    shapes = {name: shape[::-1] for name, shape in zip(LAYOUT.names, LAYOUT.shapes, strict=True)}
    return replace(good, delta=Params(Layout.of(shapes), good.delta.flat))


def _renamed(good: Update) -> Update:
    shapes = {f"{name}!": shape for name, shape in zip(LAYOUT.names, LAYOUT.shapes, strict=True)}
    return replace(good, delta=Params(Layout.of(shapes), good.delta.flat))


BAD: dict[str, Corrupt] = {
    "one NaN": _at(3, float("nan")),
    "one Inf": _at(0, float("inf")),
    "one -Inf": _at(-1, float("-inf")),
    "all NaN": _delta(lambda flat: flat * float("nan")),
    "all Inf": _delta(lambda flat: flat + float("inf")),
    "all 3e38": _delta(lambda flat: torch.full_like(flat, 3e38)),
    "all 1e30": _delta(lambda flat: torch.full_like(flat, 1e30)),
    "one 1e9": _at(5, 1e9),
    "a million times": scaled(1e6),
    "a million times, turned round": scaled(-1e6),
    "a hundred times": scaled(100),
    "other names": _renamed,
    "other shapes": _reshaped,
    "a name less": _layout(connector_w=(3, 2)),
    "no names": _layout(),
    "a shape that broadcasts": _layout(connector_w=(1,)),
    "a cohort's buffer": _delta(lambda flat: flat.expand(2, -1)),
    "a row of a cohort's": _delta(lambda flat: flat[None]),
    "weight 1e18": _with(weight=1e18),
    "weight above its size": _with(weight=float(CLIENTS + 1)),
    "weight 5e-324": _with(weight=5e-324),
    "weight 0.5": _with(weight=0.5),
    "weight 0": _with(weight=0.0),
    "weight -0": _with(weight=-0.0),
    "weight -3": _with(weight=-3.0),
    "weight NaN": _with(weight=float("nan")),
    "weight Inf": _with(weight=float("inf")),
    "weight -Inf": _with(weight=float("-inf")),
    "weight as text": _with(weight="3"),
    "no weight": _with(weight=None),
    "a client nobody asked": _with(client=99),
    "a negative client": _with(client=-1),
    "a client that has answered": _with(client=0),
    "a client with a name": _with(client="2"),
    "an extra nobody asked for": _extras(lambda extras: {**extras, "odd": torch.ones(3)}),
    "the model as an extra": _extras(lambda extras: {**extras, "params": torch.ones(LAYOUT.size)}),
    "another part": _with(up=Part(LAYOUT.size, ((0, 3),))),
    "a metric as text": _with(metrics={"loss": "low"}),
    "a metric that is nothing": _with(metrics={"loss": None}),
}


def _bad_extras(name: str) -> dict[str, Corrupt]:
    return {
        "missing": _extras(lambda extras: {}),
        "renamed": _extras(lambda extras: {f"{name}s": extras[name]}),
        "NaN": _extra(name, lambda value: value * float("nan")),
        "Inf": _extra(name, lambda value: value + float("inf")),
        "1e30": _extra(name, lambda value: torch.full_like(value, 1e30)),
        "3e38": _extra(name, lambda value: torch.full_like(value, 3e38)),
        "a thousand more": _extra(name, lambda value: value + 1e3),
        "in float64": _extra(name, lambda value: value.double()),
        "in float16": _extra(name, lambda value: value.half()),
        "in whole numbers": _extra(name, lambda value: value.long()),
        "of another shape": _extra(name, lambda value: value.expand(2, *value.shape)),
        "of another length": _extra(name, lambda value: value.flatten().repeat(2)),
        "empty": _extra(name, lambda value: value.flatten()[:0]),
    }


BAD_EXTRAS: dict[str, dict[str, Corrupt]] = {
    "scaffold": {
        **_bad_extras("control"),
        "a single value": _extra("control", lambda value: value.sum()),
        "one 1e30": _extra("control", lambda value: torch.cat([value[:-1], torch.tensor([1e30])])),
    },
    "fednova": {
        **_bad_extras("steps"),
        "no steps": _extra("steps", torch.zeros_like),
        "half a step": _extra("steps", lambda value: 0.5 + 0 * value),
        "steps backwards": _extra("steps", torch.neg),
        "a step more": _extra("steps", lambda value: value + 1),
    },
}
