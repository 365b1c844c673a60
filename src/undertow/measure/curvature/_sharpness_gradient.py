"""How sharpness changes along minimisers on the sphere: the gradient of log lambda_1 there.

Its length s sets how fast descent with weight decay flattens a scale-invariant network at the edge
of stability (arXiv 2206.07085; `predict.sharpness_speed_limit`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.measure._arguments import check_rtol, or_new
from undertow.measure._kinds import check_objective
from undertow.measure.curvature._kinks import watching_for_kinks
from undertow.measure.curvature._krylov import Operator
from undertow.measure.curvature._lanczos import largest_pairs
from undertow.measure.curvature._sharpness import block_norms
from undertow.objective import (
    CurvatureProducts,
    Objective,
    gradient,
    outside_inference_mode,
    whole_number,
)

# Differences of Hessian products in units of the sphere's radius, of fourth order: small beside the
# norm of one row of a wide layer, in which an eigenvector may lie.
_DIFFERENCE = 1e-4
# By how much differences over twice the distance may differ where there is a third derivative.
_SMOOTH = 0.05
# ||grad L|| / lambda_1 on the sphere, about the distance to the minimisers across.
_AT_REST = 0.03
# Residual of eigenpairs, relative: far below the distance to the next eigenvalue, as it must be.
_EIGENPAIRS = 1e-6

Block = Float64[Tensor, "rows params"]


@dataclass(frozen=True, eq=False, repr=False)
class SharpnessGradient:
    """The gradients of the k largest eigenvalues on the sphere, along the minimisers.

    Attributes:
        slope: s = ||grad_Gamma log lambda_1||, of the largest eigenvalue by itself.
        error: of slope^2, and of any entry of `gram`, at most: what is left of the projection.
        gram: the inner products of the gradients of u_i^T H u_j / lambda_1 for pairs i <= j, row by
            row of the upper triangle, those of i < j times sqrt(2). `[[slope^2]]` for k = 1.
        eigenvalues: of the spherical Hessian, largest first.
        gap: (lambda_k - lambda_{k+1}) / lambda_1: a small one says that k + 1 should be taken.
        distance: ||grad L|| / lambda_1 on the sphere: how far these are no minimisers.
        tolerance: as given.
        products: Hessian and Gauss-Newton products spent.
        converged: whether eigenpairs and projections met their tolerances.
    """

    slope: float
    error: float
    gram: Float64[Tensor, "pairs pairs"]
    eigenvalues: Float64[Tensor, " k"]
    gap: float
    distance: float
    tolerance: float
    products: int
    converged: bool

    def __repr__(self) -> str:
        count = len(self.eigenvalues)
        others = f", of the first of {count} eigenvalues" if count > 1 else ""
        return (
            f"Sharpness gradient: |grad log lambda_1| = {self.slope:.6g} along the minimisers"
            f"{others} (its square within {self.error:.2g}), lambda_1 = "
            f"{float(self.eigenvalues[0]):.6g}, gap {self.gap:.2g}, "
            f"{'converged' if self.converged else 'NOT converged'} after {self.products} products."
        )

    def as_dict(self) -> dict[str, Any]:
        """All fields, tensors as lists."""
        found = dict(vars(self))
        return found | {"gram": self.gram.tolist(), "eigenvalues": self.eigenvalues.tolist()}


@outside_inference_mode
def sharpness_gradient(
    objective: Objective,
    k: int = 1,
    *,
    tolerance: float = 1e-4,
    rtol: float = 1e-3,
    max_products: int = 20_000,
    generator: torch.Generator | None = None,
) -> SharpnessGradient:
    """The gradient of log lambda_1 on the unit sphere, along the minimisers (arXiv 2206.07085).

    The gradient of u_i^T H u_j at fixed eigenvectors is the third derivative of L along both, taken
    by differences of Hessian products (1e-8 or so, relatively); the part along theta goes, since
    lambda_1(c theta) = lambda_1(theta) / c^2 is what the sphere leaves out; and what remains is
    projected off the directions in which the loss is curved. Of the Gauss-Newton matrix J, which at
    a minimiser with loss zero is the Hessian, the filter is (1 + J / (tolerance lambda_1))^-1: one
    along the flat directions, zero along curved ones. The inner products are those of filtered with
    plain gradients: s^2 is what moving at the filtered gradient changes log lambda_1 by. It is
    solved by conjugate gradients, whose residuals bound the error.

    Everything is in float64, whatever the module's type. Nothing is moved.

    Args:
        objective: its parameters must all be scale-invariant together, L(c w) = L(w), and near a
            minimum. Of a network that trains at the edge, that is a copy whose oscillation has been
            let settle: some hundred steps at a third of the rate, without decay.
        k: how many of the largest eigenvalues, those that are at the edge, lr lambda / ||w||^2 = 2.
        tolerance: directions of less than this times lambda_1 count as flat. In training for a time
            of 1 / (lr weight_decay) steps those of more than lr weight_decay / 2 are not.
        rtol: of the inner products, of the projection.
        max_products: stop there, not converged.
        generator: for the start of the search for eigenvectors; by default the same on every call.

    Raises:
        TypeError: if `objective` is none, or k no whole number.
        ValueError: if the loss depends on ||w||, this is not near a minimum, the largest eigenvalue
            is not positive, a third derivative is not there, the network has kinks (ReLU however
            it is written, ELU, max pools, Huber's loss, comparisons), or an argument is out of its
            range; and as `Objective.hvp`.
    """
    check_objective(objective)
    whole_number("k", k, least=1)
    if k >= objective.num_params:
        raise ValueError(f"k must be below the {objective.num_params} parameters, got {k}")
    check_rtol(tolerance, "tolerance")
    check_rtol(rtol)
    whole_number("max_products", max_products, least=1)
    block_norms(objective)  # is scale-invariant
    sphere = _Sphere.of(objective)
    with watching_for_kinks() as kinks:
        slope = sphere.gradient()
    if kinks:
        raise ValueError(
            f"the sharpness of a network with {', '.join(sorted(kinks))} changes at kinks, "
            "which derivatives do not see; take a smooth activation, such as GELU"
        )
    pairs = largest_pairs(
        sphere.operator(),
        k + 1,
        rtol=_EIGENPAIRS,
        start=None,
        max_products=max_products,
        generator=or_new(generator),
    )
    values, top = pairs.values, float(pairs.values[0])
    if not top > 0:
        raise ValueError(f"the largest eigenvalue is {top:.3g}: there is no sharpness to change")
    distance = float(slope.norm()) / top
    if distance > _AT_REST:
        raise ValueError(
            f"objective is not near a minimum: on the sphere ||grad L|| is {distance:.3g} x "
            f"lambda_1, above {_AT_REST:g}. Let a copy settle first: some hundred steps of "
            "gradient descent at a third of the rate, without weight decay"
        )
    changes = sphere.changes(pairs.vectors[:k]) / top
    tangent = changes - (changes @ sphere.point)[:, None] * sphere.point
    with sphere.products.fixed():
        gram, error, spent, settled = _filtered_products(
            sphere.gauss_newton, tangent, tolerance * top, rtol, max_products - pairs.products
        )
    return SharpnessGradient(
        slope=max(float(gram[0, 0]), 0.0) ** 0.5,
        error=error,
        gram=gram,
        eigenvalues=values[:k],
        gap=float(values[k - 1] - values[k]) / top,
        distance=distance,
        tolerance=tolerance,
        products=pairs.products + 4 * k * k + spent,
        converged=pairs.converged and settled,
    )


@dataclass(frozen=True)
class _Sphere:
    """The objective in float64 at theta = w / ||w||, with parameters of its own."""

    products: CurvatureProducts
    move: Callable[[Tensor], None]
    gradient: Callable[[], Tensor]
    point: Float64[Tensor, " params"]

    @classmethod
    def of(cls, objective: Objective) -> _Sphere:
        risk = objective.risk.at(torch.float64).held()
        point = risk.theta()
        point = point / point.norm()
        risk.move(point)
        return cls(CurvatureProducts(risk), risk.move, lambda: gradient(risk), point)

    def operator(self) -> Operator:
        """The Hessian."""
        return Operator(self._hessian, len(self.point), self.point, self.products.fixed)

    def _hessian(self, block: Block) -> Block:
        return self.products.product("hessian", block)

    def gauss_newton(self, block: Block) -> Block:
        return self.products.product("ggn", block)

    def changes(self, vectors: Block) -> Block:
        """The gradients of u_i^T H u_j, i <= j, those of i < j times sqrt(2).

        Raises:
            ValueError: if they depend on how far the Hessian products are apart.
        """
        rows = []
        for place, vector in enumerate(vectors):
            near, far = (self._difference(vector, vectors, n * _DIFFERENCE) for n in (1, 2))
            off = float((near - far).norm()) / max(float(near.norm()), torch.finfo(near.dtype).tiny)
            if off > _SMOOTH:
                raise ValueError(
                    "the loss has no third derivative here that differences agree on (they differ "
                    f"by {off:.2g}); take a smooth activation, such as GELU"
                )
            weights = torch.full((len(vectors) - place, 1), 2**0.5).to(near)
            weights[0] = 1.0
            rows.append((4 * near - far)[place:] / 3 * weights)
        self.move(self.point)
        return torch.cat(rows)

    def _difference(self, along: Tensor, vectors: Block, distance: float) -> Block:
        found = []
        for sign in (1, -1):
            self.move(self.point + sign * distance * along)
            found.append(self._hessian(vectors))
        return (found[0] - found[1]) / (2 * distance)


def _filtered_products(
    matrix: Callable[[Block], Block], rows: Block, shift: float, rtol: float, most: int
) -> tuple[Float64[Tensor, "rows rows"], float, int, bool]:
    """<b_i, shift (J + shift)^-1 b_j>, its error, products spent and whether it is as exact.

    With residuals r the entries b_i z_j + z_i r_j are off by r_i (J + shift)^-1 r_j at most.
    """
    solved, left = torch.zeros_like(rows), rows.clone()  # z times shift, and r
    direction, squares, spent = left.clone(), left.square().sum(1), 0
    floor = torch.finfo(rows.dtype).eps * squares.max()
    while True:
        wanted = (rtol * (solved * rows).sum(1).max()).clamp_min(floor)
        active = (squares > wanted).nonzero()[:, 0]
        if not len(active) or spent + len(active) > most:
            break
        step = direction[active]
        image = step + matrix(step) / shift
        spent += len(active)
        length = (squares[active] / (step * image).sum(1))[:, None]
        solved[active] += length * step
        left[active] -= length * image
        before, squares[active] = squares[active], left[active].square().sum(1)
        direction[active] = left[active] + (squares[active] / before)[:, None] * step
    gram = rows @ solved.T + solved @ left.T
    return (gram + gram.T) / 2, float(squares.max()), spent, not len(active)
