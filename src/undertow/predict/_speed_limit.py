"""How fast descent with weight decay flattens a scale-invariant network at the edge of stability.

The sharpness-reduction flow of arXiv 2206.07085 has a speed limit: log lambda_1 falls by less than
2 in the time 1 / (lr weight_decay), and how much less is set by the gradient of log lambda_1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

_STEPS = 100_000  # of the accelerated descent, which takes a few hundred
_STATIONARY = 1e-9


def sharpness_speed_limit(
    slope: float | Float[np.ndarray, "*shape"] | None = None,
    *,
    gram: Float[np.ndarray, "pairs pairs"] | None = None,
) -> float | Float64[np.ndarray, "*shape"]:
    """The pace d log lambda_1 / d tau = -2 s^2 / (4 + s^2), with tau = lr weight_decay steps.

    Of w <- (1 - lr weight_decay) w - lr grad L(w) with L(c w) = L(w), near minimisers, where
    lambda_1 is the sharpness at theta = w / ||w|| and s = `slope` is the length of the gradient of
    log lambda_1 along the minimisers on the sphere (`measure.sharpness_gradient`). In (-2, 0]:
    nothing flattens faster than decay shrinks ||w||^2.

    Derivation. At the edge the effective rate e = lr / ||w||^2 has e lambda_1 = 2, and theta
    oscillates by +-x along the top eigenvector. That moves it down the sharpness by
    (e / 2) x^2 grad lambda_1 = x^2 grad log lambda_1 a step, so that log lambda_1 changes by
    -x^2 s^2; and it lengthens w, ||grad L(theta)||^2 = lambda_1^2 x^2, so that log e changes by
    2 lr weight_decay - 4 x^2. The two cancel where x^2 = 2 lr weight_decay / (4 + s^2).

    **Several eigenvalues at the edge**, which is where trained networks are found: the oscillation
    has a covariance X >= 0 over their eigenvectors u_i, log e changes by 2 lr weight_decay -
    4 tr X, and the matrix u_i^T H u_j / lambda_1 by -sum_kl <g_ij, g_kl> X_kl, g_ij the gradients
    of its entries. None of them may stay above the edge, and where X is not zero none may leave it:
    X minimises <X, G X> / 2 + 2 (tr X)^2 - 2 tr X over X >= 0 in units of lr weight_decay, and
    d log lambda_1 / d tau = 4 tr X - 2. For one eigenvalue it is the formula above; if the g_ii are
    at right angles and the others zero, 1 / s^2 is the sum of their 1 / s_i^2: **the more of them
    are at the edge, the slower**. The one that counts lambda_1 alone is a bound on the speed.

    With heavy-ball momentum the same balance can be written down in tau / (1 - momentum), but it is
    not stable: on a circle of minimisers it holds at momentum 0.02, and from 0.3 on there are
    bursts in place of a drift. Nor is it known to hold of AdamW, of mini-batches, or away from the
    edge. There is no argument for these.

    Args:
        slope: s, one number or an array of them.
        gram: in its place G, the inner products of the gradients of u_i^T H u_j / lambda_1 for
            pairs i <= j of the eigenvalues at the edge, row by row of the upper triangle, those of
            i < j times sqrt(2).

    Raises:
        ValueError: neither or both are given, a slope is negative or not finite, or `gram` is no
            Gram matrix of pairs (of 1, 3, 6, 10, ... rows, symmetric, no eigenvalue below zero).

    Source: 2206.07085 for the flow; the limit and several eigenvalues derived here.
    """
    if (slope is None) == (gram is None):
        raise ValueError("give slope, or gram in its place where several eigenvalues are at 2")
    if gram is not None:
        return _speed_of_several(gram)
    length = _numbers("slope", slope)
    if not np.isfinite(length).all() or (length < 0).any():
        raise ValueError(f"slope must be finite and at least 0, got {slope}")
    # In these terms no square leaves the range of numbers.
    speed = 0.0 - 2 * (length / np.hypot(2, length)) ** 2
    return float(speed) if speed.ndim == 0 else speed


def _numbers(name: str, value: object) -> np.ndarray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers, got {value!r}") from None


def _speed_of_several(gram: Float[np.ndarray, "pairs pairs"]) -> float:
    """Projected accelerated descent over positive semidefinite matrices (a convex problem)."""
    gram = _numbers("gram", gram)
    pairs = len(gram) if gram.ndim == 2 else 0
    count = (math.isqrt(8 * pairs + 1) - 1) // 2
    if gram.shape != (pairs, pairs) or not pairs or count * (count + 1) // 2 != pairs:
        raise ValueError(
            f"gram must be square with k (k + 1) / 2 rows, one for each pair of k eigenvalues, "
            f"got shape {gram.shape}"
        )
    if not np.isfinite(gram).all() or not np.allclose(gram, gram.T, rtol=1e-6):
        raise ValueError("gram must be finite and symmetric: inner products of gradients")
    least, *_, most = (*np.linalg.eigvalsh(gram), float(np.trace(gram)))
    if least < -1e-6 * most:
        raise ValueError(f"gram must have no eigenvalue below 0, got {least:.3g}")
    rows, columns = np.triu_indices(count)
    trace = (rows == columns).astype(np.float64)
    form = gram + 4 * np.outer(trace, trace)
    bound = float(np.linalg.eigvalsh(form)[-1])
    place, ahead, pace = np.zeros(pairs), np.zeros(pairs), 1.0
    for _ in range(_STEPS):
        moved = _onto_cone(ahead - (form @ ahead - 2 * trace) / bound, rows, columns)
        if (ahead - moved) @ (moved - place) > 0:  # it went too far: start anew
            pace = 1.0
        faster = (1 + math.sqrt(1 + 4 * pace**2)) / 2
        ahead = moved + (pace - 1) / faster * (moved - place)
        change = float(np.abs(moved - place).max())
        place, pace = moved, faster
        if change <= _STATIONARY * max(float(trace @ place), _STATIONARY) / 10:
            step = _onto_cone(place - (form @ place - 2 * trace) / bound, rows, columns)
            if float(np.abs(step - place).max()) <= _STATIONARY * float(trace @ place):
                break
    else:
        raise ValueError(
            "gram is so ill-conditioned that the speed was not found; leave out eigenvalues that "
            "are not at the edge"
        )
    return float(4 * trace @ place - 2)


def _onto_cone(
    packed: Float64[np.ndarray, " pairs"], rows: np.ndarray, columns: np.ndarray
) -> Float64[np.ndarray, " pairs"]:
    """The nearest positive semidefinite matrix; off the diagonal, entries times sqrt(2)."""
    count = int(rows[-1]) + 1
    weights = np.where(rows == columns, 1.0, math.sqrt(0.5))
    matrix = np.zeros((count, count))
    matrix[rows, columns] = matrix[columns, rows] = packed * weights
    values, vectors = np.linalg.eigh(matrix)
    near: np.ndarray = (vectors * np.maximum(values, 0)) @ vectors.T
    return near[rows, columns] / weights
