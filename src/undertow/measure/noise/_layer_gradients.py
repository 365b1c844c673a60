"""Per-sample gradients of one layer's parameters, known through norms and inner products alone.

A layer that is linear in its parameters has, for sample i, the gradient sum_t delta_it a_it^T: its
input a and the gradient delta at its output say everything, and no gradient is ever written down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn import functional

from undertow.measure._lengths import lengths

# Patches, Gram matrices and outer products are held for so many bytes' worth of samples at a time:
# less takes more calls, more no longer stays in the cache.
_WORKSPACE_BYTES = 2**22
# Norms outside of this are taken again, with the largest entry factored out.
_SAFE_NORMS = (1e-15, 1e15)

Rows = slice | Int64[Tensor, " chosen"]


class Gradients(Protocol):
    """Each sample's gradient of one parameter, from one use of it."""

    @property
    def bytes(self) -> int:
        """Of the tensors that they are known by."""
        ...

    def squares(self) -> tuple[Float64[Tensor, " samples"], Tensor | None]:
        """Squared norms, and the sum over the samples where it comes with them."""
        ...

    def inners(self, direction: Tensor) -> Float64[Tensor, " samples"]:
        """Inner products with a tensor like the parameter."""
        ...

    def at(self, rows: Rows) -> Gradients:
        """Those of some samples."""
        ...


@dataclass(frozen=True)
class Use:
    """One use of a parameter in a forward pass.

    Attributes:
        name: of the parameter.
        gradients: each sample's, from the gradient at the layer's output.
        axis: of the layer's input that counts the samples.
    """

    name: str
    gradients: Callable[[Tensor], Gradients]
    axis: int = 0


@dataclass(frozen=True, eq=False)
class Written:
    """Gradients themselves, of a parameter's `part`."""

    rows: Float[Tensor, "samples ..."]
    part: Any = ...

    @property
    def bytes(self) -> int:
        """Of the rows."""
        return self.rows.nbytes

    def squares(self) -> tuple[Float64[Tensor, " samples"], Tensor | None]:
        """As of `Gradients`."""
        return square_rows(self.rows), self.rows.sum(0)

    def inners(self, direction: Tensor) -> Float64[Tensor, " samples"]:
        """As of `Gradients`."""
        return (flat_rows(self.rows) @ wide(direction[self.part]).flatten()).double()

    def at(self, rows: Rows) -> Written:
        """As of `Gradients`."""
        return Written(self.rows[rows], self.part)


@dataclass(frozen=True, eq=False)
class Outer:
    """sum_t delta_t a_t^T, in these rows of a matrix."""

    inputs: Float[Tensor, "samples *times in"]
    delta: Float[Tensor, "samples *times out"]
    part: slice

    @property
    def bytes(self) -> int:
        """Of inputs and deltas."""
        return self.inputs.nbytes + self.delta.nbytes

    def squares(self) -> tuple[Float64[Tensor, " samples"], Tensor | None]:
        """As of `Gradients`."""
        vectors, delta = (
            wide(tensor).reshape(len(tensor), -1, tensor.shape[-1])
            for tensor in (self.inputs, self.delta)
        )
        return outer_squares(vectors, delta), None

    def inners(self, direction: Tensor) -> Float64[Tensor, " samples"]:
        """As of `Gradients`."""
        moved = functional.linear(self.inputs, direction[self.part].to(self.inputs))
        return dot(self.delta, moved)

    def at(self, rows: Rows) -> Outer:
        """As of `Gradients`."""
        return Outer(self.inputs[rows], self.delta[rows], self.part)


@dataclass(frozen=True, eq=False)
class Picked:
    """Of a table, whose rows indices pick; a sample's picks of one row add up."""

    rows: Float[Tensor, "samples picks width"]
    indices: Int64[Tensor, "samples picks"]

    @property
    def bytes(self) -> int:
        """Of the gradients at what was picked, and the indices."""
        return self.rows.nbytes + self.indices.nbytes

    def squares(self) -> tuple[Float64[Tensor, " samples"], Tensor | None]:
        """As of `Gradients`."""
        rows, indices, samples = self.rows, self.indices, len(self.rows)
        sample = torch.arange(samples, device=rows.device)[:, None].expand_as(indices)
        keys = sample * (indices.max() + 1) + indices
        unique, position = torch.unique(keys, return_inverse=True)
        sums = rows.new_zeros(len(unique), rows.shape[-1])
        sums.index_add_(0, position.flatten(), rows.flatten(0, 1))
        owners = unique // (indices.max() + 1)
        squares = rows.new_zeros(samples, dtype=torch.float64)
        return squares.index_add_(0, owners, square_rows(sums)), None

    def inners(self, direction: Tensor) -> Float64[Tensor, " samples"]:
        """As of `Gradients`."""
        return dot(self.rows, direction[self.indices])

    def at(self, rows: Rows) -> Picked:
        """As of `Gradients`."""
        return Picked(self.rows[rows], self.indices[rows])


def by_sample(tensor: Tensor, samples: int, axis: int) -> Float[Tensor, "samples ..."]:
    """The sample axis in front, and alone: models fold a second axis into it."""
    moved = tensor.transpose(0, axis)
    return moved if moved.shape[0] == samples else moved.unflatten(0, (samples, -1))


