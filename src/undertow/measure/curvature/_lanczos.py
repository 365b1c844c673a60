"""The largest eigenpairs of an operator, by Lanczos with thick restarts (Wu and Simon, 2000).

From one start vector it is Lanczos; any warm start is expanded by the residuals of its Ritz pairs.
Residuals are of the pairs themselves, not of a recurrence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.measure._lengths import lengths
from undertow.measure.curvature._krylov import ROUNDING, Operator, RitzBasis, affordable
from undertow.measure.curvature._orthogonality import Orthogonality

# Matrices up to this size need no restart.
_SMALL = 256
# Pairs whose residuals are computed together.
_TOGETHER = 8
# From this length on, vectors are orthogonalised only where the loss of orthogonality that can be
# foreseen would be more than so much of a residual's tolerance.
_FORESEEN = 2**14
_ORTHOGONAL = 0.1
# However little memory there is, so many more vectors than pairs are held.
_LEAST = 5
# After k > 1 pairs have converged, a random direction is followed for at most so many products: one
# Krylov space holds a single vector of each eigenspace. Fewer do once an eigenvector that is still
# missing would need a random component so small that this is its probability.
_VERIFY = 6
_MISSED = 0.01


@dataclass(frozen=True, eq=False)
class RitzPairs:
    """Approximate eigenpairs, largest first, and what they cost."""

    values: Float64[Tensor, " pairs"]
    vectors: Float[Tensor, "pairs params"]
    residuals: Float64[Tensor, " pairs"]
    products: int
    converged: bool


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
    wanted = _SMALL if operator.size <= _SMALL else max(4 * k + 10, 40)
    capacity = affordable(operator, min(wanted, operator.size), k + _LEAST)
    space = RitzBasis(operator, capacity, generator)
    start = operator.random(1, generator) if start is None else start[: max(1, max_products)]
    goal = _Goal(k, rtol, max_products)
    with operator.fixed():
        if len(start) == 1:
            watch = goal.watch(operator)
            space.append(space.orthonormal(start[0]), watch)
            found = _lanczos(space, goal, watch)
        else:
            space.extend(start)
            found = _expand(space, goal)
        while found.converged and k > 1 and space.size < operator.size:
            missing = _missing(space, goal, found)
            if missing is None or not goal.make_room(space):
                break
            space.adopt(*missing)
            found = _expand(space, goal)
    return replace(found, products=space.products)


@dataclass(frozen=True)
class _Goal:
    """k pairs to a relative residual, within so many products."""

    k: int
    rtol: float
    max_products: int

    def tolerance(self, space: RitzBasis, value: float) -> float:
        """The residual at which a pair has converged."""
        eps = space.operator.rounding
        return max(self.rtol * abs(value), space.scale * max(self.rtol**2, ROUNDING * eps))

    def watch(self, operator: Operator) -> Orthogonality | None:
        """For a Lanczos run from one vector, if that saves time and is exact enough."""
        if operator.size < _FORESEEN or self.k > _TOGETHER:
            return None
        rounding = operator.rounding
        return Orthogonality(min(math.sqrt(rounding), _ORTHOGONAL * self.rtol), rounding)

    def make_room(self, space: RitzBasis) -> bool:
        """Restart if the basis is full; False if there are no products left, or no directions."""
        if space.products >= self.max_products or space.size == space.operator.size:
            return False
        if space.full:
            space.restart(keep=min(space.size - 1, self.k + (space.size - self.k) // 2))
        return True


def _lanczos(space: RitzBasis, goal: _Goal, watch: Orthogonality | None) -> RitzPairs:
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
        if met and wanted == goal.k:
            found = _pairs(space, goal)
            if found.converged:
                return found
        full = space.full
        if not goal.make_room(space):
            return _pairs(space, goal)
        if full:  # restarted
            watch = None
            direction, _ = space.lanczos_direction()
        space.append(direction, watch)


def _expand(space: RitzBasis, goal: _Goal) -> RitzPairs:
    """Grow any space by the residuals of the wanted pairs until these have converged."""
    while True:
        index, direction = _first_unconverged(space, goal)
        if index == goal.k or not goal.make_room(space):
            return _pairs(space, goal)
        if direction is None:  # fewer vectors than pairs, and all exact
            direction = space.operator.random(1, space.generator)[0]
        space.extend(direction[None])


def _pairs(space: RitzBasis, goal: _Goal) -> RitzPairs:
    """The wanted pairs as they are."""
    values, vectors, residuals = space.pairs(space.ritz()[1][: goal.k])
    left = lengths(residuals).cpu()
    converged = len(values) == goal.k and all(
        residual <= goal.tolerance(space, value)
        for value, residual in zip(values.tolist(), left.tolist(), strict=True)
    )
    return RitzPairs(values, vectors, left, space.products, converged)


def _missing(
    space: RitzBasis, goal: _Goal, found: RitzPairs
) -> tuple[Float[Tensor, "n params"], Float[Tensor, "n params"]] | None:
    """Vectors, with images, of eigenvalues that belong among those found; None if there are none.

    Lanczos from a random direction, for the operator without what is known, until it would have
    seen any. An eigenvector that was missed is at right angles to the whole space; taking out no
    more than the pairs found costs less where vectors are long.
    """
    operator = space.operator
    known = space.basis if operator.size < _FORESEEN else found.vectors
    images: list[Tensor] = []

    def beyond(vectors: Tensor) -> Tensor:
        (image,) = operator.multiply(vectors)  # of one that is at right angles to what is known
        images.append(image)
        return (image - (known @ image) @ known)[None]

    room = min(_VERIFY, operator.size - len(known), goal.max_products - space.products)
    if room < 1:
        return None
    probe = RitzBasis(replace(operator, multiply=beyond), room, space.generator)
    probe.scale = space.scale
    least = float(found.values[-1])
    drawn = operator.random(1, space.generator)[0]
    direction = probe.orthonormal(drawn - (known @ drawn) @ known)
    while True:
        probe.append(direction)
        if probe.full:
            break
        direction, length = probe.lanczos_direction()
        # In a random direction, p times the share of an eigenvector is the square of a standard
        # normal number, which is below s with probability sqrt(2 s / pi) at most.
        share = largest_share(probe.projected, length, least)
        if length == 0 or math.sqrt(2 / math.pi * operator.size * share) <= _MISSED:
            break
    space.products += probe.products
    values, coordinates = probe.ritz()
    if float(values[0]) <= least + goal.tolerance(space, least):
        return None
    return probe.vectors(coordinates), coordinates.to(known) @ torch.stack(images)


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
        for index, length in enumerate(lengths(residuals).tolist(), start):
            if length > goal.tolerance(space, float(values[index])):
                return index, residuals[index - start]
    return wanted, None
