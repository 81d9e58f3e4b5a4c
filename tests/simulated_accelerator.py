"""A simulated accelerator: tensors report cuda:0 or cuda:1, and their values stay in the processor's memory.

Tensors are ordinary ones. The simulation remembers which storages lie on which device; a mode above Python's torch functions
answers questions about devices and moves tensors, and a mode below autograd sees every operation, also those of the
backward pass. So kernels and values are the processor's, bit for bit, and

* an operation over tensors of two devices raises `MixedDevices`, as torch does;
* a tensor of float64 on a device that was made without it raises `NoFloat64`;
* every operation for which a CUDA device makes the processor wait is counted in `syncs`, with the line of fedloom that
  asked for it.

Kernels, streams, races, speed and limits of memory are not simulated.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, FIRST = torch.device("cpu"), torch.device("cuda", 0)
MEMORY = 80 * 2**30

WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim",
    "aten::unique_consecutive", "aten::equal", "aten::is_nonzero", "aten::bincount", "aten::masked_scatter_backward",
}  # fmt: skip
"""Operations that read a value or a size back from the device."""
INDEXING = {
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::_unsafe_index",
}
READING = {"tolist", "__reduce_ex__"}
"""Functions of Python that read values and are no operations below autograd."""


class MixedDevices(RuntimeError):
    """An operation got tensors of several devices."""


class NoFloat64(TypeError):
    """A tensor of float64 would lie on a device that has none, as Metal and some cards of Intel."""


class Storages:
    """The storages that lie on a device. A weak reference keeps a storage's address from being used again."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[StorageWeakRef, torch.device]] = {}
        self._limit = 10_000

    def device(self, value: Tensor) -> torch.device:
        if value.device.type == "meta":
            return value.device
        known = self._known.get(value.untyped_storage()._cdata)
        return CPU if known is None else known[1]

    def put(self, value: Tensor, device: torch.device) -> None:
        storage = value.untyped_storage()
        if storage._cdata in self._known:
            return
        if len(self._known) > self._limit:
            self._known = {key: one for key, one in self._known.items() if not one[0].expired()}
            self._limit = 2 * len(self._known) + 10_000
        self._known[storage._cdata] = (StorageWeakRef(storage), device)


