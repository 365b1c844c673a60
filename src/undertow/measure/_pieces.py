"""The linear pieces of a network: what each ReLU and max pool does at an input, and how near to it.

A forward pass is watched operation by operation, so that modules and functional calls count alike,
and run again with the pieces frozen, where it is an affine function of its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from undertow.measure._nested import tensors
from undertow.measure._windows import adaptive_axis, sliding_axes, windows
from undertow.objective import StandIn

# Affine in all tensors that depend on the input, by the names of PyTorch's own operations.
_AFFINE = frozenset(
    """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _to_copy _unsafe_view add alias as_strided avg_pool2d
    avg_pool3d cat channel_shuffle clone col2im constant_pad_nd copy cumsum detach diagonal expand
    fill flip gather im2col index index_select lift_fresh mean narrow neg permute pixel_shuffle
    pixel_unshuffle reflection_pad1d reflection_pad2d reflection_pad3d repeat replication_pad1d
    replication_pad2d replication_pad3d roll rsub select slice split split_with_sizes squeeze stack
    sub sum t transpose tril triu unbind unfold unsqueeze upsample_bicubic2d upsample_bilinear2d
    upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
    view zero
    """.split()  # noqa: SIM905
)
# Affine while only the arguments at these places depend on the input, and only one of them.
_PRODUCTS = {
    "mul": (0, 1),
    "mm": (0, 1),
    "bmm": (0, 1),
    "mv": (0, 1),
    "dot": (0, 1),
    "addmm": (1, 2),
    "baddbmm": (1, 2),
    "div": (0,),
    "convolution": (0,),
    "native_batch_norm": (0,),
    "_native_batch_norm_legit_no_training": (0,),
    "_batch_norm_no_update": (0,),
    "cudnn_batch_norm": (0,),
}
# Their terms that are added, not multiplied.
_ADDED = {"addmm": 0, "baddbmm": 0}
# Where a batch norm is told whether it is training; it then depends on the whole batch.
_TRAINING = {"native_batch_norm": 5, "cudnn_batch_norm": 5}
# Affine while the argument at this place, which chooses between the others, does not depend on it.
_CHOICES = {"where": 0, "masked_fill": 1}
# Read the shape of a tensor, not its values.
_SHAPE_ONLY = frozenset(
    ["empty_like", "zeros_like", "ones_like", "full_like", "new_empty", "new_zeros", "new_ones"]
)
_POOLS = {
    "max_pool2d_with_indices": 2,
    "max_pool3d_with_indices": 3,
    "adaptive_max_pool2d": 2,
    "adaptive_max_pool3d": 3,
}


@dataclass(frozen=True, eq=False)
class Kinks:
    """A continuous function of one number with one slope more than kinks, which ascend.

    `value` is the function at the first kink.
    """

    at: tuple[float, ...]
    slopes: tuple[float | Tensor, ...]
    value: float = 0.0

    def pattern(self, inputs: Tensor) -> Tensor:
        """How many kinks each number lies above; for a single kink, whether it does."""
        if len(self.at) == 1:
            return inputs > self.at[0]
        return torch.stack([inputs > kink for kink in self.at]).sum(0, dtype=torch.int8)

    def frozen(self, inputs: Tensor, pattern: Tensor) -> Tensor:
        """The function with each number's linear piece prescribed, on the whole line."""
        value, outputs = self.value, self.value + self.slopes[0] * (inputs - self.at[0])
        for index, kink in enumerate(self.at):
            piece = value + self.slopes[index + 1] * (inputs - kink)
            outputs = torch.where(pattern > index, piece, outputs)
            if index + 1 < len(self.at):
                slope = self.slopes[index + 1]
                assert not isinstance(slope, Tensor)
                value += slope * (self.at[index + 1] - kink)
        return outputs

    def margins(self, inputs: Tensor, pattern: Tensor) -> list[Tensor]:
        """Numbers that stay at least zero while the pattern holds, affine in the inputs."""
        return [
            torch.where(pattern > index, inputs - kink, kink - inputs)
            for index, kink in enumerate(self.at)
        ]


