"""How far momentum is from plain SGD on a quadratic, exactly: a gap between second moments.

2307.15196, section 4: the two agree up to a weak error that vanishes with the learning rate as long
as 1 - momentum falls slower than it. On x^2 / 2 second moments follow a linear recursion, so that
the error needs no simulation.
"""

from __future__ import annotations

import numpy as np

from undertow.predict._arguments import coefficient, positive


def momentum_gap(
    lr: float,
    momentum: float,
    *,
    spread: float = 0.0,
    horizon: float = 2.0,
    readings: int = 4,
) -> float:
    """The largest |E x^2 - E x_sgd^2| over the horizon, both from x = 1, on the loss x^2 / 2.

    Momentum is in its averaged form, m' = momentum m + (1 - momentum) g and x' = x - lr m', so that
    both have the same effective learning rate. Gradients carry noise of variance
    (1 + spread x^2) / lr, the most that the theorem of 2307.15196 allows.

    Args:
        lr: the learning rate of both; the horizon is horizon / lr steps.
        momentum: beta, from 0 to below 1.
        spread: how fast the noise grows with x^2.
        horizon: time over which the two are compared, in units of steps x lr.
        readings: equal parts of the horizon, at whose ends moments are compared.

    Raises:
        ValueError: an argument out of range, or a horizon shorter than a step a reading.
    """
    positive("lr", lr)
    coefficient("momentum", momentum)
    steps = round(horizon / lr) // readings
    if steps < 1:
        raise ValueError(f"horizon must hold at least {readings} steps of {lr:g}, got {horizon:g}")
    ends = []
    for kept in (momentum, 0.0):
        power = np.linalg.matrix_power(_moment_step(lr, kept, spread), steps)
        moments = np.array([1.0, 0.0, 0.0, 1.0])
        seen = []
        for _ in range(readings):
            moments = power @ moments
            seen.append(moments[0])
        ends.append(np.array(seen))
    return float(np.abs(ends[0] - ends[1]).max())


def _moment_step(lr: float, momentum: float, spread: float) -> np.ndarray:
    """One step of (E x^2, E x m, E m^2, 1) under m' = beta m + (1 - beta) g, x' = x - lr m'."""
    new = 1 - momentum
    by_x, by_m = 1 - lr * new, -lr * momentum  # of x'; those of m' are new and momentum
    step = np.zeros((4, 4))
    step[0, :3] = by_x**2, 2 * by_x * by_m, by_m**2
    step[1, :3] = by_x * new, by_x * momentum + by_m * new, by_m * momentum
    step[2, :3] = new**2, 2 * new * momentum, momentum**2
    step[3, 3] = 1
    push = np.array([lr**2, -lr, 1.0]) * new**2 / lr  # the noise, by its variance (1 + s x^2) / lr
    step[:3, 3] += push
    step[:3, 0] += push * spread
    return step
