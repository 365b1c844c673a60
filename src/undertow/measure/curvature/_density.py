"""The spectral density of a curvature matrix by stochastic Lanczos quadrature, with error bands.

Each random probe's spectral measure, whose expectation is the density, by Gauss quadrature (Ubaru,
Chen and Saad, 2017; Ghorbani et al., arXiv 1901.10159). The same Krylov run gives the trace and the
extreme eigenvalues.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from undertow.measure._arguments import check_rtol, or_new
from undertow.measure.curvature._krylov import (
    Curvature,
    affordable,
    curvature_operator,
)
from undertow.measure.curvature._quadrature import Quadrature, lanczos_quadrature
from undertow.measure.curvature._trace import Estimate
from undertow.objective import Objective, outside_inference_mode, whole_number

# Probes together in one block, as far as memory is meant for their Krylov bases.
_BLOCK = 8
_POINTS = 1024
# The kernel is at least this share of the distance between nodes, as it is where the mass lies: a
# narrower one shows them one by one, and no error bar tells.
_SPACINGS = 0.7
# The grid reaches so many kernel widths beyond the extreme nodes.
_MARGIN = 4.0


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """The density of a matrix's eigenvalues, smoothed by a normal kernel; its integral is one.

    Attributes:
        grid: points, ascending.
        density: at the points.
        stderr: the density's standard error over probes; a 95% band is two of these wide each way.
        nodes: Ritz values of each probe, `[probes, steps]`.
        weights: their shares of that probe's measure, which sum to one.
        width: standard deviation of the kernel.
        trace: of the matrix, from the same probes.
        largest: the largest Ritz value, a lower bound of the largest eigenvalue.
        smallest: the smallest, an upper bound of the smallest eigenvalue.
        products: matrix-vector products spent.
        converged: whether the integral of the standard error is within the tolerance.
    """

    grid: Float64[Tensor, " points"]
    density: Float64[Tensor, " points"]
    stderr: Float64[Tensor, " points"]
    nodes: Float64[Tensor, "probes steps"]
    weights: Float64[Tensor, "probes steps"]
    width: float
    trace: Estimate
    largest: float
    smallest: float
    products: int
    converged: bool

    def __repr__(self) -> str:
        state = "converged" if self.converged else "NOT converged"
        error = float(torch.trapezoid(self.stderr, self.grid))
        return (
            f"Spectral density from {self.smallest:.4g} to {self.largest:.4g}, with standard error "
            f"{error:.1%} of its mass, {state} after {self.products} products of {len(self.nodes)} "
            "probes; batch-norm statistics frozen, dropout off."
        )


@outside_inference_mode
def spectral_density(
    objective: Objective,
    rtol: float = 0.05,
    *,
    curvature: Curvature = "hessian",
    steps: int = 40,
    width: float | None = None,
    max_products: int = 4000,
    generator: torch.Generator | None = None,
) -> SpectralDensity:
    """The density of the eigenvalues of the curvature of L.

    Probes are added until the standard error of the density, integrated, is within `rtol`.

    Args:
        objective: what to differentiate.
        rtol: of the integrated standard error; the density integrates to one.
        curvature: "hessian" or "ggn".
        steps: Lanczos steps per probe, which give a probe's first 2 steps - 1 moments exactly.
        width: standard deviation of the kernel; by default 1% of the range of the Ritz values, or
            as much as so many steps resolve. The error bars say nothing of a narrower one's errors.
        max_products: stop there, not converged.
        generator: for the probes; by default the same on every call.

    Raises:
        TypeError: if `objective` is of another kind, or steps no whole number.
        ValueError: if an argument is out of its range; and as `Objective.hvp`.
    """
    operator = curvature_operator(objective, curvature)
    check_rtol(rtol)
    whole_number("steps", steps, least=2)
    if width is not None and not (0 < width < math.inf):
        raise ValueError(f"width must be above 0, got {width!r}")
    steps = min(steps, operator.size)
    if max_products < 2 * steps:
        raise ValueError(f"max_products must allow two probes of {steps} steps, got {max_products}")
    generator = or_new(generator)
    block = max(1, affordable(operator, _BLOCK * steps, 1) // steps)
    found: list[Quadrature] = []
    products = 0
    while True:
        count = min(block, (max_products - products) // steps)
        if count == 0:
            break
        with operator.fixed():
            found.append(lanczos_quadrature(operator, operator.random(count, generator), steps))
        products += found[-1].products
        if sum(len(quadrature.nodes) for quadrature in found) < 2:
            continue  # one probe has no error bar
        exact = found[-1].nodes.shape[1] < steps or steps == operator.size
        least = 0.0 if exact else _SPACINGS * _spacing(found)
        result = _density(found, operator.size, products, width, rtol, least)
        if result.converged:
            break
    return result


def _density(
    found: list[Quadrature],
    size: int,
    products: int,
    width: float | None,
    rtol: float,
    least_width: float,
) -> SpectralDensity:
    from scipy import stats  # loads slowly

    longest = max(quadrature.nodes.shape[1] for quadrature in found)
    # A shorter run found an invariant subspace: nodes of no weight make it as long.
    nodes = torch.cat([_padded(q.nodes, longest, repeat=True) for q in found])
    weights = torch.cat([_padded(q.weights, longest, repeat=False) for q in found])
    counted = nodes[weights > 1e-14]
    low, high = float(counted.min()), float(counted.max())
    spread = high - low
    if width is None:
        # A multiple of the identity has no spread but that of rounding.
        width = 0.01 * max(spread, 1e-6 * max(abs(low), abs(high)), 1e-30)
        width = max(width, least_width)
    grid = torch.linspace(
        low - _MARGIN * width, high + _MARGIN * width, _POINTS, dtype=torch.float64
    )
    curves = torch.stack(
        [_smoothed(n, w, grid, width) for n, w in zip(nodes, weights, strict=True)]
    )
    probes = len(nodes)
    density, stderr = curves.mean(0), curves.std(0) / math.sqrt(probes)
    samples = size * (nodes * weights).sum(1)
    mean, error = float(samples.mean()), float(samples.std()) / math.sqrt(probes)
    half = float(stats.t.ppf(0.975, probes - 1)) * error
    trace = Estimate(mean, error, products, error <= rtol * abs(mean), (mean - half, mean + half))
    converged = float(torch.trapezoid(stderr, grid)) <= rtol
    return SpectralDensity(
        grid, density, stderr, nodes, weights, width, trace, high, low, products, converged
    )


def _spacing(found: list[Quadrature]) -> float:
    """The median distance between neighbouring nodes, by their weight."""
    gaps = torch.cat([(q.nodes[:, 2:] - q.nodes[:, :-2]).flatten() / 2 for q in found])
    shares = torch.cat([q.weights[:, 1:-1].flatten() for q in found])
    if len(gaps) == 0:
        return 0.0
    gaps, order = gaps.sort()
    below = shares[order].cumsum(0)
    return float(gaps[torch.searchsorted(below, below[-1] / 2).clamp(max=len(gaps) - 1)])


def _padded(values: Tensor, length: int, *, repeat: bool) -> Tensor:
    missing = length - values.shape[1]
    last = values[:, -1:] if repeat else torch.zeros_like(values[:, -1:])
    return torch.cat([values, last.expand(-1, missing)], dim=1)


def _smoothed(nodes: Tensor, weights: Tensor, grid: Tensor, width: float) -> Tensor:
    shape = torch.exp(-0.5 * ((grid[:, None] - nodes) / width).square())
    return shape @ weights / (width * math.sqrt(2 * math.pi))