def _clamp(inputs: Tensor, low: Any = None, high: Any = None) -> Kinks:
    if low is None:
        return Kinks((float(high),), (1.0, 0.0), float(high))
    if high is None:
        return Kinks((float(low),), (0.0, 1.0), float(low))
    if low > high:  # constant
        return Kinks((float(high),), (0.0, 0.0), float(high))
    return Kinks((float(low), float(high)), (0.0, 1.0, 0.0), float(low))


def _prelu(inputs: Tensor, weight: Tensor) -> Kinks:
    return Kinks((0.0,), (weight, 1.0))


# Elementwise operations that are continuous and piecewise linear, from their arguments.
KINKS: dict[str, Callable[..., Kinks]] = {
    "relu": lambda inputs: Kinks((0.0,), (0.0, 1.0)),
    "leaky_relu": lambda inputs, negative_slope=0.01: Kinks((0.0,), (negative_slope, 1.0)),
    "_prelu_kernel": _prelu,
    "abs": lambda inputs: Kinks((0.0,), (-1.0, 1.0)),
    "hardtanh": lambda inputs, min_val=-1.0, max_val=1.0: _clamp(inputs, min_val, max_val),
    "hardsigmoid": lambda inputs: Kinks((-3.0, 3.0), (0.0, 1 / 6, 0.0)),
    "clamp": lambda inputs, min=None, max=None: _clamp(inputs, min, max),
    "clamp_min": lambda inputs, min: _clamp(inputs, min),
    "clamp_max": lambda inputs, max: _clamp(inputs, None, max),
}
# Those that a network's activation signs are read from. At the kink PyTorch's derivative is that
# of the piece below; of the others it may be that of neither piece, or of the other one.
SIGNED = frozenset(["relu", "leaky_relu", "_prelu_kernel"])


def operation_name(func: Any) -> str:
    """PyTorch's name of an operation; the same whether it writes in place or not."""
    return _written_name(func).removesuffix("_")


def _written_name(func: Any) -> str:
    name: str = func.name().removeprefix("aten::")
    return name.partition(".")[0]  # without the overload's


@dataclass(frozen=True, eq=False)
class Piece:
    """What one nonlinearity did.

    Attributes:
        layer: the path of the module that called it.
        pattern: which linear piece each unit is on: for a ReLU whether its input is positive, for a
            max pool the flat position of each window's maximum.
        margins: numbers `[rows, units]` that are at least zero exactly while the pattern holds and
            are affine in the network's input.
        differentiable: whether PyTorch's derivative is that of the piece.
    """

    layer: str
    pattern: Tensor
    margins: Float[Tensor, "rows units"]
    differentiable: bool = True


@dataclass(frozen=True, eq=False)
class Trace:
    """A forward pass: its outputs, flattened to one row a sample, and its pieces in order."""

    outputs: Float[Tensor, "rows outputs"]
    pieces: tuple[Piece, ...]

    @property
    def margins(self) -> Float[Tensor, "rows units"]:
        """Of all pieces."""
        if not self.pieces:
            return self.outputs.new_empty(len(self.outputs), 0)
        return torch.cat([piece.margins for piece in self.pieces], 1)


