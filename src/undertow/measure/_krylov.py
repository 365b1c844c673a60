"""Eigenpairs and quadrature of a symmetric operator that is only known by its products.

Rayleigh-Ritz over a growing orthonormal basis. Expanded by a Ritz pair's residual from one start
vector, it is Lanczos with full reorthogonalisation; it also takes any warm start, and restarts
thick (Wu and Simon, 2000). Residuals are of the pairs themselves, not of a recurrence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.objective import Objective

Curvature = Literal["hessian", "ggn"]
Multiply = Callable[[Tensor], Tensor]

# Residuals below so many rounding errors of the largest eigenvalue count as zero.
_ROUNDING = 100.0
# Once is enough to orthogonalise what keeps at least so much of its length, and what loses no
# more than so much of it.
_KEPT = 0.7
_LOST = 0.1
# Matrices up to this size need no restart.
_SMALL = 256
# Pairs whose residuals are computed together.
_TOGETHER = 8
# After k > 1 pairs have converged, a random direction is followed for at most so many products: one
# Krylov space holds a single vector of each eigenspace. Fewer do once an eigenvector that is still
# missing would need a random component so small that this is its probability.
_VERIFY = 6
_MISSED = 0.01


@dataclass(frozen=True, eq=False)
class Operator:
    """A curvature matrix of an objective, by its products with blocks of directions.

    While `fixed()` is entered it does not change, and products need not look whether it has.
    """

    multiply: Multiply
    size: int
    like: Tensor
    fixed: Callable[[], AbstractContextManager[None]] = nullcontext

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
    if not isinstance(objective, Objective):
        raise TypeError(f"objective must be an undertow.Objective; got {type(objective).__name__}")
    if curvature not in ("hessian", "ggn"):
        raise ValueError(f"curvature must be 'hessian' or 'ggn'; got {curvature!r}")
    multiply = objective.hvp if curvature == "hessian" else objective.ggnvp
    size = objective.num_params
    return Operator(multiply, size, multiply(torch.zeros(0, size)), objective.fixed)


@dataclass(frozen=True, eq=False)
class RitzPairs:
    """Approximate eigenpairs, largest first, and the basis that they were found in."""

    values: Float64[Tensor, " pairs"]
    vectors: Float[Tensor, "pairs params"]
    residuals: Float64[Tensor, " pairs"]
    products: int
    converged: bool


class RitzBasis:
    """An orthonormal basis V `[m, p]`, the images H V, and T = V^T H V.

    Args:
        operator: the matrix H, by its products.
        capacity: the most vectors to hold; two blocks `[capacity, p]` are allocated.
        generator: for directions where the space is invariant.
    """

    def __init__(self, operator: Operator, capacity: int, generator: torch.Generator) -> None:
        self.operator = operator
        self.generator = generator
        self._basis = operator.like.new_empty(capacity, operator.size)
        self._images = operator.like.new_empty(capacity, operator.size)
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
        first = self.size
        for direction in directions[: len(self._basis) - first]:
            self._basis[self.size] = self._orthonormal(direction)
            self.size += 1
        self._multiply(first)

    def lanczos_direction(self) -> tuple[Float[Tensor, " params"], float]:
        """What H times the newest vector has outside of the space, of unit length, and its length.

        The length is 0 where the space is invariant, and the direction then random; zero where
        there is no other.
        """
        newest = self.size - 1
        if self.size == self.operator.size:
            return torch.zeros_like(self._images[newest]), 0.0
        direction = self._outside
        if direction is None:
            coefficients = self._projected[: self.size, newest].to(self._basis)
            direction = self._images[newest] - coefficients @ self.basis
            # Once more for the rounding errors of what was removed.
            direction -= (self.basis @ direction) @ self.basis
        length = float(torch.linalg.vector_norm(direction))
        if length <= _ROUNDING * torch.finfo(direction.dtype).eps * self.scale:
            return self._orthonormal(self.operator.random(1, self.generator)[0]), 0.0
        return direction / length, length

    def append(self, direction: Float[Tensor, " params"]) -> None:
        """Add a unit vector that is orthogonal to the basis already.

        The newest two vectors come first, as they are all that H times a Lanczos vector meets:
        the rest of the basis then has rounding errors to remove, for which once is enough.
        """
        self._basis[self.size] = direction
        self.size += 1
        image = self.operator.multiply(self._basis[self.size - 1 : self.size])[0]
        self.products += 1
        self._images[self.size - 1] = image
        newest = self.basis[-2:]
        near = newest @ image
        outside = image - near @ newest
        column = self.basis @ outside
        outside -= column @ self.basis
        removed, left = torch.linalg.vector_norm(column), torch.linalg.vector_norm(outside)
        column[-2:] += near
        if removed > _LOST * left:
            more = self.basis @ outside
            outside -= more @ self.basis
            column += more
        self._outside = outside
        self._set_columns(self.size - 1, column[:, None])

    def _multiply(self, first: int) -> None:
        added = self._basis[first : self.size]
        images = self.operator.multiply(added)
        self.products += len(added)
        self._images[first : self.size] = images
        self._outside = None
        self._set_columns(first, self.basis @ images.T)

    def _set_columns(self, first: int, columns: Float[Tensor, "m new"]) -> None:
        wide = columns.double().cpu()
        self._projected[: self.size, first : self.size] = wide
        self._projected[first : self.size, : self.size] = wide.T

    def _orthonormal(self, direction: Tensor) -> Tensor:
        while True:
            length = torch.linalg.vector_norm(direction)
            if length > 0:
                direction = direction / length
                for _ in range(2):  # once leaves the rounding errors of what it removes
                    direction = direction - (self.basis @ direction) @ self.basis
                    left = torch.linalg.vector_norm(direction)
                    direction = direction / left
                    if left > _KEPT:
                        return direction
                    if left < _ROUNDING * torch.finfo(direction.dtype).eps:
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
        rows = coordinates.to(self.basis)
        return rows @ self._images[: self.size] - (rows * values[:, None].to(rows)) @ self.basis

    def restart(self, keep: int) -> None:
        """Go on with the `keep` largest Ritz vectors alone."""
        values, coordinates = self.ritz()
        rows = coordinates[:keep].to(self.basis)
        basis, images = rows @ self.basis, rows @ self._images[: self.size]
        self.size = keep
        self._basis[:keep], self._images[:keep] = basis, images
        self._projected[:keep, :keep] = torch.diag(values[:keep])
        self._outside = None


def largest_pairs(
    operator: Operator,
    k: int,
    *,
    rtol: float,
    start: Float[Tensor, "starts params"] | None,
    max_products: int,
    generator: torch.Generator,
) -> RitzPairs:
    """The k algebraically largest eigenpairs, to residuals ||H y - theta y|| <= rtol |theta|.

    Eigenvalues below rtol times the largest magnitude seen count as that large.
    """
    capacity = min(operator.size, _SMALL if operator.size <= _SMALL else max(4 * k + 10, 40))
    space = RitzBasis(operator, capacity, generator)
    start = operator.random(1, generator) if start is None else start
    goal = _Goal(k, rtol, max_products)
    with operator.fixed():
        space.extend(start[: max(1, max_products)])
        converged = _lanczos(space, goal) if space.size == 1 else _expand(space, goal)
        while converged and k > 1 and space.size < operator.size:
            before = space.ritz()[0][:k]
            if not _follow_random(space, goal, float(before[-1])):
                break
            now = space.ritz()[0][:k]
            if ((now - before).abs() <= rtol * now.abs() + space.scale * rtol**2).all():
                break
            converged = _expand(space, goal)
    values, coordinates = (part[:k] for part in space.ritz())
    residuals = torch.linalg.vector_norm(space.residuals(values, coordinates), dim=1)
    vectors = space.vectors(coordinates)
    return RitzPairs(values, vectors, residuals.double().cpu(), space.products, converged)


@dataclass(frozen=True)
class _Goal:
    """k pairs to a relative residual, within so many products."""

    k: int
    rtol: float
    max_products: int

    def tolerance(self, space: RitzBasis, value: float) -> float:
        """The residual at which a pair has converged."""
        eps = torch.finfo(space.basis.dtype).eps
        return max(self.rtol * abs(value), space.scale * max(self.rtol**2, _ROUNDING * eps))

    def make_room(self, space: RitzBasis) -> bool:
        """Restart if the basis is full; False if there are no products left, or no directions."""
        if space.products >= self.max_products or space.size == space.operator.size:
            return False
        if space.full:
            space.restart(keep=min(space.size - 1, self.k + (space.size - self.k) // 2))
        return True


def _lanczos(space: RitzBasis, goal: _Goal) -> bool:
    """Grow a Krylov space from one vector until the wanted pairs have converged.

    The residual of every Ritz pair lies along the next Lanczos vector, also after a restart.
    """
    while True:
        values, coordinates = space.ritz()
        direction, length = space.lanczos_direction()
        wanted = min(goal.k, space.size)
        met = all(
            length * abs(float(coordinates[i, -1])) <= goal.tolerance(space, float(values[i]))
            for i in range(wanted)
        )
        if met and wanted == goal.k and _first_unconverged(space, goal)[0] == goal.k:
            return True
        if not goal.make_room(space):
            return False
        space.append(direction)


def _expand(space: RitzBasis, goal: _Goal) -> bool:
    """Grow any space by the residuals of the wanted pairs until these have converged."""
    while True:
        index, direction = _first_unconverged(space, goal)
        if index == goal.k:
            return True
        if not goal.make_room(space):
            return False
        if direction is None:  # fewer vectors than pairs, and all exact
            direction = space.operator.random(1, space.generator)[0]
        space.extend(direction[None])


def _follow_random(space: RitzBasis, goal: _Goal, least: float) -> bool:
    """Add a Krylov space of a random direction, until all eigenvalues from `least` up are seen.

    False if that was not possible in full.
    """
    if not goal.make_room(space):
        return False
    first = space.size
    space.extend(space.operator.random(1, space.generator))
    for _ in range(_VERIFY - 1):
        # A restart would drop the direction that is being followed.
        if space.full or space.products >= goal.max_products:
            break
        direction, length = space.lanczos_direction()
        # In a random direction, p times the share of an eigenvector is the square of a standard
        # normal number, which is below s with probability sqrt(2 s / pi) at most.
        share = largest_share(space.projected[first:, first:], length, least)
        if math.sqrt(2 / math.pi * space.operator.size * share) <= _MISSED:
            break
        space.append(direction)
    return True


def largest_share(projected: Float64[Tensor, "m m"], length: float, value: float) -> float:
    """The most that eigenvectors of an eigenvalue from `value` up can hold of a Lanczos start.

    As part of its squared length, from the matrix T of m steps and the last residual's length:
    1 / sum_{j <= m} p_j(value)^2, the Christoffel function, with the orthonormal polynomials p_j of
    the start's spectral measure. 1 unless `value` is above all Ritz values, where the p_j grow.
    """
    if value <= float(torch.linalg.eigvalsh(projected)[-1]):
        return 1.0
    diagonal = projected.diagonal().tolist()
    beside = [*projected.diagonal(1).tolist(), length]
    last, now, total, coupling = 0.0, 1.0, 1.0, 0.0
    for centre, following in zip(diagonal, beside, strict=True):
        if following == 0:  # an invariant space, without that eigenvalue
            return 0.0
        last, now = now, ((value - centre) * now - coupling * last) / following
        total, coupling = total + now**2, following
    return 1 / total


def _first_unconverged(space: RitzBasis, goal: _Goal) -> tuple[int, Tensor | None]:
    """The first wanted pair whose residual is too large, with it; or how many have converged."""
    values, coordinates = space.ritz()
    wanted = min(goal.k, space.size)
    for start in range(0, wanted, _TOGETHER):
        pairs = slice(start, min(start + _TOGETHER, wanted))
        residuals = space.residuals(values[pairs], coordinates[pairs])
        lengths = torch.linalg.vector_norm(residuals, dim=1).tolist()
        for index, length in enumerate(lengths, start):
            if length > goal.tolerance(space, float(values[index])):
                return index, residuals[index - start]
    return wanted, None


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Gauss quadrature of the spectral measure of each probe: nodes and weights `[probes, steps]`.

    The weights of a probe sum to one.
    """

    nodes: Float64[Tensor, "probes steps"]
    weights: Float64[Tensor, "probes steps"]
    products: int


