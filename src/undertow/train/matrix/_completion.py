"""Matrix completion by nuclear norm, with a certificate, and truncation of the spectrum.

The convex answer that implicit bias is compared with. The solver alternates the two proximal maps
(Douglas and Rachford); its dual variable bounds the optimum from below at every step, and the gap
to that bound is what it stops on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from undertow.objective import whole_number
from undertow.train.matrix._matrix_losses import observed_entries

_STEP = 1.0  # of the proximal maps, in units of the observed matrix's spectral norm
_LOOK = 10  # iterations between looks at the gap
_ROUNDING = 1e-5  # a symmetric matrix may be so far from it, relative to its largest entry


@dataclass(frozen=True)
class Completion:
    """A matrix completed by nuclear norm.

    Attributes:
        matrix: `[rows, cols]`.
        nuclear_norm: the sum of its singular values.
        residual: Frobenius norm of what it misses of the observed entries.
        gap: the most by which its objective can exceed the optimum, relative to the optimum.
        iterations: of the solver, one SVD each.
        converged: whether the gap is within `rtol`.
    """

    matrix: Float64[Tensor, "rows cols"] = field(repr=False)
    nuclear_norm: float
    residual: float
    gap: float
    iterations: int
    converged: bool

    def __repr__(self) -> str:
        state = "converged" if self.converged else "NOT converged"
        return (
            f"nuclear norm {self.nuclear_norm:.6g}, missing the observed entries by "
            f"{self.residual:.2g}; {state} with a relative gap of {self.gap:.1g} after "
            f"{self.iterations} iterations."
        )


def nuclear_norm_completion(
    observed: Float[Tensor, "rows cols"],
    mask: Bool[Tensor, "rows cols"],
    *,
    penalty: float = 0.0,
    positive: bool = False,
    rtol: float = 1e-6,
    max_iterations: int = 20_000,
) -> Completion:
    """Minimise 1/2 sum over observed (W_ij - observed_ij)^2 + penalty ||W||_*, or its limit.

    A penalty of 0 is that limit: the least nuclear norm among the matrices that hold the observed
    entries. With a positive penalty it is the fixed point of soft-impute (Mazumder, Hastie and
    Tibshirani 2010): the singular values of W, its observed entries put right, shrunk by `penalty`.

    Args:
        observed: `[rows, cols]`; entries outside the mask are not looked at, and may be NaN.
        mask: which entries are observed.
        penalty: of the nuclear norm.
        positive: among symmetric positive semidefinite matrices only; `observed` and `mask` must
            be symmetric then. At a penalty of 0 there may be none, which never converges.
        rtol: of the duality gap, relative to the optimum.
        max_iterations: stop there, not converged.

    Raises:
        TypeError: if the mask is not boolean, or max_iterations no whole number.
        ValueError: if an argument is out of range, or shapes do not fit.
    """
    known = observed_entries(observed, mask)
    if not (math.isfinite(penalty) and penalty >= 0):
        raise ValueError(f"penalty must be a finite number >= 0, got {penalty}")
    if not 0 < rtol < 1:
        raise ValueError(f"rtol must be between 0 and 1, got {rtol}")
    whole_number("max_iterations", max_iterations, least=1)
    symmetric = known.shape[0] == known.shape[1] and bool((mask == mask.mT).all())
    if positive and not (symmetric and bool((known == known.mT).all())):
        raise ValueError("positive=True needs observed and mask to be symmetric")
    size = float(torch.linalg.matrix_norm(known, 2))
    if size == 0:
        return Completion(torch.zeros_like(known), 0.0, 0.0, 0.0, 0, True)
    step = _STEP * size
    toward = step / (step + penalty)  # how far to the data the first map goes

    state = known.clone()
    for iteration in range(1, max_iterations + 1):
        fitted = torch.where(mask, state + toward * (known - state), state)
        state = state + _shrink(2 * fitted - state, step, positive) - fitted
        if iteration % _LOOK == 0 or iteration == max_iterations:
            fitted = torch.where(mask, state + toward * (known - state), state)
            found = _certify(fitted, (fitted - state) / step, known, mask, penalty, positive)
            if found[1] <= rtol:
                break
    norm, gap, residual = found
    return Completion(fitted, norm, residual, gap, iteration, gap <= rtol)


def _shrink(matrix: Tensor, by: float, positive: bool) -> Tensor:
    """Singular values less `by` (eigenvalues, if positive), none below zero."""
    if positive:
        values, vectors = torch.linalg.eigh(matrix)
        return (vectors * (values - by).clamp_min(0)) @ vectors.T
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left * (values - by).clamp_min(0)) @ right


def _certify(
    matrix: Tensor, dual: Tensor, known: Tensor, mask: Tensor, penalty: float, positive: bool
) -> tuple[float, float, float]:
    """Nuclear norm, relative duality gap and residual.

    For any D on the mask of spectral norm at most 1 (top eigenvalue, if positive),
    <D, observed> - penalty/2 ||D||^2 bounds ||W||_* + ||residual||^2 / (2 penalty) from below.
    """
    if positive:
        eigenvalues = torch.linalg.eigvalsh(matrix)
        norm, outside = float(eigenvalues.sum()), 2 * float((-eigenvalues).clamp_min(0).sum())
        bound = float(torch.linalg.eigvalsh(dual)[-1])
    else:
        norm, outside = float(torch.linalg.matrix_norm(matrix, "nuc")), 0.0
        bound = float(torch.linalg.matrix_norm(dual, 2))
    dual = dual / max(bound, 1.0)
    squares = float(((matrix - known) * mask).square().sum())
    value = norm + (squares / (2 * penalty) if penalty else 0.0)
    below = float((dual * known).sum()) - penalty / 2 * float(dual.square().sum())
    gap = (abs(value - below) + outside) / max(value, below)
    return norm + outside, gap, math.sqrt(squares)


def truncated_svd(
    matrix: Float[Tensor, "rows cols"], rank: int, *, positive: bool = False
) -> Float64[Tensor, "rows cols"]:
    """The nearest matrix of at most this rank in Frobenius norm (Eckart and Young), in float64.

    Args:
        matrix: `[rows, cols]`.
        rank: at least 0.
        positive: the nearest among positive semidefinite matrices; `matrix` must be symmetric.

    Raises:
        TypeError: if `rank` is not a whole number.
        ValueError: if `rank` is negative, or `matrix` is no matrix, or not symmetric.
    """
    whole_number("rank", rank, least=0)
    if matrix.ndim != 2:
        raise ValueError(f"matrix must have two dimensions, got shape {tuple(matrix.shape)}")
    given = matrix.detach().double()
    if not positive:
        left, values, right = torch.linalg.svd(given, full_matrices=False)
        return (left[:, :rank] * values[:rank]) @ right[:rank]
    slack = _ROUNDING * float(given.abs().max())
    if given.shape[0] != given.shape[1] or not bool(((given - given.mT).abs() <= slack).all()):
        raise ValueError("positive=True needs a symmetric matrix")
    values, vectors = torch.linalg.eigh(given)
    kept = values.clamp_min(0) * (torch.arange(len(values)) >= len(values) - rank)
    return (vectors * kept) @ vectors.T
