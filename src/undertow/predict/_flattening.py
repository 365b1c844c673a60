"""How fast label noise flattens a diagonal linear network under Local SGD: closed form, no runs.

The slow equation of 2303.01215 at a fit, with the covariance of the workers' steps solved for
exactly; f(x) = x . (u^2 - v^2), loss mean_i (f(x_i) - y_i)^2 / 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from undertow.predict._arguments import count, positive
from undertow.predict._local_sgd import local_drift_multiplier

if TYPE_CHECKING:
    from jaxtyping import Float64

Form = Literal["additive", "sampled"]


def label_noise_flattening(
    inputs: Float64[np.ndarray, "n d"],
    u: Float64[np.ndarray, " d"],
    v: Float64[np.ndarray, " d"],
    *,
    lr: float,
    num_workers: int = 1,
    period: int = 1,
    noise: float = 1.0,
    form: Form = "sampled",
) -> float:
    """D log tr H / d step of Local SGD with label noise, at a fit of a diagonal linear network.

    Workers see one sample a step. With J the gradients of f at the samples and C the covariance of
    a worker's parameters about the fit, in the mean over a round, the minima are followed with
    -lr P mean_i (d^2 f_i C g_i) a step, P the projection on the directions that keep the fit.
    The covariance is

    - additive: sum_j lr^2 s^2 lambda_j M_j / (K (1 - r_j)) v_j v_j^T, of the Hessian's eigenpairs,
      r_j = (1 - lr lambda_j)^2 and M_j = `local_drift_multiplier(lr, lambda_j)`: label noise has
      the covariance s^2 H. So the rate of parallel SGD is multiplied by a mean of the M_j;
    - sampled: that of single samples, of whose residual a step corrects one,
      C' = C - lr (H C + C H) + lr^2 mean_i (g_i^T C g_i + s^2) g_i g_i^T with g_i = grad f_i, and
      of pairs of workers, which share what they had when they were averaged. The noise that
      sampling adds to that of the labels makes one worker's drift larger by lr |g|^2 / 2 or so.

    Args:
        inputs: the samples x_i.
        u: first layer at a fit.
        v: second layer there.
        lr: learning rate.
        num_workers: K.
        period: H, local steps between two averagings.
        noise: s, the standard deviation of the labels' noise.
        form: which covariance.

    Raises:
        TypeError: a count is no whole number.
        ValueError: a value is out of its range, samples depend on one another, or steps do not
            rest at this rate.

    Source: 2303.01215 for the slow equation, to leading order in s; the sampled covariance is
    solved for here: its psi is that of additive noise, and lr |g|^2 << 1.
    """
    workers, local = count("num_workers", num_workers), count("period", period)
    rate, spread = positive("lr", lr), positive("noise", noise)
    if form not in ("additive", "sampled"):
        raise ValueError(f"form must be 'additive' or 'sampled', got {form!r}")
    x, u, v = (np.asarray(array, dtype=np.float64) for array in (inputs, u, v))
    gradients = np.concatenate([2 * u * x, -2 * v * x], axis=1)
    values, vectors = np.linalg.eigh(gradients @ gradients.T / len(x))
    if values[0] <= 1e-10 * values[-1]:
        raise ValueError("inputs must be independent at this fit, which needs n <= 2 d")
    # Gradients are factors @ modes, the modes the Hessian's eigenvectors of the values.
    factors = vectors * np.sqrt(len(x) * values)
    modes = (gradients.T @ vectors / np.sqrt(len(x) * values)).T
    if form == "additive":
        multipliers = local_drift_multiplier(rate, values, num_workers=workers, period=local)
        gap = rate * values * (2 - rate * values)
        covariance = np.diag(rate**2 * values / workers / gap * multipliers)
    else:
        covariance = _sampled(values, factors, rate, workers, local)
    bends = np.concatenate([2 * x, -2 * x], axis=1)
    drift = -rate * spread**2 * (bends * (factors @ covariance @ modes)).mean(0)
    drift -= modes.T @ (modes @ drift)
    squares = (x**2).mean(0)
    trace = 4 * float(squares @ (u**2 + v**2))
    return float(8 * np.concatenate([squares * u, squares * v]) @ drift) / trace


def _sampled(
    values: Float64[np.ndarray, " n"],
    factors: Float64[np.ndarray, "n n"],
    lr: float,
    workers: int,
    period: int,
) -> Float64[np.ndarray, "n n"]:
    """A worker's covariance in the Hessian's modes for labels of variance 1, over a round."""
    size = len(values)
    pairs = (factors[:, :, None] * factors[:, None, :]).reshape(size, -1)
    step = lr**2 / size * pairs.T @ pairs - lr * np.diag(np.add.outer(values, values).ravel())
    # The step is symmetric: powers and their sums are those of its eigenvalues, 1 - lost.
    lost, basis = np.linalg.eigh(-step)
    if lost[0] <= 0:
        raise ValueError(f"lr must be so small that steps on single samples rest, got {lr:.4g}")
    pushed = basis.T @ (lr**2 / size * pairs.sum(0))
    end = (1 - lost) ** period
    mean = (1 - end) / (period * lost)
    kept = np.multiply.outer(1 - lr * values, 1 - lr * values).ravel() ** period
    shared = ((basis * end) @ basis.T + (workers - 1) * np.diag(kept)) / workers
    gained = basis @ ((1 - end) / lost * pushed) / workers
    start = basis.T @ np.linalg.solve(np.eye(size * size) - shared, gained)
    return (basis @ (mean * start + (1 - mean) / lost * pushed)).reshape(size, size)