def lanczos_quadrature(
    operator: Operator, probes: Float[Tensor, "probes params"], steps: int
) -> Quadrature:
    """Lanczos with full reorthogonalisation from every probe at once, one block product a step."""
    count, size = probes.shape
    basis = probes.new_zeros(count, steps, size)
    diagonal = torch.zeros(count, steps, dtype=torch.float64)
    off_diagonal = torch.zeros(count, steps, dtype=torch.float64)
    current = probes / torch.linalg.vector_norm(probes, dim=1, keepdim=True)
    eps = torch.finfo(probes.dtype).eps
    products = 0
    for step in range(steps):
        basis[:, step] = current
        image = operator.multiply(current)
        products += count
        diagonal[:, step] = (image * current).sum(1).double()
        known = basis[:, : step + 1]
        for _ in range(2):
            image = image - (known @ image[:, :, None]).transpose(1, 2).matmul(known)[:, 0]
        length = torch.linalg.vector_norm(image, dim=1).double()
        scale = diagonal[:, : step + 1].abs().amax(1) + off_diagonal[:, : step + 1].amax(1)
        # An invariant subspace: the nodes so far are exact, and what follows has no weight.
        length = length.where(length > _ROUNDING * eps * scale, 0.0)
        if step + 1 == steps or not (length > 0).any():
            break
        off_diagonal[:, step] = length
        current = (image / length[:, None].clamp(min=1e-300)).to(probes) * (length > 0)[:, None]
    used = step + 1
    matrices = torch.diag_embed(diagonal[:, :used])
    sides = torch.diag_embed(off_diagonal[:, : used - 1], offset=1)
    nodes, vectors = torch.linalg.eigh(matrices + sides + sides.transpose(1, 2))
    return Quadrature(nodes, vectors[:, 0].square(), products)
