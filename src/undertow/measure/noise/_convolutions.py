"""Per-sample gradients of convolutions: their norms, and the batch's gradient beside them.

With the patches that each output position sees, a convolution is a matrix product along positions.
Its gradients are also those of one convolution with a group for each sample, for which there are
kernels that need no patches. Which way takes the least time, a trial says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from undertow.measure.noise._layer_gradients import (
    Gradients,
    Rows,
    Use,
    Written,
    dot,
    gram_squares,
    named,
    pieces,
    square_rows,
    step,
    wide,
)
from undertow.measure.noise._trials import fastest

# Copying patches position by position pays where it runs along so many times more numbers.
_LONGER_RUNS = 3
# Ways that take so many times the arithmetic of the least are not tried.
_HOPELESS = 4
# With fewer samples there is no trial of ways.
_TRIED_SAMPLES = 16


class Options(TypedDict):
    """Of a convolution, as PyTorch's functions take them."""

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int


def options_of(given: Mapping[str, Any], axes: int) -> Options:
    """The options among a call's arguments by name, over so many axes of places."""
    each = {
        option: (value,) * axes if isinstance(value, int) else value
        for option, default in (("stride", 1), ("padding", 0), ("dilation", 1))
        for value in (given.get(option, default),)
    }
    return Options(
        stride=tuple(each["stride"]),
        padding=each["padding"] if isinstance(each["padding"], str) else tuple(each["padding"]),
        dilation=tuple(each["dilation"]),
        groups=given.get("groups", 1),
    )


@dataclass(frozen=True, eq=False)
class Convolved:
    """Of a kernel `[out, in / groups, *taps]`."""

    convolve: Callable[..., Tensor]
    inputs: Float[Tensor, "samples in *places"]
    delta: Float[Tensor, "samples out *positions"]
    kernel: torch.Size
    options: Options

    @property
    def bytes(self) -> int:
        """Of inputs and deltas."""
        return self.inputs.nbytes + self.delta.nbytes

    def squares(self) -> tuple[Float64[Tensor, " samples"], Tensor | None]:
        """As of `Gradients`."""
        return _WAYS[self._way()](self)

    def inners(self, direction: Tensor) -> Float64[Tensor, " samples"]:
        """As of `Gradients`."""
        moved = self.convolve(self.inputs, direction.to(self.inputs), None, **self.options)
        return dot(self.delta, moved)

    def at(self, rows: Rows) -> Convolved:
        """As of `Gradients`."""
        inputs, delta = self.inputs[rows], self.delta[rows]
        return Convolved(self.convolve, inputs, delta, self.kernel, self.options)

    def _way(self) -> str:
        """The one that took the least time when so many convolutions of this shape were met."""
        number, ways = min(len(self.inputs), _step(self)), self._ways()
        if number < _TRIED_SAMPLES:
            return ways[0]
        few = self.at(slice(number))
        trials = {way: partial(_WAYS[way], few) for way in ways}
        key = "squares", *_met(few.inputs, few.delta, self.kernel, self.options)
        return fastest(key, trials, self.inputs.device)

    def _ways(self) -> tuple[str, ...]:
        """Those that a trial may find the fastest; the one of least arithmetic first."""
        positions, patch = math.prod(self.delta.shape[2:]), math.prod(self.kernel[1:])
        written = self.kernel[0] * patch
        gram = positions * (self.options["groups"] * patch + self.kernel[0])
        plain = own_backward(self.inputs, self.delta, self.options)
        grouped = ("grouped",) if plain else ()
        if gram > _HOPELESS * written:
            return "written", *grouped
        if written > _HOPELESS * gram:
            return ("gram",)
        return (*(("gram", "written") if gram <= written else ("written", "gram")), *grouped)


def _met(
    inputs: Tensor, delta: Tensor, kernel: torch.Size, options: Options
) -> tuple[Hashable, ...]:
    """What tells convolutions apart, with numbers of samples told apart to a factor of two."""
    shapes = inputs.shape[1:], delta.shape[1:], kernel
    return len(inputs).bit_length(), *shapes, *options.values(), inputs.dtype


def _step(whole: Convolved) -> int:
    """Samples whose inputs, deltas and gradients the workspace holds."""
    elements = whole.kernel.numel() + whole.inputs[0].numel() + whole.delta[0].numel()
    return step(elements, wide(whole.inputs[:0]).element_size())


def _grouped(whole: Convolved) -> tuple[Float64[Tensor, " samples"], Tensor | None]:
    """By one convolution with a group for each sample."""
    found, total = [], wide(whole.delta).new_zeros(())
    size = _step(whole)
    for inputs, delta in zip(whole.inputs.split(size), whole.delta.split(size), strict=True):
        samples, (height, *_) = len(inputs), whole.kernel
        # Of the kernel, only its shape is read.
        kernel = inputs.new_empty(1).expand(samples * height, *whole.kernel[1:])
        options = whole.options.copy()
        options["groups"] *= samples
        slope, given = (wide(p).reshape(1, -1, *p.shape[2:]) for p in (delta, inputs))
        weight = (False, True, False)
        _, gradients, _ = convolution_backward(slope, given, wide(kernel), options, weight)
        assert gradients is not None
        each = gradients.reshape(samples, *whole.kernel)
        found.append(square_rows(each))
        total = total + each.sum(0)
    return torch.cat(found), total