def matrix_uses(
    inputs: Tensor, names: tuple[str | None, str | None], samples: int, axis: int, part: slice
) -> list[Use]:
    """A matrix product: a weight `[out, in]`, of which this part, and a bias `[out]`."""

    def weight(delta: Tensor) -> Gradients:
        return Outer(by_sample(inputs, samples, axis), by_sample(delta, samples, axis), part)

    def bias(delta: Tensor) -> Gradients:
        vectors = wide(by_sample(delta, samples, axis)).reshape(samples, -1, delta.shape[-1])
        return Written(vectors.sum(1), part)

    return named(names, (weight, bias), axis)


def embedding_uses(
    indices: Tensor, name: str, padding_index: int | None, samples: int, axis: int
) -> list[Use]:
    """A table of rows that indices pick."""

    def gradients(delta: Tensor) -> Gradients:
        ordered = by_sample(indices, samples, axis).reshape(samples, -1)
        rows = wide(by_sample(delta, samples, axis)).reshape(*ordered.shape, -1)
        if padding_index is not None:
            rows = rows.masked_fill((ordered == padding_index)[..., None], 0)
        return Picked(rows, ordered)

    return [Use(name, gradients, axis)]


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

    def summed(tensor: Tensor) -> Gradients:
        ordered = wide(by_sample(tensor, samples, axis))
        if last:
            return Written(ordered.reshape(samples, -1, *sizes).sum(1))
        positions = math.prod(tensor.shape[2:])
        return Written(ordered.reshape(samples, -1, sizes[0], positions).sum((1, 3)))

    return named(names, (lambda delta: summed(delta * normalize()), summed), axis)


@dataclass(frozen=True)
class Shared:
    """What all samples of a batch see alike: a parameter itself, or a part of it.

    `gradients` takes each sample's gradient of it, `[samples, *shape]`, to the parameter's.
    """

    name: str
    shape: torch.Size
    gradients: Callable[[Tensor], Gradients]


def shared_parameter(name: str, tensor: Tensor, part: Any = ...) -> Shared:
    """A parameter, or the slice `part` of it, whose shape `tensor` has."""
    return Shared(name, tensor.shape, lambda gradients: Written(gradients, part))


def shared_rows(indices: Tensor, name: str, padding: int | None, shape: torch.Size) -> Shared:
    """Rows of a table at indices that are the same for every sample, such as positions."""

    def picked(gradients: Tensor) -> Gradients:
        samples = len(gradients)
        repeated = indices.expand(samples, *indices.shape)
        return embedding_uses(repeated, name, padding, samples, 0)[0].gradients(gradients)

    return Shared(name, shape, picked)


def broadcast_uses(shared: Shared, factor: Tensor | float, axis: int) -> list[Use]:
    """A tensor that is the same for every sample, broadcast against others and multiplied."""

    def gradients(delta: Tensor) -> Gradients:
        padded = (1,) * (delta.ndim - len(shared.shape)) + shared.shape
        summed = [i for i, size in enumerate(padded) if size == 1 and i != axis]
        each = wide(delta * factor)
        each = each.sum(summed, keepdim=True) if summed else each
        return shared.gradients(each.movedim(axis, 0).reshape(delta.shape[axis], *shared.shape))

    return [Use(shared.name, gradients, axis)]


def square_rows(rows: Float[Tensor, "samples ..."]) -> Float64[Tensor, " samples"]:
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


def named(
    names: tuple[str | None, str | None],
    gradients: Sequence[Callable[[Tensor], Gradients]],
    axis: int,
) -> list[Use]:
    """Uses of those of a layer's two parameters that have a name."""
    return [
        Use(name, of, axis) for name, of in zip(names, gradients, strict=True) if name is not None
    ]


def dot(one: Tensor, other: Tensor) -> Float64[Tensor, " samples"]:
    """Inner products of each sample's parts."""
    one, other = wide(one).flatten(1), wide(other).flatten(1)
    return torch.linalg.vecdot(one, other).double()


def outer_squares(
    vectors: Float[Tensor, "samples times in"], delta: Float[Tensor, "samples times out"]
) -> Float64[Tensor, " samples"]:
    """||sum_t delta_t a_t^T||_F^2 by the cheaper of the product itself and two Gram matrices."""
    times, width, height = vectors.shape[1], vectors.shape[2], delta.shape[2]
    if times == 1:
        return square_rows(vectors) * square_rows(delta)
    by_gram = times * (width + height) <= width * height
    found = []
    for part, piece in pieces(vectors, delta, 2 * times**2 if by_gram else width * height):
        found.append(gram_squares(part, piece) if by_gram else square_rows(piece.mT @ part))
    return torch.cat(found)


def gram_squares(
    vectors: Float[Tensor, "samples times in"], delta: Float[Tensor, "samples times out"]
) -> Float64[Tensor, " samples"]:
    """The same by sum_ts <a_t, a_s> <delta_t, delta_s>."""
    return dot(vectors @ vectors.mT, delta @ delta.mT).clamp_min_(0)


def pieces(one: Tensor, other: Tensor, elements: int) -> zip[tuple[Tensor, Tensor]]:
    """Both tensors for as many samples at a time as the workspace holds."""
    size = step(elements, one.element_size())
    return zip(one.split(size), other.split(size), strict=True)


def step(elements: int, size: int) -> int:
    """Samples at a time, each of so many numbers of a size in bytes."""
    return max(1, _WORKSPACE_BYTES // max(1, elements * size))
