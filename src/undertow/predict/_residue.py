"""The threshold rank of a random start, shrunk, plus what was learned: f W_0 + G.

Where the two have no directions in common but by chance, singular values add as those of a signal
in noise do (Dozier and Silverstein, 2007), and the count follows from G's spectrum alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from undertow.predict._arguments import count, positive
from undertow.predict._survivors import factor_of, nonnegative

if TYPE_CHECKING:
    from jaxtyping import Complex, Float, Float64

_NODES = 48  # of the integral along a line of the complex plane
_REACH = 100  # where it ends, in units of the largest singular value
_STEPS = 6  # of Newton's method at each; the start is the solution at the node before


def combined_rank(
    learned_spectrum: Float[np.ndarray, "*batch values"],
    decay_exponent: float | Float[np.ndarray, "*batch"] | None = None,
    *,
    shape: tuple[int, int],
    initial_std: float,
    final_norm: float | Float[np.ndarray, "*batch"] | None = None,
    decay_factor: float | Float[np.ndarray, "*batch"] | None = None,
    threshold: float = 1e-3,
) -> float | Float64[np.ndarray, "*batch"]:
    """How many singular values of f W_0 + G exceed threshold ||W_T||_F, on average over starts.

    W_0 has independent entries of mean zero and standard deviation `initial_std`; G has the given
    singular values d_j, in general position to it. With s = f initial_std, k = min(shape) and
    D = max(shape) - k, the trace of the resolvent of W W' is, for z = zeta^2 off the real axis,

        T(zeta) = zeta P(p) / u,   P(p) = sum_j 1 / (p - d_j^2),   u = 1 + s^2 P(p),
        p = zeta^2 / u^2 - s^2 D / u,

    and the singular values below L number (2 / pi) int_0^inf Re T(L + i y) dy. A d_j that stands
    out becomes about sqrt(d_j^2 + s^2 (rows + cols)); one that does not is lost among those of the
    residue. Without G this is `surviving_rank` of the Marchenko-Pastur law; without residue it is
    the rank of G. A count of large matrices, right to about one; not a whole number.

    Args:
        learned_spectrum: singular values of G_T, at most k of them; those left out are zero.
        decay_exponent: E; f = exp(-E). Or `decay_factor`, f itself.
        shape: rows and cols of the matrix.
        initial_std: of an entry of W_0, such as `initial_std("pytorch", fan_in=cols)`.
        final_norm: ||W_T||_F. By default that of two parts at right angles,
            sqrt(s^2 rows cols + ||G||^2).
        decay_factor: in place of the exponent.
        threshold: relative to the norm, above 0.

    Raises:
        TypeError: if a side is no whole number.
        ValueError: if both or neither of exponent and factor are given, a value is out of range or
            not finite, or there are more singular values than the matrix has.

    Source: Dozier and Silverstein, On the empirical distribution of eigenvalues of large
    dimensional information-plus-noise-type matrices, J. Multivariate Analysis 98 (2007), 1.1.
    """
    short, long = sorted(count("shape", side) for side in shape)
    learned = nonnegative("learned_spectrum", learned_spectrum)
    if learned.ndim == 0 or learned.shape[-1] > short:
        raise ValueError(
            f"learned_spectrum must hold at most {short} singular values along its last axis, "
            f"got shape {learned.shape}"
        )
    std = factor_of(decay_exponent, decay_factor) * positive("initial_std", initial_std)
    level = positive("threshold", threshold)
    squares, noise = learned**2, std**2
    total = noise * short * long + squares.sum(-1)
    if final_norm is not None:
        total = nonnegative("final_norm", final_norm) ** 2 + 0 * total
    noise, total = np.broadcast_arrays(noise, total)
    padded = np.zeros((*noise.shape, short))
    padded[..., : squares.shape[-1]] = squares
    limit = level * np.sqrt(total).ravel()
    above = _count_above(limit, padded.reshape(-1, short), noise.ravel(), long - short)
    return above.reshape(noise.shape) if noise.shape else float(above[0])


def _count_above(
    limit: Float64[np.ndarray, " batch"],
    squares: Float64[np.ndarray, "batch values"],
    noise: Float64[np.ndarray, " batch"],
    excess: int,
) -> Float64[np.ndarray, " batch"]:
    """The number of singular values above the limit, by the integral of the docstring above.

    In units of the limit y = sinh(v): T changes over decades of y, from the distance of single
    values to far beyond the largest.
    """
    unit = np.where(limit > 0, limit, 1.0)
    squares, noise = squares / unit[..., None] ** 2, noise / unit**2
    values = squares.shape[-1]
    largest = squares.max(-1) + noise * (math.sqrt(values) + math.sqrt(values + excess)) ** 2
    reach = np.arcsinh(_REACH * np.sqrt(largest + 1))
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    below = values / np.sinh(reach)  # from there to infinity, where T is values / zeta
    place = None
    for node, weight in zip((nodes[::-1] + 1) / 2, weights[::-1] / 2, strict=True):
        zeta = 1 + 1j * np.sinh(node * reach)
        place = _solved(zeta**2 if place is None else place, zeta, squares, noise, excess)
        sums = (1 / (place[..., None] - squares)).sum(-1)
        trace = zeta * sums / (1 + noise * sums)
        below = below + weight * reach * np.cosh(node * reach) * trace.real
    return np.where(limit > 0, np.clip(values - 2 / math.pi * below, 0, values), values)


def _solved(
    place: Complex[np.ndarray, " batch"],
    zeta: Complex[np.ndarray, " batch"],
    squares: Float64[np.ndarray, "batch values"],
    noise: Float64[np.ndarray, " batch"],
    excess: int,
) -> Complex[np.ndarray, " batch"]:
    """The p in the upper half plane with p = zeta^2 / u^2 - s^2 D / u, from one that is near."""
    for _ in range(_STEPS):
        inverse = 1 / (place[..., None] - squares)
        u = 1 + noise * inverse.sum(-1)
        gap = place - zeta**2 / u**2 + noise * excess / u
        slope = 1 - (2 * zeta**2 / u**3 - noise * excess / u**2) * noise * (inverse**2).sum(-1)
        newton = place - gap / slope
        # A step out of the half plane is replaced by half a step of the iteration, which stays.
        place = np.where(newton.imag > 0, newton, place - gap / 2)
    return place