def _by_patches(
    whole: Convolved, *, gram: bool
) -> tuple[Float64[Tensor, " samples"], Tensor | None]:
    """By patches and deltas along the positions."""
    groups, kernel, outputs = whole.options["groups"], whole.kernel, whole.delta.shape[2:]
    positions, patch = math.prod(outputs), math.prod(kernel[1:])
    elements = groups * patch * positions + (2 * groups * positions**2 if gram else kernel.numel())
    found = []
    for part, piece in pieces(whole.inputs, whole.delta, elements):
        patches = _patches(wide(part), kernel[2:], outputs, whole.options)
        split = wide(piece).reshape(len(piece) * groups, -1, positions)
        squares = gram_squares(patches, split.mT) if gram else square_rows(split @ patches)
        found.append(squares.reshape(len(piece), groups).sum(1))
    return torch.cat(found), None


_WAYS: Mapping[str, Callable[[Convolved], tuple[Tensor, Tensor | None]]] = {
    "grouped": _grouped,
    "written": partial(_by_patches, gram=False),
    "gram": partial(_by_patches, gram=True),
}


def convolution_uses(
    convolve: Callable[..., Tensor],
    inputs: Tensor,
    kernel: torch.Size,
    names: tuple[str | None, str | None],
    options: Options,
) -> list[Use]:
    """A convolution: a kernel `[out, in / groups, *taps]` and a bias `[out]`."""

    def weight(delta: Tensor) -> Gradients:
        return Convolved(convolve, inputs, delta, kernel, options)

    def bias(delta: Tensor) -> Gradients:
        return Written(wide(delta).flatten(2).sum(2))

    return named(names, (weight, bias), 0)


def own_backward(inputs: Tensor, weight: Tensor, options: Options) -> bool:
    """Whether `Watched` can take a convolution's place."""
    plain = inputs.dtype == weight.dtype and weight.dtype.is_floating_point
    return plain and not isinstance(options["padding"], str)


class Watched(torch.autograd.Function):
    """A convolution whose parameters' gradients are taken from what `seen` makes of its delta.

    Where that finds none they are PyTorch's; where it is None, nobody asks for them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        convolve: Callable[..., Tensor],
        options: Options,
        seen: Callable[[Tensor], tuple[Tensor | None, Tensor | None] | None],
    ) -> Tensor:
        """The convolution."""
        ctx.save_for_backward(inputs, weight)
        ctx.options, ctx.seen = options, seen
        return convolve(inputs, weight, bias, **options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in inputs, weight and bias."""
        inputs, weight = ctx.saved_tensors
        seen, options = ctx.seen(delta), ctx.options
        need_inputs, *need = ctx.needs_input_grad[:3]
        given = _input_gradient(delta, inputs, weight, options) if need_inputs else None
        parts = list(seen or (None, None))
        lacking = [n and p is None and seen is not None for n, p in zip(need, parts, strict=True)]
        if any(lacking):
            _, *found = convolution_backward(delta, inputs, weight, options, (False, *lacking))
            parts = [b if lacks else a for a, b, lacks in zip(parts, found, lacking, strict=True)]
        return given, *parts, None, None, None


def _input_gradient(
    delta: Tensor, inputs: Tensor, weight: Tensor, options: Options
) -> Float[Tensor, "samples in *places"]:
    """PyTorch's gradient in the inputs; on a processor piece by piece, which stays in the cache."""
    size = max(1, len(inputs))
    if inputs.device.type == "cpu" and len(inputs):
        # What the kernel itself reorders counts as well.
        size = step(3 * (inputs[0].numel() + delta[0].numel()), inputs.element_size())
    found = torch.empty_like(inputs)
    for into, slope, given in zip(*(t.split(size) for t in (found, delta, inputs)), strict=True):
        part, *_ = convolution_backward(slope, given, weight, options, (True, False, False))
        assert part is not None
        into.copy_(part)
    return found


def convolution_backward(
    delta: Tensor,
    inputs: Tensor,
    weight: Tensor,
    options: Options,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """PyTorch's gradients in inputs, weight and bias, those that are wanted."""
    found: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
        delta,
        inputs,
        weight,
        [len(weight)],
        options["stride"],
        options["padding"],
        options["dilation"],
        False,
        [0] * (weight.ndim - 2),
        options["groups"],
        list(wanted),
    )
    return found


def _patches(
    inputs: Tensor, taps: Sequence[int], outputs: Sequence[int], options: Options
) -> Float[Tensor, "samples_groups positions patch"]:
    """What each output position of a convolution sees, in any order."""
    groups, dimensions, padding = options["groups"], len(taps), _padding(taps, options)
    positions = math.prod(outputs)
    # Copying runs along the positions of a row, or along the taps of a row and the channels.
    rows = outputs[-1] if options["stride"][-1] == 1 else 1
    channels_last = groups == 1 and taps[-1] * inputs.shape[1] >= _LONGER_RUNS * rows
    if channels_last:
        inputs = inputs.movedim(1, -1)
        padding = [0, 0, *padding]
    padded = functional.pad(inputs, padding) if any(padding) else inputs
    first = 1 if channels_last else 2
    seen = padded.contiguous()
    for axis, (count, stride, gap) in enumerate(
        zip(taps, options["stride"], options["dilation"], strict=True)
    ):
        seen = seen.unfold(first + axis, gap * (count - 1) + 1, stride)[..., ::gap]
    if channels_last:
        return seen.movedim(1 + dimensions, -1).reshape(len(inputs), positions, -1)
    split = seen.unflatten(1, (groups, -1)).movedim(
        tuple(range(3, 3 + dimensions)), tuple(range(-dimensions, 0))
    )
    return split.reshape(len(inputs) * groups, -1, positions).mT


def _padding(taps: Sequence[int], options: Options) -> list[int]:
    """As `functional.pad` takes it: two numbers an axis, the last axis first."""
    padding = options["padding"]
    if padding == "valid":
        padding = (0,) * len(taps)
    if isinstance(padding, tuple):
        return [side for size in reversed(padding) for side in (size, size)]
    totals = [gap * (count - 1) for count, gap in zip(taps, options["dilation"], strict=True)]
    return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