def trace(model: StandIn, inputs: Tensor, *, frozen: Sequence[Piece] | None = None) -> Trace:
    """One forward pass of a module's stand-in with its pieces; to be run inside `evaluating`.

    With `frozen`, the pieces of a pass over a batch, the rows of `inputs` are one or more copies of
    that batch with other values, and every nonlinearity stays on the piece that it was on then.

    Raises:
        ValueError: the network is not piecewise linear, its batch is not the first axis, it calls
            its nonlinearities otherwise than the pass that is frozen, or its outputs are not
            finite.
        TypeError: it does not return a tensor.
    """
    tensors = model.own()
    inputs = inputs.clone()  # a first layer may write in place
    watcher = _Watcher(model.follow(), inputs, frozen)
    with watcher.named_layers(), watcher:
        outputs = model.run(tensors, (inputs,))
    if not isinstance(outputs, Tensor):
        raise TypeError(f"model must return a tensor; it returns {type(outputs).__name__}")
    if outputs.ndim == 0 or len(outputs) != len(inputs):
        raise ValueError(
            f"model must map {len(inputs)} samples to as many rows; it returns "
            f"{tuple(outputs.shape)}"
        )
    if not torch.isfinite(outputs).all():
        bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        cause = f"{bad[0]} is not finite" if bad else "they overflow"
        raise ValueError(f"the outputs of model are not finite: {cause}")
    return Trace(outputs.flatten(1) if outputs.ndim > 1 else outputs[:, None], watcher.pieces())


