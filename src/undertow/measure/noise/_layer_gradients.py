"""Per-sample gradients of one layer's parameters, known through norms and inner products alone.

A layer that is linear in its parameters has, for sample i, the gradient sum_t delta_it a_it^T: its
input a and the gradient delta at its output say everything, and no gradient is ever written down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from undertow.measure._lengths import lengths

# Patches, Gram matrices and outer products are held for so many bytes' worth of samples at a time:
# less takes more calls, more no longer stays in the cache.
_WORKSPACE_BYTES = 2**22
# Copying patches position by position pays where it runs along so many times more numbers.
_LONGER_RUNS = 2
# Norms outside of this are taken again, with the largest entry factored out.
_SAFE_NORMS = (1e-15, 1e15)

Squares = Callable[[Tensor], Tensor]
Inners = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Use:
    """One use of a parameter in a forward pass.

    Attributes:
        name: of the parameter.
        squares: from the gradient at the layer's output, delta, to the squared norm of each
            sample's gradient, `[samples]`.
        inners: from delta and a tensor like the parameter to the inner products, `[samples]`.
        axis: of the layer's input that counts the samples.
    """

    name: str
    squares: Squares
    inners: Inners
    axis: int = 0


def by_sample(tensor: Tensor, samples: int, axis: int) -> Float[Tensor, "samples ..."]:
    """The sample axis in front, and alone: models fold a second axis into it."""
    moved = tensor.transpose(0, axis)
    return moved if moved.shape[0] == samples else moved.unflatten(0, (samples, -1))


def matrix_uses(
    inputs: Tensor, names: tuple[str | None, str | None], samples: int, axis: int, rows: slice
) -> list[Use]:
    """A matrix product: a weight `[out, in]`, of which these `rows`, and a bias `[out]`."""

    def vectors(tensor: Tensor) -> Tensor:
        return wide(by_sample(tensor, samples, axis)).reshape(samples, -1, tensor.shape[-1])

    def squares(delta: Tensor) -> Tensor:
        return _outer_squares(vectors(inputs), vectors(delta))

    def inners(delta: Tensor, direction: Tensor) -> Tensor:
        moved = functional.linear(inputs, direction[rows].to(inputs))
        return _dot(by_sample(delta, samples, axis), by_sample(moved, samples, axis))

    def bias_squares(delta: Tensor) -> Tensor:
        return square_rows(vectors(delta).sum(1))

    def bias_inners(delta: Tensor, direction: Tensor) -> Tensor:
        return (vectors(delta).sum(1) @ wide(direction[rows])).double()

    return _named(names, ((squares, inners), (bias_squares, bias_inners)), axis)


def convolution_uses(
    convolve: Callable[..., Tensor],
    inputs: Tensor,
    kernel_shape: Sequence[int],
    names: tuple[str | None, str | None],
    options: dict[str, Any],
) -> list[Use]:
    """A convolution: a kernel `[out, in / groups, *taps]` and a bias `[out]`.

    With the patches that each output position sees, it is a matrix product along the positions.
    """
    groups = options["groups"]

    def squares(delta: Tensor) -> Tensor:
        positions = math.prod(delta.shape[2:])
        patch = math.prod(kernel_shape[1:])
        elements = groups * patch * positions + kernel_shape[0] * patch
        found = []
        for part, piece in _pieces(inputs, delta, elements):
            patches = _patches(wide(part), kernel_shape[2:], delta.shape[2:], options)
            split = wide(piece).reshape(len(piece) * groups, -1, positions).mT
            found.append(_outer_squares(patches, split).reshape(len(piece), groups).sum(1))
        return torch.cat(found)

    def inners(delta: Tensor, direction: Tensor) -> Tensor:
        return _dot(delta, convolve(inputs, direction.to(inputs), None, **options))

    def bias_squares(delta: Tensor) -> Tensor:
        return square_rows(wide(delta).flatten(2).sum(2))

    def bias_inners(delta: Tensor, direction: Tensor) -> Tensor:
        return (wide(delta).flatten(2).sum(2) @ wide(direction)).double()

    return _named(names, ((squares, inners), (bias_squares, bias_inners)), 0)


def embedding_uses(
    indices: Tensor, name: str, padding_index: int | None, samples: int, axis: int
) -> list[Use]:
    """A table of rows that indices pick; a sample's picks of one row add up."""

    def flat(delta: Tensor) -> Tensor:
        ordered = by_sample(indices, samples, axis).reshape(samples, -1)
        rows = wide(by_sample(delta, samples, axis)).reshape(*ordered.shape, -1)
        if padding_index is not None:
            rows = rows.masked_fill((ordered == padding_index)[..., None], 0)
        return rows

    def squares(delta: Tensor) -> Tensor:
        rows = flat(delta)
        ordered = by_sample(indices, samples, axis).reshape(samples, -1)
        sample = torch.arange(samples, device=rows.device)[:, None].expand_as(ordered)
        keys = sample * (ordered.max() + 1) + ordered
        unique, position = torch.unique(keys, return_inverse=True)
        sums = rows.new_zeros(len(unique), rows.shape[-1])
        sums.index_add_(0, position.flatten(), rows.flatten(0, 1))
        owners = unique // (ordered.max() + 1)
        return rows.new_zeros(samples, dtype=torch.float64).index_add_(0, owners, square_rows(sums))

    def inners(delta: Tensor, direction: Tensor) -> Tensor:
        rows = flat(delta)
        picked = direction[by_sample(indices, samples, axis).reshape(samples, -1)]
        return _dot(rows, picked)

    return [Use(name, squares, inners, axis)]


