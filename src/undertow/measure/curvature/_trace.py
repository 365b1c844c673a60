"""The trace of a curvature matrix: Hutchinson's estimator, stopped on its standard error.

z^T H z has the expectation tr(H) for random signs z. With any orthonormal V,
tr(H) = tr(V^T H V) + E[w^T H w], w = z - V V^T z, which has less variance where V spans the large
eigenvalues; it is used where the products that find V are few beside those that remain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from undertow.measure._arguments import check_rtol, or_new
from undertow.measure._lengths import inners
from undertow.measure.curvature._krylov import (
    Curvature,
    Operator,
    RitzBasis,
    affordable,
    curvature_operator,
)
from undertow.measure.curvature._stopping import FIRST, half_width, still_wanted
from undertow.objective import Objective, outside_inference_mode

# Rounding errors that an interval allows for, in units of the trace's.
_ROUNDING = 10.0
# A look takes at most this many probes at once, as far as memory is meant for.
_BLOCK = 16
# Deflation may spend this share of the products that remain without it, and no fewer than so many.
_DEFLATION_SHARE = 0.095
_DEFLATION_LEAST = 5
_DEFLATION_MOST = 60


@dataclass(frozen=True)
class Estimate:
    """A random estimate of a number.

    Attributes:
        value: the estimate.
        stderr: its standard error; 0 where it is exact.
        products: matrix-vector products spent.
        converged: whether the standard error is within the tolerance.
        interval: a 95% interval, by Student's t, a little wider for having stopped on the error.
        deflated: dimension of the subspace on which the trace is exact.
        method: "hutchinson" or "exact".
    """

    value: float
    stderr: float
    products: int
    converged: bool
    interval: tuple[float, float]
    deflated: int = 0
    method: str = "hutchinson"

    def __repr__(self) -> str:
        state = "converged" if self.converged else "NOT converged"
        return (
            f"{self.value:.6g} with standard error {self.stderr:.2g} (95% interval "
            f"{self.interval[0]:.6g} to {self.interval[1]:.6g}), {state} after {self.products} "
            "products."
        )


@outside_inference_mode
def hessian_trace(
    objective: Objective,
    rtol: float = 0.05,
    *,
    curvature: Curvature = "hessian",
    max_products: int = 2000,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The trace of the Hessian of L, or of its Gauss-Newton matrix, to a standard error.

    For "ggn" and few outputs it is exact, from the per-sample gradients of each output.

    Args:
        objective: what to differentiate.
        rtol: of the standard error, relative to the trace.
        curvature: "hessian" or "ggn".
        max_products: stop there, not converged, as where a trace is nearly zero.
        generator: for the probes; by default the same on every call.

    Raises:
        TypeError: if `objective` is of another kind.
        ValueError: if an argument is out of its range; and as `Objective.hvp`.
    """
    operator = curvature_operator(objective, curvature)
    check_rtol(rtol)
    if max_products < FIRST:
        raise ValueError(f"max_products must be at least {FIRST}, got {max_products!r}")
    generator = or_new(generator)
    if curvature == "ggn":
        exact = objective.ggn_trace()
        if exact is not None:
            value, products = exact
            return Estimate(value, 0.0, products, True, (value, value), method="exact")
    if operator.size <= FIRST:
        every = operator.multiply(torch.eye(operator.size).to(operator.like))
        value = float(every.diagonal().double().sum())
        return Estimate(value, 0.0, operator.size, True, (value, value), method="exact")
    with operator.fixed():
        return hutchinson(operator, rtol, max_products, generator)


def hutchinson(
    operator: Operator, rtol: float, max_products: int, generator: torch.Generator
) -> Estimate:
    """The trace by random signs, deflated where that pays."""
    # Deflation needs the first probes again.
    undecided = affordable(operator, FIRST, 1) == FIRST
    drawn = [_probe(operator, FIRST, generator)] if undecided else []
    samples = inners(*drawn[0]) if undecided else _sampled(operator, FIRST, generator)
    products = FIRST
    space: RitzBasis | None = None
    known = 0.0
    while True:
        count = len(samples)
        mean = float(samples.mean()) + known
        stderr = float(samples.std()) / math.sqrt(count)
        target = rtol * abs(mean)
        room = max_products - products
        if stderr <= target or room <= 0:
            break
        more = still_wanted(count, stderr, target, room)
        steps = min(int(_DEFLATION_SHARE * min(more, room)), _DEFLATION_MOST)
        if undecided and steps >= _DEFLATION_LEAST:
            space = _krylov_space(operator, min(steps, operator.size // 2), generator)
            products += space.products
            known = float(space.projected.diagonal().sum())
            samples = _deflated(space, *drawn[0])
            undecided = False
            continue
        undecided = False
        drawn.clear()
        fresh = max(1, min(more, room, 3 * count))
        samples = torch.cat([samples, _sampled(operator, fresh, generator, space)])
        products += fresh
    half = half_width(stderr, count)
    # Without spread, as where deflation leaves nothing, the error is that of rounding.
    magnitude = float(samples.abs().max())
    if space is not None:
        magnitude += float(space.projected.diagonal().abs().sum())
    half += _ROUNDING * operator.rounding * magnitude
    return Estimate(
        mean,
        stderr,
        products,
        stderr <= target,
        (mean - half, mean + half),
        0 if space is None else space.size,
    )


def _sampled(
    operator: Operator, count: int, generator: torch.Generator, space: RitzBasis | None = None
) -> Float64[Tensor, " count"]:
    """w^T H w of random signs without their part in a space, a block at a time."""
    block = affordable(operator, _BLOCK, 1)
    sizes = [min(block, count - start) for start in range(0, count, block)]
    return torch.cat([inners(*_probe(operator, size, generator, space)) for size in sizes])


def _probe(
    operator: Operator, count: int, generator: torch.Generator, space: RitzBasis | None = None
) -> tuple[Float[Tensor, "count params"], Float[Tensor, "count params"]]:
    """Random signs, without their part in a space, and their images."""
    shape = (count, operator.size)
    drawn = torch.randint(2, shape, generator=generator, device=generator.device, dtype=torch.uint8)
    signs = drawn.to(operator.like).mul_(2).sub_(1)
    if space is not None:
        signs = signs - (signs @ space.basis.T) @ space.basis
    return signs, operator.multiply(signs)


def _krylov_space(operator: Operator, steps: int, generator: torch.Generator) -> RitzBasis:
    space = RitzBasis(operator, steps, generator)
    space.extend(operator.random(1, generator))
    while not space.full:
        space.append(space.lanczos_direction()[0])
    return space


def _deflated(
    space: RitzBasis, probes: Float[Tensor, "n params"], images: Float[Tensor, "n params"]
) -> Float64[Tensor, " n"]:
    """w^T H w of w = z - V V^T z, from z and H z alone."""
    inside = (probes @ space.basis.T).double()
    across = (images @ space.basis.T).double()
    return (
        inners(probes, images)
        - 2 * (inside * across).sum(1)
        + ((inside @ space.projected) * inside).sum(1)
    )
