"""A symmetric operator that is only known by its products, on a growing orthonormal basis.

Rayleigh-Ritz over any basis; appended to by its Lanczos direction, it is Lanczos with
reorthogonalisation, full or where a watch asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.measure._kinds import check_objective
from undertow.measure._lengths import PIECE, inner, length
from undertow.measure.curvature._orthogonality import Orthogonality
from undertow.objective import Objective

Curvature = Literal["hessian", "ggn"]
Multiply = Callable[[Tensor], Tensor]

# Residuals below so many rounding errors of the largest eigenvalue count as zero.
ROUNDING = 100.0
# Memory that a basis is meant to take; images after a restart add half of it.
BASIS_BYTES = 2**31
# Once is enough to orthogonalise what keeps at least so much of its length, and what loses no
# more than so much of it.
_KEPT = 0.7
_LOST = 0.1


@dataclass(frozen=True, eq=False)
class Operator:
    """A curvature matrix of an objective, by its products with blocks of directions.

    While `fixed()` is entered it does not change, and products need not look whether it has.
    `rounding` is that of products, where types are several of the coarsest.
    """

    multiply: Multiply
    size: int
    like: Tensor
    fixed: Callable[[], AbstractContextManager[None]] = nullcontext
    rounding: float = 0.0

    def __post_init__(self) -> None:
        least = float(torch.finfo(self.like.dtype).eps)
        object.__setattr__(self, "rounding", max(self.rounding, least))

    def random(self, count: int, generator: torch.Generator) -> Float[Tensor, "count params"]:
        """Standard normal directions."""
        drawn = torch.randn(
            count,
            self.size,
            generator=generator,
            device=generator.device,
            dtype=self.like.dtype,
        )
        return drawn.to(self.like.device)


def curvature_operator(objective: Objective, curvature: Curvature) -> Operator:
    """The Hessian or the Gauss-Newton matrix of an objective.

    Raises:
        TypeError: if `objective` is none.
        ValueError: if `curvature` is another name.
    """
    check_objective(objective)
    if curvature not in ("hessian", "ggn"):
        raise ValueError(f"curvature must be 'hessian' or 'ggn', got {curvature!r}")
    multiply = objective.hvp if curvature == "hessian" else objective.ggnvp
    size = objective.num_params
    named = dict(objective.model.named_parameters())
    types = {named[name].dtype for name in objective.param_names}
    rounding = max(torch.finfo(t).eps if t.itemsize > 2 else 0.0 for t in types)
    return Operator(multiply, size, multiply(torch.zeros(0, size)), objective.fixed, rounding)


def affordable(operator: Operator, rows: int, least: int) -> int:
    """So many of these rows as memory is meant for, and no fewer than some."""
    each = operator.size * operator.like.element_size()
    return min(rows, max(least, BASIS_BYTES // each))


class RitzBasis:
    """An orthonormal basis V `[m, p]`, what it takes to know the images H V, and T = V^T H V.

    The image of an appended vector is C V, with what it held of the basis as a row of C, and what
    it has outside, which is a multiple of the next vector; others are stored.

    Args:
        operator: the matrix H, by its products.
        capacity: the most vectors to hold, and images.
        generator: for directions where the space is invariant.
    """

    def __init__(self, operator: Operator, capacity: int, generator: torch.Generator) -> None:
        self.operator = operator
        self.generator = generator
        self._basis = _empty(operator.like, capacity, operator.size)
        self._images = _empty(operator.like, capacity, operator.size)
        self._stored = 0  # images; those of later vectors follow from C
        self._held = torch.zeros(capacity, capacity, dtype=torch.float64)  # C
        self._projected = torch.zeros(capacity, capacity, dtype=torch.float64)
        # What H times the newest vector has outside of the space, where that is known.
        self._outside: Tensor | None = None
        self.size = 0
        self.products = 0
        self.scale = 0.0  # the largest magnitude of a Ritz value so far

    @property
    def basis(self) -> Float[Tensor, "m params"]:
        """V."""
        return self._basis[: self.size]

    @property
    def projected(self) -> Float64[Tensor, "m m"]:
        """T."""
        return self._projected[: self.size, : self.size]

    @property
    def full(self) -> bool:
        """Whether no vector fits any more."""
        return self.size == len(self._basis)

    def extend(self, directions: Float[Tensor, "new params"]) -> None:
        """Add directions, orthogonalised; those that the basis holds become random ones."""
        self._store_images()
        first = self.size
        for direction in directions[: len(self._basis) - first]:
            self._basis[self.size] = self.orthonormal(direction)
            self.size += 1
        self._multiply(first)

    def adopt(
        self, vectors: Float[Tensor, "new params"], images: Float[Tensor, "new params"]
    ) -> None:
        """Add vectors whose images are known, the first ones if there is no room for all.

        Of those that the basis nearly holds, the rest and its image would be rounding errors.
        """
        self._store_images()
        first = self.size
        for vector, image in zip(vectors, images, strict=True):
            if self.full:
                break
            for _ in range(2):
                inside = self.basis @ vector
                vector = vector - inside @ self.basis
                image = image - inside @ self._images[: self.size]
            left = length(vector)
            if left <= _LOST:
                continue
            self._basis[self.size], self._images[self.size] = vector / left, image / left
            self.size += 1
        self._stored, self._outside = self.size, None
        self._set_columns(first, self.basis @ self._images[first : self.size].T)

    def lanczos_direction(self) -> tuple[Float[Tensor, " params"], float]:
        """What H times the newest vector has outside of the space, of unit length, and its length.

        The length is 0 where the space is invariant, and the direction then random; zero where
        there is no other.
        """
        newest = self.size - 1
        if self.size == self.operator.size:
            return torch.zeros_like(self._basis[newest]), 0.0
        direction = self._outside
        if direction is None:
            coefficients = self._projected[: self.size, newest].to(self._basis)
            direction = self._images[newest] - coefficients @ self.basis
            # Once more for the rounding errors of what was removed.
            direction -= (self.basis @ direction) @ self.basis
        left = float(length(direction))
        # Ritz values are not asked for by all; the matrix that they are of bounds them from below.
        scale = max(self.scale, float(self.projected.abs().max()))
        if left <= ROUNDING * self.operator.rounding * scale:
            return self.orthonormal(self.operator.random(1, self.generator)[0]), 0.0
        if left <= self.operator.rounding**0.5 * scale:
            # What is left of so much holds a share of the basis too, as rounding errors.
            return self.orthonormal(direction / left), left
        return direction / left, left

    def append(
        self, direction: Float[Tensor, " params"], watch: Orthogonality | None = None
    ) -> None:
        """Add a unit vector that is orthogonal to the basis already.

        The newest two vectors come first, as they are all that H times a Lanczos vector meets:
        the rest of the basis then has rounding errors to remove, for which once is enough. With a
        `watch` from the first vector on, they stay where it says that they are small.
        """
        newest = self.size
        self._basis[newest] = direction
        if self._outside is not None:
            self._held[newest - 1, newest] = float(inner(self._basis[newest], self._outside))
        self.size += 1
        outside = self.operator.multiply(self._basis[newest : self.size])[0].clone()
        self.products += 1
        near = self._take_out(outside)
        column = torch.zeros_like(self._basis[: self.size, 0])
        if watch is None:
            self._orthogonalize(outside, column)
        else:
            near += self._take_out(outside)
            self._watched(outside, column, float(near[-1]), watch)
        column[-2:] += near
        self._outside = outside
        self._held[newest, : self.size] = column.double().cpu()
        if watch is not None:  # as of vectors that are orthogonal
            column[:-2] = 0
        self._set_columns(newest, column[:, None])

    def _take_out(self, outside: Tensor) -> Tensor:
        """Orthogonalise against the newest two vectors, the older first; what they held of it."""
        held = []
        for vector in self.basis[-2:]:
            held.append(float(inner(vector, outside)))
            outside.sub_(vector, alpha=held[-1])
        return outside.new_tensor(held)

    def _orthogonalize(self, outside: Tensor, column: Tensor) -> None:
        """Take the basis out of what H v has outside, and add the coefficients to its column."""
        for _ in range(2):
            removed = self.basis @ outside
            outside -= removed @ self.basis
            column += removed
            if length(removed) <= _LOST * length(outside):
                return

    def _watched(
        self, outside: Tensor, column: Tensor, diagonal: float, watch: Orthogonality
    ) -> None:
        """The same where the watch asks for it."""
        left = float(length(outside))
        removed = None
        if watch.step(diagonal, left):
            self._orthogonalize(outside, column)
            removed = column[:-2].double().cpu().numpy()
            left = float(length(outside))
        watch.taken(left, removed)

    def _multiply(self, first: int) -> None:
        added = self._basis[first : self.size]
        images = self.operator.multiply(added)
        self.products += len(added)
        self._images[first : self.size] = images
        self._stored, self._outside = self.size, None
        self._set_columns(first, self.basis @ images.T)

    def _store_images(self) -> None:
        later = slice(self._stored, self.size)
        self._images[later] = self._held[later, : self.size].to(self._basis) @ self.basis
        if self._outside is not None:
            self._images[self.size - 1] += self._outside
        self._stored, self._outside = self.size, None

    def _combined(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors of coordinates `[n, m]`, and their images."""
        later = slice(self._stored, self.size)
        held = (rows[:, later] @ self._held[later, : self.size]).to(self._basis)
        rows = rows.to(self._basis)
        both = torch.cat([rows, held])
        vectors, images = (_empty(self._basis, len(rows), self.operator.size) for _ in range(2))
        for start in range(0, self.operator.size, PIECE):  # no more memory than for the result
            piece = (slice(None), slice(start, start + PIECE))
            vectors[piece], images[piece] = (both @ self.basis[piece]).split(len(rows))
            if self._stored:
                images[piece] += rows[:, : self._stored] @ self._images[: self._stored][piece]
            if self._outside is not None:
                images[piece] += rows[:, -1:] * self._outside[piece[1]]
        return vectors, images

    def _set_columns(self, first: int, columns: Float[Tensor, "m new"]) -> None:
        wide = columns.double().cpu()
        self._projected[: self.size, first : self.size] = wide
        self._projected[first : self.size, : self.size] = wide.T

    def orthonormal(self, direction: Float[Tensor, " params"]) -> Float[Tensor, " params"]:
        """What the basis does not hold of a direction, of unit length; or of a random one."""
        while True:
            given = length(direction)
            if given > 0:
                direction = direction / given
                for _ in range(2):  # once leaves the rounding errors of what it removes
                    direction = direction - (self.basis @ direction) @ self.basis
                    left = length(direction)
                    direction = direction / left
                    if left > _KEPT:
                        return direction
                    if left < ROUNDING * torch.finfo(direction.dtype).eps:
                        break
                else:
                    return direction
            direction = self.operator.random(1, self.generator)[0]

    def ritz(self) -> tuple[Float64[Tensor, " m"], Float64[Tensor, "m m"]]:
        """Ritz values, largest first, and their coordinates in the basis as rows."""
        values, coordinates = torch.linalg.eigh(self.projected)
        self.scale = max(self.scale, float(values.abs().max()))
        return values.flip(0), coordinates.flip(1).T

    def vectors(self, coordinates: Float64[Tensor, "n m"]) -> Float[Tensor, "n params"]:
        """Vectors of given coordinates."""
        return coordinates.to(self.basis) @ self.basis

    def residuals(
        self, values: Float64[Tensor, " n"], coordinates: Float64[Tensor, "n m"]
    ) -> Float[Tensor, "n params"]:
        """H y - theta y of Ritz pairs."""
        vectors, images = self._combined(coordinates)
        return images - values[:, None].to(vectors) * vectors

    def pairs(
        self, coordinates: Float64[Tensor, "n m"]
    ) -> tuple[Float64[Tensor, " n"], Float[Tensor, "n params"], Float[Tensor, "n params"]]:
        """Ritz pairs of the space that vectors span, and their residuals H y - theta y.

        Ritz vectors of a basis that is not quite orthonormal are made so.
        """
        vectors, images = self._combined(coordinates)
        gram, projected = ((vectors @ block.T).cpu().double() for block in (vectors, images))
        inverse = torch.linalg.inv(torch.linalg.cholesky(gram))
        projected = inverse @ projected @ inverse.T
        values, mix = torch.linalg.eigh((projected + projected.T) / 2)
        values, rows = values.flip(0), (mix.flip(1).T @ inverse).to(vectors)
        for block in (vectors, images):
            for start in range(0, self.operator.size, PIECE):
                piece = block[:, start : start + PIECE]
                piece.copy_(rows @ piece)
        return values, vectors, images.addcmul_(vectors, values[:, None].to(vectors), value=-1)

    def restart(self, keep: int) -> None:
        """Go on with the `keep` largest Ritz vectors alone."""
        values, basis, images = self.pairs(self.ritz()[1][:keep])
        images.addcmul_(basis, values[:, None].to(basis))
        self.size = keep
        self._basis[:keep], self._images[:keep] = basis, images
        self._stored, self._outside = keep, None
        self._set_columns(0, basis @ images.T)


def _empty(like: Tensor, rows: int, size: int) -> Tensor:
    """A block to be filled row by row; NumPy asks for large pages, which come sooner."""
    if like.device.type != "cpu":
        return like.new_empty(rows, size)
    return torch.from_numpy(np.empty((rows, size), dtype=like.new_empty(0).numpy().dtype))
