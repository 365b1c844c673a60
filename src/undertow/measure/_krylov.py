"""Eigenpairs and quadrature of a symmetric operator that is only known by its products.

Rayleigh-Ritz over a growing orthonormal basis. Expanded by a Ritz pair's residual from one start
vector, it is Lanczos with full reorthogonalisation; it also takes any warm start, and restarts
thick (Wu and Simon, 2000). Residuals are of the pairs themselves, not of a recurrence.
"""

from __future__ import annotations

from collections.abc import Callable
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
# Matrices up to this size need no restart.
_SMALL = 256
# After k > 1 pairs have converged, a random direction is followed for so many products: one
# Krylov space holds a single vector of each eigenspace.
_VERIFY = 6


@dataclass(frozen=True, eq=False)
class Operator:
    """A curvature matrix of an objective, by its products with blocks of directions."""

    multiply: Multiply
    size: int
    like: Tensor

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
    return Operator(multiply, size, multiply(torch.zeros(0, size)))


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
        self._generator = generator
        self._basis = operator.like.new_empty(capacity, operator.size)
        self._images = operator.like.new_empty(capacity, operator.size)
        self._projected = torch.zeros(capacity, capacity, dtype=torch.float64)
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
        added = self._basis[first : self.size]
        images = self.operator.multiply(added)
        self.products += len(added)
        self._images[first : self.size] = images
        columns = (self.basis @ images.T).double().cpu()
        self._projected[: self.size, first : self.size] = columns
        self._projected[first : self.size, : self.size] = columns.T

    def _orthonormal(self, direction: Tensor) -> Tensor:
        while True:
            length = torch.linalg.vector_norm(direction)
            if length > 0:
                direction = direction / length
                for _ in range(2):  # once leaves the rounding errors of what it removes
                    direction = direction - (self.basis @ direction) @ self.basis
                    left = torch.linalg.vector_norm(direction)
                    direction = direction / left
                    if left < _ROUNDING * torch.finfo(direction.dtype).eps:
                        break
                else:
                    return direction
            direction = self.operator.random(1, self._generator)[0]

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

    def last_image(self) -> Float[Tensor, " params"]:
        """H times the newest vector: the next Lanczos direction, before orthogonalisation."""
        return self._images[self.size - 1]

    def restart(self, keep: int) -> None:
        """Go on with the `keep` largest Ritz vectors alone."""
        values, coordinates = self.ritz()
        rows = coordinates[:keep].to(self.basis)
        basis, images = rows @ self.basis, rows @ self._images[: self.size]
        self.size = keep
        self._basis[:keep], self._images[:keep] = basis, images
        self._projected[:keep, :keep] = torch.diag(values[:keep])


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
    space.extend(start[: max(1, max_products)])
    verified, before = 0, torch.zeros(0, dtype=torch.float64)
    while True:
        values, coordinates = space.ritz()
        wanted = min(k, space.size)
        index, direction = _first_unconverged(space, values, coordinates, wanted, rtol)
        complete = index == wanted == k
        if complete and (k == 1 or space.size == operator.size):
            break
        if complete:
            if verified and _unchanged(before, values[:k], rtol):
                verified += 1
            else:
                verified, before = 1, values[:k].clone()
            if verified > _VERIFY:
                break
            direction = (
                operator.random(1, generator)[0] if verified == 1 else space.last_image().clone()
            )
        if space.products >= max_products or space.size == operator.size:
            break
        if direction is None:  # fewer directions than pairs, and all exact
            direction = operator.random(1, generator)[0]
        if space.full:
            space.restart(keep=min(space.size - 1, k + (space.size - k) // 2))
        space.extend(direction[None])
    values, coordinates = values[:wanted], coordinates[:wanted]
    residuals = torch.linalg.vector_norm(space.residuals(values, coordinates), dim=1).double().cpu()
    return RitzPairs(
        values, space.vectors(coordinates), residuals, space.products, index == wanted == k
    )


def _first_unconverged(
    space: RitzBasis, values: Tensor, coordinates: Tensor, wanted: int, rtol: float
) -> tuple[int, Tensor | None]:
    """The first pair whose residual is too large, and the residual; `wanted` if there is none."""
    floor = space.scale * max(rtol**2, _ROUNDING * torch.finfo(space.basis.dtype).eps)
    for index in range(wanted):
        pair = slice(index, index + 1)
        residual = space.residuals(values[pair], coordinates[pair])[0]
        if torch.linalg.vector_norm(residual) > max(rtol * abs(float(values[index])), floor):
            return index, residual
    return wanted, None


def _unchanged(before: Tensor, now: Tensor, rtol: float) -> bool:
    return bool(((now - before).abs() <= rtol * now.abs().clamp(min=1e-300)).all())


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