def tensors_in(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class Accelerator:
    """What is on the devices, and what has been counted; made by `simulated_accelerator`.

    Attributes:
        syncs: How often the processor waited, by kind and place, such as "copy to the host at models/batches.py:356".
        operations: Operations below autograd, by name.
        capability: The generation of the card.
    """

    def __init__(self, devices: int, *, float64: bool) -> None:
        self.syncs: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.devices, self.capability, self.float64 = devices, (9, 0), float64
        self.live, self.pinned = Storages(), Storages()
        self.ambient = CPU
        """Where an operation without tensors puts its result: torch's own code asks for the device of a tensor that it
        has, which is the processor here."""

    def device(self, value: Tensor) -> torch.device:
        return self.live.device(value)

    def put(self, value: Tensor, device: torch.device) -> None:
        """Note that a tensor lies on a device."""
        if value.dtype == torch.float64 and not self.float64:
            raise NoFloat64(f"the device has no float64, at {_place()}")
        self.live.put(value, device)

    def sync(self, kind: str) -> None:
        self.syncs[f"{kind} at {_place()}"] += 1

    def copy(self, value: Tensor, device: torch.device, *, waits: bool, **how: Any) -> Tensor:
        """Copy a tensor to a device."""
        here = self.device(value)
        if waits and "cuda" in (device.type, here.type) and here != device:
            self.sync("copy to the device" if device.type == "cuda" else "copy to the host")
        before, self.ambient = self.ambient, device
        moving = here != device
        try:
            copied = _Moved.apply(value, self, here, how) if moving else value.to(**how)
        finally:
            self.ambient = before
        if device.type == "cuda":
            self.put(copied, device)
        return copied


class _Moved(torch.autograd.Function):
    """A copy on another device, whose gradient is copied back."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, state: Accelerator, here: torch.device, how: Mapping[str, Any]
    ) -> Tensor:
        ctx.state, ctx.here, ctx.dtype = state, here, value.dtype
        return _unwatched(torch.Tensor.to, value, copy=True, **how)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        return ctx.state.copy(grad, ctx.here, waits=False, dtype=ctx.dtype), None, None, None


def _unwatched(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function with autograd, without the mode below it."""
    with torch.utils._python_dispatch._disable_current_modes():
        return function(*args, **kwargs)


def _place() -> str:
    frame: Any = sys._getframe()
    while frame is not None:
        name = frame.f_code.co_filename
        if "/src/fedloom/" in name:
            return f"{name.partition('/src/fedloom/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def _normal(device: Any) -> torch.device:
    device = torch.device(device)
    return FIRST if device.type == "cuda" and device.index is None else device


class _Operations(TorchDispatchMode):
    """Sees every operation below autograd: refuses several devices, counts, and notes where results lie."""

    def __init__(self, state: Accelerator) -> None:
        super().__init__()
        self._state = state

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        state, kwargs = self._state, kwargs or {}
        name = func._schema.name
        inputs = tensors_in((args, kwargs))
        devices = {state.device(value) for value in inputs if value.dim()} - {torch.device("meta")}
        on = [device for device in map(state.device, inputs) if device.type == "cuda"]
        state.operations[name] += 1
        if on and name in WAITING:
            state.sync(name.removeprefix("aten::"))
        if on and name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
            state.sync("repeat_interleave")
        if on and name in INDEXING:
            devices = {state.device(args[0])}
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    state.sync("index by a mask")
                if index is not None and state.device(index) == CPU and index.dim():
                    state.sync("index from the host")
        if name == "aten::copy_" and len({state.device(value) for value in inputs}) == 2:
            if not (kwargs.get("non_blocking") or args[2:] == (True,)):
                state.sync("copy between devices")
        elif len(devices) > 1:
            shapes = [(str(state.device(value)), tuple(value.shape)) for value in inputs]
            raise MixedDevices(f"{name} got tensors of several devices at {_place()}: {shapes}")
        if name == "aten::histc" and not args[0].is_floating_point():  # processors have no kernel for it
            result = func(args[0].double(), *args[1:], **kwargs).to(args[0].dtype)
        else:
            result = func(*args, **kwargs)
        where = on[0] if on else state.ambient
        if where.type == "cuda":
            before = {value.untyped_storage()._cdata for value in inputs}
            for value in tensors_in(result):
                if value.device.type != "meta" and value.untyped_storage()._cdata not in before:
                    state.put(value, where)
        return result


class _Functions(TorchFunctionMode):
    """Sees every function that Python calls: answers questions about devices, and moves tensors."""

    def __init__(self, state: Accelerator) -> None:
        super().__init__()
        self._state = state

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        state, kwargs = self._state, dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return state.device(args[0])
        if func == torch.Tensor.is_cuda.__get__:
            return state.device(args[0]).type == "cuda"
        name = getattr(func, "__name__", "")
        if own := getattr(self, f"_{name.strip('_')}", None):
            return own(func, *args, **kwargs)
        tensors = tensors_in((args, kwargs))
        asked = kwargs.get("device")
        if asked is not None and _normal(asked).type != "meta":
            where, kwargs["device"] = _normal(asked), CPU
            if where.type == "cuda" and name in ("tensor", "as_tensor", "new_tensor", "scalar_tensor"):
                state.sync("copy to the device")
        else:
            devices = [device for device in map(state.device, tensors) if device.type == "cuda"]
            where = devices[0] if devices else CPU
            if devices and name in READING:
                state.sync(name)
            if devices and name == "new_tensor":
                state.sync("copy to the device")
        before, state.ambient = state.ambient, where
        try:
            result = func(*args, **kwargs)
        finally:
            state.ambient = before
        if where.type == "cuda" and name not in ("untyped_storage", "data_ptr"):
            known = {value.untyped_storage()._cdata for value in tensors}
            for value in tensors_in(result):  # what is made without an operation, such as by torch.tensor
                if value.device.type != "meta" and value.untyped_storage()._cdata not in known:
                    state.put(value, where)
        return result

    def _to(self, func: Any, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        copy = kwargs.pop("copy", False)
        device, dtype, non_blocking, form = torch._C._nn._parse_to(*args, **kwargs)
        if args and isinstance(args[0], Tensor):
            device = self._state.device(args[0])
        here = self._state.device(value)
        there = here if device is None else _normal(device)
        how = {} if dtype is None else {"dtype": dtype}
        how |= {} if form is None else {"memory_format": form}
        if there.type == "meta" or here.type == "meta":
            return func(value, *args, **kwargs)
        if here == there:
            before, self._state.ambient = self._state.ambient, here
            try:
                return func(value, copy=copy, **how) if how or copy else value
            finally:
                self._state.ambient = before
        pinned = self._state.pinned.device(value) != CPU
        return self._state.copy(value, there, waits=not (non_blocking and (pinned or there == CPU)), **how)

    def _cpu(self, func: Any, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._to(func, value, CPU)

    def _cuda(self, func: Any, value: Tensor, device: Any = FIRST, **kwargs: Any) -> Tensor:
        return self._to(func, value, device, **kwargs)

    def _pin_memory(self, func: Any, value: Tensor) -> Tensor:
        if self._state.device(value) != CPU:
            raise RuntimeError("only tensors of the processor can be pinned")
        pinned = value.clone()
        self._state.pinned.put(pinned, FIRST)
        return pinned

    def _is_pinned(self, func: Any, value: Tensor) -> bool:
        return self._state.pinned.device(value) != CPU

    def _numpy(self, func: Any, value: Tensor, **kwargs: Any) -> Any:
        if self._state.device(value) != CPU:
            raise TypeError("a tensor of a device cannot become an array; copy it to the host first")
        return func(value, **kwargs)


class _Generator(torch.Generator):
    """A generator that reports a device and draws as one of the processor does."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = super().__new__(cls)
        made.__dict__["where"] = _normal(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.__dict__["where"]


def _event_of(state: Accelerator) -> type:
    class Event:
        """A mark in the queue of work; nothing queues here, so it is passed at once."""

        def __init__(self, enable_timing: bool = False) -> None:
            self.moment = 0.0

        def record(self) -> None:
            self.moment = time.perf_counter()

        def synchronize(self) -> None:
            state.sync("wait for a mark")

        def elapsed_time(self, other: Event) -> float:
            return 1000 * (other.moment - self.moment)

    return Event


def _of_torch_cuda(state: Accelerator) -> Mapping[str, Any]:
    """What `torch.cuda` says of the devices."""
    about = SimpleNamespace(name="Simulated", total_memory=MEMORY, multi_processor_count=1)
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: state.devices,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: about,
        "get_device_name": lambda device=None: about.name,
        "get_device_capability": lambda device=None: state.capability,
        "is_bf16_supported": lambda *args, **kwargs: True,
        "synchronize": lambda device=None: state.sync("synchronize"),
        "Event": _event_of(state),
        "empty_cache": lambda: None,
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        "_lazy_init": lambda: None,
    }


@contextmanager
def simulated_accelerator(devices: int = 1, *, float64: bool = True) -> Iterator[Accelerator]:
    """Simulate a machine with so many CUDA devices inside this block; without `float64`, they refuse its tensors."""
    state = Accelerator(devices, float64=float64)
    functions, run_backward = _Functions(state), torch.autograd._engine_run_backward

    def watched(*args: Any, **kwargs: Any) -> Any:
        """Run the backward pass with both modes: its hooks and recomputed layers call torch from Python."""
        with functions:
            return run_backward(*args, **kwargs)

    def about(value: Tensor) -> tuple[Any, ...]:
        """Return what recomputed values must have in common with those before; saved values do not pass the modes."""
        return value.shape, value.dtype, state.device(value)

    with (
        patch.multiple(torch.cuda, **_of_torch_cuda(state)),
        patch.object(torch, "Generator", _Generator),
        patch.object(torch.autograd, "_engine_run_backward", watched),
        patch.dict(checkpoint._allowed_determinism_checks_to_fns, {"default": about}),
        functions,
        _Operations(state),
    ):
        yield state


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """A machine with one CUDA device, simulated for the whole test."""
    with simulated_accelerator() as state:
        yield state
