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
    -lr P mean_i (d^2 f_i C grad f_i) a step, P the projection on the directions that keep the fit.
    The covariance is

    - additive: sum_j lr^2 s^2 lambda_j M_j / (K (1 - r_j)) v_j v_j^T, of the Hessian's eigenpairs,
      r_j = (1 - lr lambda_j)^2 and M_j = `local_drift_multiplier(lr, lambda_j)`: label noise has
      the covariance s^2 H. So the rate of parallel SGD is multiplied by a mean of the M_j;
    - sampled: that of residuals f_i - y_i under single samples, of which each step corrects one,
      R' = R - lr (K R + R K) / n + lr^2 K diag(R_ii + s^2) K / n, K = J J^T, and of those of two
      workers, which share what they had when they were averaged. The noise that sampling adds to
      that of the labels makes one worker's drift larger by lr |grad f|^2 / 2 or so.

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

    Source: 2303.01215 for the slow equation, to leading order in s; the covariances are solved for
    here, as its psi and this solution agree only for lr |grad f|^2 << 1.
    """
    workers, local = count("num_workers", num_workers), count("period", period)
    rate, spread = positive("lr", lr), positive("noise", noise)
    if form not in ("additive", "sampled"):
        raise ValueError(f"form must be 'additive' or 'sampled', got {form!r}")
    x, u, v = (np.asarray(array, dtype=np.float64) for array in (inputs, u, v))
    gradients = np.concatenate([2 * u * x, -2 * v * x], axis=1)
    kernel = gradients @ gradients.T
    values, vectors = np.linalg.eigh(kernel / len(x))
    if values[0] <= 1e-10 * values[-1]:
        raise ValueError("inputs must be independent at this fit, which needs n <= 2 d")
    if form == "additive":
        multipliers = local_drift_multiplier(rate, values, num_workers=workers, period=local)
        gap = 1 - (1 - rate * values) ** 2
        variances = rate**2 * spread**2 * values / workers / gap * multipliers
        # Of residuals: parameters along v_j move them by sqrt(n lambda_j) each.
        residuals = (vectors * (variances * values * len(x))) @ vectors.T
    else:
        residuals = spread**2 * _sampled(kernel, rate, workers, local)
    back = np.linalg.pinv(gradients)
    covariance = back @ residuals @ back.T
    bends = np.concatenate([2 * x, -2 * x], axis=1)
    drift = -rate * (bends * (gradients @ covariance)).mean(0)
    drift -= back @ (gradients @ drift)
    squares = (x**2).mean(0)
    trace = 4 * float(squares @ (u**2 + v**2))
    return float(8 * np.concatenate([squares * u, squares * v]) @ drift) / trace


def _sampled(
    kernel: Float64[np.ndarray, "n n"], lr: float, workers: int, period: int
) -> Float64[np.ndarray, "n n"]:
    """A worker's covariance of residuals for labels of variance 1, in the mean over a round."""
    size = len(kernel)
    identity, mean = np.eye(size), lr * kernel / size
    kept = np.kron(identity - mean, identity - mean)
    # Of sampling: E (g r)(g r)^T has only squares of single residuals in it.
    sampling = np.kron(kernel, kernel)
    others = np.ones((size, size)) - identity
    drawn = np.eye(size * size) - np.kron(mean, identity) - np.kron(identity, mean)
    drawn += lr**2 / size * sampling * (1 - others.ravel())
    affine = np.zeros((size * size + 1,) * 2)
    affine[:-1, :-1], affine[-1, -1] = drawn, 1.0
    affine[:-1, -1] = lr**2 / size * (kernel @ kernel).ravel()
    end, total = _power_and_sum(affine, period)
    apart = np.linalg.matrix_power(kept, period)
    shared = (end[:-1, :-1] + (workers - 1) * apart) / workers
    if max(abs(np.linalg.eigvals(shared))) >= 1:
        raise ValueError(f"lr must be so small that single samples' steps rest, got {lr:.4g}")
    start = np.linalg.solve(np.eye(size * size) - shared, end[:-1, -1] / workers)
    return ((total[:-1, :-1] @ start + total[:-1, -1]) / period).reshape(size, size)


def _power_and_sum(matrix: Float64[np.ndarray, "m m"], power: int) -> tuple[np.ndarray, np.ndarray]:
    """matrix^power, and the sum of the powers below it, by doubling."""
    raised, total = np.eye(len(matrix)), np.zeros_like(matrix)
    for bit in range(power.bit_length() - 1, -1, -1):
        total, raised = total + raised @ total, raised @ raised
        if power >> bit & 1:
            total, raised = total + raised, raised @ matrix
    return raised, total
