"""Trained tensors as views of one flat buffer, and their files in PEFT's format.

Shape legend: P trainable parameters, K clients side by side, I and O a linear layer's inputs and outputs, R rank.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from fedloom.models.linear_layers import linear_shape
from fedloom.models.load_model import Vlm
from fedloom.models.quantized_layers import QuantizedLinear
from fedloom.params import Layout, Params
from fedloom.seeds import torch_stream
from fedloom.system.errors import UserError
from fedloom.tuning.lora import LoRALinear, scale_of
from fedloom.tuning.strategies import LINEARS, LoRA, Stage

# Gradients lie in rows of one buffer on purpose; autograd warns once that it would rather own them.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")

PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Spot:
    """The place of a trained tensor in the model: a module and the name of its attribute."""

    module: str
    attribute: str


@dataclass(frozen=True, eq=False)
class Tuned:
    """A model whose trained tensors are views of `flat`, and their gradients views of `grads`.

    Attributes:
        vlm: The model.
        stage: What is trained.
        start: The parameters before training: A random, B zero, connector as loaded.
        spots: Canonical name → place in the model.
        flat: The live values, shape [K, P], one row for each client side by side; outside `side_by_side`
            K is 1. Writing to it changes the model.
        grads: The gradients that `backward` adds up, shape [K, P].
        slots: Buffers of the local optimizer, shape [K, P] each, created at first use.
        factors: Factor on the scale of each row's adapters; () is 1 for all.
    """

    vlm: Vlm
    stage: Stage
    start: Params
    spots: Mapping[str, Spot]
    flat: Tensor
    grads: Tensor
    slots: dict[str, Tensor]
    factors: tuple[float, ...] = ()

    @property
    def layout(self) -> Layout:
        """Names and shapes of the trained tensors."""
        return self.start.layout

    @property
    def rows(self) -> int:
        """The number K of clients there is room for."""
        return self.flat.shape[0]

    @property
    def stackable(self) -> bool:
        """Whether several clients can train side by side: only adapters and the connector can be stacked."""
        return all(
            (isinstance(how, LoRA) and part == "llm") or part == "connector"
            for part, how in self.stage.train.items()
        )

    @property
    def adapters(self) -> dict[str, LoRALinear]:
        """The layers that have an adapter, by name."""
        layers = ((name, self.vlm.model.get_submodule(name)) for name in adapted_modules(self.spots))
        return {name: layer for name, layer in layers if isinstance(layer, LoRALinear)}

    def write(self, params: Params, row: int = 0) -> None:
        """Copy parameters into one row of the model."""
        if params.layout != self.layout:
            raise ValueError("these parameters were made for another model or strategy")
        self.flat[row].copy_(params.flat)

    def read(self, row: int = 0) -> Params:
        """Return a copy of the live parameters of one row."""
        return Params(self.layout, self.flat[row].cpu().clone())

    def connectors(self, rows: int) -> list[Callable[[Tensor], Tensor]]:
        """Return the connectors of the first `rows` rows; call each right before its result is used."""
        return [partial(self._connect, row) for row in range(rows)]

    def _connect(self, row: int, features: Tensor) -> Tensor:
        if self.rows > 1:
            self._place(self._non_adapter_names(), row)
        return self.vlm.connect(features)

    def zero_slots(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Fill the optimizer's buffers with zeros, and return them."""
        for name in names:
            if name not in self.slots:
                self.slots[name] = torch.zeros_like(self.flat)
            self.slots[name].zero_()
        return {name: self.slots[name] for name in names}

    def tie(self, rows: int = 1) -> None:
        """Point the model's parameters at the first `rows` rows; several rows of adapters are stacked."""
        adapters = [name for name in self.layout.names if _is_adapter(name)]
        if rows == 1:
            self._place([*adapters, *self._non_adapter_names()], 0)
        else:
            self._place(adapters, slice(0, rows))
        if self.factors:
            self._rescale(self.factors[:rows])

    def _rescale(self, factors: Sequence[float]) -> None:
        """Set the scales of adapters to those of some rows."""
        if lora := self.stage.lora:
            scale = scale_of(lora.alpha / lora.rank, factors, self.flat.device)
            for layer in self.adapters.values():
                layer.scale = scale

    def _non_adapter_names(self) -> list[str]:
        return [name for name in self.layout.names if not _is_adapter(name)]

    def _place(self, names: Sequence[str], rows: int | slice) -> None:
        """Put views of some rows into the model."""
        values, grads = Params(self.layout, self.flat[rows]), Params(self.layout, self.grads[rows])
        for name in names:
            parameter = nn.Parameter(values[name])
            # Backward adds into the view in place, so the flat gradient needs no gathering.
            parameter.grad = grads[name]
            spot = self.spots[name]
            setattr(self.vlm.model.get_submodule(spot.module), spot.attribute, parameter)