def scale_uses(
    normalize: Callable[[], Tensor],
    names: tuple[str | None, str | None],
    sizes: Sequence[int],
    last: bool,
    samples: int,
    axis: int,
) -> list[Use]:
    """An elementwise scale and shift after a normalisation.

    Args:
        normalize: gives what is scaled, in the shape of the output.
        names: of the scale and the shift.
        sizes: shape of both.
        last: whether they run along the last axes (layer norm) or along axis 1 (batch norm).
        samples: in the batch.
        axis: of the input that counts the samples.
    """

    def summed(tensor: Tensor) -> Tensor:
        ordered = wide(by_sample(tensor, samples, axis))
        if last:
            return ordered.reshape(samples, -1, math.prod(sizes)).sum(1)
        return ordered.reshape(samples, -1, sizes[0], math.prod(tensor.shape[2:])).sum((1, 3))

    def squares(scaled: bool, delta: Tensor) -> Tensor:
        return square_rows(summed(delta * normalize() if scaled else delta))

    def inners(scaled: bool, delta: Tensor, direction: Tensor) -> Tensor:
        gradients = summed(delta * normalize() if scaled else delta)
        return (gradients @ wide(direction).flatten()).double()

    functions = tuple(
        (partial(squares, scaled), partial(inners, scaled)) for scaled in (True, False)
    )
    return _named(names, functions, axis)


@dataclass(frozen=True)
class Shared:
    """What all samples of a batch see alike: a parameter itself, or a part of it.

    `squares` and `inners` take each sample's gradient of it, `[samples, *shape]`.
    """

    name: str
    shape: torch.Size
    squares: Squares
    inners: Inners


def shared_parameter(name: str, tensor: Tensor, part: Any = ...) -> Shared:
    """A parameter, or the slice `part` of it, whose shape `tensor` has."""

    def inners(gradients: Tensor, direction: Tensor) -> Tensor:
        return (flat_rows(gradients) @ wide(direction[part]).flatten()).double()

    return Shared(name, tensor.shape, square_rows, inners)


def shared_rows(indices: Tensor, name: str, padding: int | None, shape: torch.Size) -> Shared:
    """Rows of a table at indices that are the same for every sample, such as positions."""

    def use(gradients: Tensor) -> Use:
        samples = len(gradients)
        repeated = indices.expand(samples, *indices.shape)
        return embedding_uses(repeated, name, padding, samples, 0)[0]

    return Shared(
        name,
        shape,
        lambda gradients: use(gradients).squares(gradients),
        lambda gradients, direction: use(gradients).inners(gradients, direction),
    )