class _Watcher(TorchDispatchMode):
    """Sees every operation of a forward pass and lets only piecewise linear ones through.

    Which tensors depend on the input is followed by their storage, so that views and in-place
    operations are seen for what they are.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, frozen: Sequence[Piece] | None) -> None:
        super().__init__()
        self._model = model
        self._rows = len(inputs)
        self._precision = torch.finfo(inputs.dtype).eps
        self._frozen = frozen
        self._pieces: list[Piece] = []
        self._path: list[str] = []
        # The tensors themselves are kept, or a storage freed and used anew would look dependent.
        self._alive: list[Tensor] = []
        self._dependent: set[int] = set()
        self._mark(inputs)

    @contextmanager
    def named_layers(self) -> Iterator[None]:
        """Follow which module is running, for the names of pieces and for errors."""
        handles = []
        try:
            for path, module in self._model.named_modules():
                enter = partial(self._enter, path)
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(self._leave))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, path: str, *_: Any) -> None:
        self._path.append(path)

    def _leave(self, *_: Any) -> None:
        self._path.pop()

    def pieces(self) -> tuple[Piece, ...]:
        if self._frozen is not None and len(self._pieces) != len(self._frozen):
            raise ValueError("model calls other nonlinearities than at the input; it must not")
        return tuple(self._pieces)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = operation_name(func)
        if name in _SHAPE_ONLY or not any(map(self._depends, tensors((args, kwargs)))):
            if torch.Tag.nondeterministic_seeded in func.tags:
                raise ValueError(f"{self._where()} draws random numbers ({name}) in eval mode")
            return func(*args, **kwargs)
        bounds = list(tensors((args[1:], kwargs)))
        slope = name == "_prelu_kernel" and not any(map(self._depends, bounds))
        if name in KINKS and (not bounds or slope):
            return self._kinked(func, name, args, kwargs)
        if name in _POOLS:
            return self._pooled(func, name, args)
        if not self._is_affine(name, args, kwargs):
            raise ValueError(
                f"{self._where()} is not piecewise linear: {name} of what depends on the input. "
                "Linear and convolutional layers, batch norm in eval mode, ReLU and its like, "
                "average and max pooling, sums and reshapes are taken"
            )
        outputs = func(*args, **kwargs)
        for output in tensors(outputs):
            if not output.is_floating_point() and output.numel():
                raise ValueError(f"{self._where()} rounds to {output.dtype}, a step function")
            if output.is_floating_point() and torch.finfo(output.dtype).eps > self._precision:
                raise ValueError(
                    f"{self._where()} rounds to {output.dtype}, which is coarser than x: give x "
                    "in that precision, or take the cast out"
                )
            self._mark(output)
        return outputs

    def _is_affine(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if name in _AFFINE:
            return True
        if name in _CHOICES:
            return not self._depends(args[_CHOICES[name]])
        if name not in _PRODUCTS or any(map(self._depends, tensors(kwargs))):
            return False
        if kwargs.get("rounding_mode"):  # of a division
            return False
        if name in _TRAINING and args[_TRAINING[name]]:
            return False
        dependent = {i for i, value in enumerate(args) if any(map(self._depends, tensors(value)))}
        dependent.discard(_ADDED.get(name, -1))
        return len(dependent) <= 1 and dependent <= set(_PRODUCTS[name])

    def _kinked(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = args[0]
        kinks = KINKS[name](*args, **kwargs)
        if self._frozen is None:
            pattern = kinks.pattern(inputs)
            margins = kinks.margins(inputs, pattern)
            at_kink = name not in SIGNED and any(not bool(margin.all()) for margin in margins)
            self._add(pattern, margins, differentiable=not at_kink)
            outputs = func(*args, **kwargs)
        else:
            pattern = self._prescribed(inputs.shape)
            self._add(pattern, kinks.margins(inputs, pattern))
            outputs = kinks.frozen(inputs, pattern)
            if _written_name(func).endswith("_"):  # writes in place
                outputs = inputs.copy_(outputs)
        self._mark(outputs)
        return outputs

    def _pooled(self, func: Any, name: str, args: tuple[Any, ...]) -> Any:
        inputs, dims = args[0], _POOLS[name]
        outputs, pattern = func(*args)
        if self._frozen is not None:
            pattern = self._prescribed(pattern.shape)
            flat = inputs.flatten(-dims).gather(-1, pattern.flatten(-dims))
            outputs = flat.view(pattern.shape)
        # What a window's maximum is ahead of the window's other elements by.
        sides, counts = tuple(inputs.shape[-dims:]), tuple(outputs.shape[-dims:])
        if name.startswith("adaptive"):
            axes = list(map(adaptive_axis, sides, counts))
        else:
            axes = sliding_axes(counts, args[1:])
        taps, inside = windows(sides, axes)
        others = inputs.flatten(-dims)[..., taps.to(inputs.device)]
        ahead = outputs.flatten(-dims)[..., None] - others
        self._add(pattern, [torch.where(inside.to(inputs.device), ahead, 1.0)])
        self._mark(outputs)
        return outputs, pattern

    def _prescribed(self, shape: torch.Size) -> Tensor:
        assert self._frozen is not None
        index = len(self._pieces)
        pattern = self._frozen[index].pattern if index < len(self._frozen) else None
        if pattern is None or pattern.numel() == 0 or math.prod(shape) % pattern.numel():
            raise ValueError("model calls other nonlinearities than at the input; it must not")
        copies = math.prod(shape) // pattern.numel()
        return pattern.expand(copies, *pattern.shape).reshape(shape)

    def _add(
        self, pattern: Tensor, margins: Sequence[Tensor], *, differentiable: bool = True
    ) -> None:
        if pattern.ndim == 0 or pattern.numel() % self._rows:
            raise ValueError(
                f"{self._where()} acts on {tuple(pattern.shape)}, which is no whole number of "
                f"units for each of {self._rows} samples; model must keep samples apart"
            )
        rows = [margin.reshape(self._rows, -1) for margin in margins]
        where = self._path[-1] if self._path and self._path[-1] else "model"
        used = sum(piece.layer.partition("#")[0] == where for piece in self._pieces)
        layer = f"{where}#{used + 1}" if used else where
        self._pieces.append(Piece(layer, pattern, torch.cat(rows, 1), differentiable))

    def _where(self) -> str:
        path = self._path[-1] if self._path else ""
        kind = type(self._model.get_submodule(path)).__name__
        return f"layer {path} ({kind})" if path else f"model ({kind})"

    def _depends(self, tensor: Tensor) -> bool:
        return _storage(tensor) in self._dependent

    def _mark(self, tensor: Tensor) -> None:
        self._alive.append(tensor)
        self._dependent.add(_storage(tensor))


def _storage(tensor: Tensor) -> int:
    """The identity of a tensor's memory while it is alive."""
    # No public name tells storages apart that hold nothing: their addresses are all 0.
    identity: int = tensor.untyped_storage()._cdata  # noqa: SLF001
    return identity