def _is_adapter(name: str) -> bool:
    return name.endswith((":lora_a", ":lora_b"))


def adapted_modules(spots: Mapping[str, Spot]) -> list[str]:
    """Return the names of the modules that have an adapter, each once, in order."""
    return list(dict.fromkeys(spot.module for name, spot in spots.items() if _is_adapter(name)))


@contextmanager
def cast_adapters(tuned: Tuned, rows: int = 1) -> Iterator[None]:
    """Convert all adapters to the decoder's data type once inside this block, instead of in every layer.

    Gradients reach `tuned.grads` in one piece, too. Values that change inside the block are not seen.

    Args:
        tuned: The model, whose first rows are tied to it; nothing changes if its decoder computes in float32.
        rows: The number of these rows.
    """
    dtype = tuned.vlm.precision
    layers = tuned.adapters if dtype != torch.float32 else {}
    if layers:
        place = 0 if rows == 1 else slice(0, rows)
        whole = nn.Parameter(tuned.flat[place])
        whole.grad = tuned.grads[place]
        layout = tuned.layout
        pieces = whole.to(dtype).split([math.prod(layout.shape(name)) for name in layout.names], dim=-1)
        values = {
            tuned.spots[name]: piece.unflatten(-1, layout.shape(name))
            for name, piece in zip(layout.names, pieces, strict=True)
        }
        for name, layer in layers.items():
            layer.cast = values[Spot(name, "lora_a")], values[Spot(name, "lora_b")]
    try:
        yield
    finally:
        for layer in layers.values():
            layer.cast = None


@contextmanager
def side_by_side(tuned: Tuned, rows: int, factors: Sequence[float] = ()) -> Iterator[Tuned]:
    """Give a model room for several clients at once, and restore its single row afterward.

    Args:
        tuned: The model with one row; its `flat` does not change.
        rows: Number K of clients; for one client the model itself is yielded.
        factors: Factor on the scale of each client's adapters; () is 1 for all.
    """
    own = () if all(factor == 1 for factor in factors) else tuple(factors)
    if rows == 1 and not own:
        yield tuned
        return
    flat, grads, shape = tuned.flat, tuned.grads, (rows, tuned.layout.size)
    if rows > 1:
        flat, grads = flat.new_empty(shape), grads.new_zeros(shape)
    wide = replace(tuned, flat=flat, grads=grads, slots={}, factors=own)
    wide.tie(rows)
    try:
        yield wide
    finally:
        tuned.tie()
        if own:
            tuned._rescale(tuned.factors or (1.0,))


def prepare(vlm: Vlm, stage: Stage, seed: int) -> Tuned:
    """Insert adapters and tie every trained tensor to one flat buffer; changes `vlm.model` in place.

    Args:
        vlm: A model without adapters.
        stage: Which parts to train and how.
        seed: Seed of the random stream from which A is drawn (uniform in ±1/√I, as in PEFT).

    Raises:
        UserError: The stage names a part the model lacks, or no layer matches its targets.
    """
    shapes, spots = trained_shapes(vlm, stage)
    tensors = {
        name: torch.zeros(shape)
        if _is_adapter(name)
        else vlm.model.get_submodule(spots[name].module).get_parameter(spots[name].attribute).detach().cpu()
        for name, shape in shapes.items()
    }
    start = _draw(Params.of(tensors), spots, seed)
    flat = start.flat.clone()[None].to(vlm.device)
    tuned = Tuned(vlm, stage, start, spots, flat, torch.zeros_like(flat), {})
    _insert(tuned)
    tuned.tie()
    return tuned