def broadcast_uses(shared: Shared, factor: Tensor | float, axis: int) -> list[Use]:
    """A tensor that is the same for every sample, broadcast against others and multiplied."""

    def gradients(delta: Tensor) -> Tensor:
        padded = (1,) * (delta.ndim - len(shared.shape)) + shared.shape
        summed = [i for i, size in enumerate(padded) if size == 1 and i != axis]
        each = wide(delta * factor)
        each = each.sum(summed, keepdim=True) if summed else each
        return each.movedim(axis, 0).reshape(delta.shape[axis], *shared.shape)

    def squares(delta: Tensor) -> Tensor:
        return shared.squares(gradients(delta))

    def inners(delta: Tensor, direction: Tensor) -> Tensor:
        return shared.inners(gradients(delta), direction)

    return [Use(shared.name, squares, inners, axis)]


def square_rows(rows: Float[Tensor, "samples ..."]) -> Float[Tensor, " samples"]:
    """Squared norm of each sample's part, in float64."""
    flat = flat_rows(rows)
    norms = lengths(flat)
    if not flat.shape[1] or ((norms > _SAFE_NORMS[0]) & (norms < _SAFE_NORMS[1])).all():
        return norms.square()
    # Squares of tiny gradients leave float32's range; the gradients themselves need not.
    scale = flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    scaled = lengths(flat / scale)
    return (scaled * scale.double().squeeze(1)).square()


def flat_rows(rows: Float[Tensor, "samples ..."]) -> Float[Tensor, "samples size"]:
    """Each sample's part as one vector; of a number, or of nothing, too."""
    return rows.reshape(len(rows), math.prod(rows.shape[1:]))


def wide(tensor: Tensor) -> Tensor:
    """At least single precision: squares and sums of half precision lose too much."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def _named(
    names: tuple[str | None, str | None], functions: Sequence[tuple[Squares, Inners]], axis: int
) -> list[Use]:
    return [
        Use(name, squares, inners, axis)
        for name, (squares, inners) in zip(names, functions, strict=True)
        if name is not None
    ]


def _dot(one: Tensor, other: Tensor) -> Float[Tensor, " samples"]:
    one, other = wide(one).flatten(1), wide(other).flatten(1)
    return torch.linalg.vecdot(one, other).double()


def _outer_squares(
    vectors: Float[Tensor, "samples times in"], delta: Float[Tensor, "samples times out"]
) -> Float[Tensor, " samples"]:
    """||sum_t delta_t a_t^T||_F^2 by the cheaper of the product itself and two Gram matrices."""
    times, width, height = vectors.shape[1], vectors.shape[2], delta.shape[2]
    if times == 1:
        return square_rows(vectors) * square_rows(delta)
    by_gram = times * (width + height) <= width * height
    found = []
    for part, piece in _pieces(vectors, delta, 2 * times**2 if by_gram else width * height):
        if by_gram:
            products = (part @ part.mT).mul_(piece @ piece.mT).sum((1, 2)).double()
            found.append(products.clamp_min_(0))
        else:
            found.append(square_rows(piece.mT @ part))
    return torch.cat(found)


def _pieces(one: Tensor, other: Tensor, elements: int) -> zip[tuple[Tensor, Tensor]]:
    """Both tensors for as many samples at a time as the workspace holds."""
    step = max(1, _WORKSPACE_BYTES // (elements * one.element_size()))
    return zip(one.split(step), other.split(step), strict=True)


def _patches(
    inputs: Tensor, taps: Sequence[int], outputs: Sequence[int], options: dict[str, Any]
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


def _padding(taps: Sequence[int], options: dict[str, Any]) -> list[int]:
    """As `functional.pad` takes it: two numbers an axis, the last axis first."""
    padding = options["padding"]
    if padding == "valid":
        padding = (0,) * len(taps)
    if padding != "same":
        return [side for size in reversed(padding) for side in (size, size)]
    totals = [gap * (count - 1) for count, gap in zip(taps, options["dilation"], strict=True)]
    return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