def trained_shapes(vlm: Vlm, stage: Stage) -> tuple[dict[str, tuple[int, ...]], dict[str, Spot]]:
    """Return the shape and the place of every tensor that a stage trains, by canonical name; no value is read.

    Raises:
        UserError: The stage names a part the model lacks, or no layer matches its targets.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    spots: dict[str, Spot] = {}
    for part, how in stage.train.items():
        if not getattr(vlm.family.parts, part):
            raise UserError(
                f"strategy: this model has no {part}, so it cannot be trained; set strategy.name to lora"
            )
        if part == "encoder":
            raise UserError("strategy: the encoder stays frozen; its features of an image are computed once")
        if isinstance(how, LoRA):
            for name in _targets(vlm, part, how):
                inputs, outputs = linear_shape(vlm.model.get_submodule(name)) or (0, 0)
                for key, shape in {"lora_a": (how.rank, inputs), "lora_b": (outputs, how.rank)}.items():
                    shapes[f"{part}/{name}:{key}"], spots[f"{part}/{name}:{key}"] = shape, Spot(name, key)
        else:
            for name in vlm.family.parts.split(name for name, _ in vlm.model.named_parameters())[part]:
                module, _, attribute = name.rpartition(".")
                if isinstance(vlm.model.get_submodule(module), QuantizedLinear):
                    raise UserError(
                        f"model.quantize: quantized weights cannot be trained in full ({name}); train adapters of the {part}, "
                        "or leave model.quantize out"
                    )
                shapes[f"{part}/{name}"] = tuple(vlm.model.get_parameter(name).shape)
                spots[f"{part}/{name}"] = Spot(module, attribute)
    return shapes, spots


def empty_tuned(vlm: Vlm, stage: Stage) -> Tuned:
    """Return a model whose trainable parameters are zero and are in no layer, to compute the sizes of what is trained and sent.

    Args:
        vlm: A model, which is not changed and may have no values.
        stage: Which parts are trained.

    Raises:
        UserError: The stage names a part the model lacks, or no layer matches its targets.
    """
    shapes, spots = trained_shapes(vlm, stage)
    start = Params.zeros(Layout.of(shapes))
    return Tuned(vlm, stage, start, spots, start.flat[None], start.flat[None], {})


def _draw(start: Params, spots: Mapping[str, Spot], seed: int) -> Params:
    """Return parameters in which every A is drawn at random; all other values stay as they are."""
    drawn = start.with_flat(start.flat.clone())
    for name, values in drawn.items():
        if spots[name].attribute == "lora_a":
            rank, width = values.shape
            bound = 1 / math.sqrt(width)
            generator = torch_stream(seed, f"lora/{spots[name].module}")
            values.copy_(torch.rand(rank, width, generator=generator) * 2 * bound - bound)
    return drawn


def release(tuned: Tuned) -> None:
    """Remove the adapters from the model, and restore the connector as it was loaded."""
    model, start = tuned.vlm.model, tuned.start
    for name in tuned.layout.names:
        spot = tuned.spots[name]
        layer = model.get_submodule(spot.module)
        if not _is_adapter(name):
            setattr(
                layer,
                spot.attribute,
                nn.Parameter(start[name].to(tuned.flat.device, copy=True), requires_grad=False),
            )
        elif isinstance(layer, LoRALinear):
            _swap(model, spot.module, layer.base)


def check_targets(vlm: Vlm, stage: Stage) -> None:
    """Raise an error for a target that is no layer of the model, which would leave layers without an adapter.

    The default targets are the names of most models, some of which lack a few.

    Args:
        vlm: A model without adapters, which may have no values.
        stage: Which parts are trained.

    Raises:
        UserError: There is such a target.
    """
    for part, how in stage.train.items():
        if isinstance(how, LoRA) and how.targets != LINEARS:
            linears = _linears(vlm, part)
            unknown = [
                target
                for target in how.targets
                if not any(map(replace(how, targets=(target,)).adapts, linears))
            ]
            if unknown:
                raise _no_layer(part, unknown, linears)


def _targets(vlm: Vlm, part: str, how: LoRA) -> list[str]:
    linears = _linears(vlm, part)
    targets = [name for name in linears if how.adapts(name)]
    if not targets:
        raise _no_layer(part, how.targets, linears)
    return targets


def _linears(vlm: Vlm, part: str) -> list[str]:
    """Return the names of a part's linear layers that can get an adapter."""
    return [
        name
        for name, module in vlm.model.named_modules()
        if linear_shape(module) is not None
        and any(name.startswith(prefix + ".") for prefix in getattr(vlm.family.parts, part))
        and vlm.family.parts.part_of(name) == part
    ]


def _no_layer(part: str, targets: Sequence[str], linears: Sequence[str]) -> UserError:
    names = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
    return UserError(
        f"strategy.targets: no linear layer of the {part} is called any of {', '.join(targets)}; there are {names}"
    )


def _insert(tuned: Tuned) -> None:
    """Wrap every layer that gets an adapter."""
    lora, model = tuned.stage.lora, tuned.vlm.model
    for name in adapted_modules(tuned.spots):
        assert lora is not None
        empty = nn.Parameter(torch.empty(0))
        _swap(
            model,
            name,
            LoRALinear(model.get_submodule(name), empty, nn.Parameter(empty), lora.alpha / lora.rank),
        )


def _swap(model: nn.Module, name: str, layer: nn.Module) -> None:
    above, _, last = name.rpartition(".")
    setattr(model.get_submodule(above), last, layer)
