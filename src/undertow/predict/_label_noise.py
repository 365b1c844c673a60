"""How fast label noise balances two layers, with and without momentum: 1 / lr^2 steps along minima.

2307.15196, section 4.2: near a manifold of minima momentum and plain SGD follow the same slow
equation at equal effective learning rates. On the smallest network with two layers it is solved.
"""

from __future__ import annotations

import math

from undertow.predict._arguments import coefficient, positive

_STEPS = 400  # of Runge and Kutta, over the whole time


def label_noise_drift(
    lr: float,
    momentum: float,
    *,
    noise: float,
    product: float,
    imbalance: float,
    time: float,
) -> float:
    """Log D(time) / D(0) of the imbalance D = u^2 - v^2 of the network x -> u v x at x = 1.

    Trained on (u v - product - noise z)^2 / 2 with z of mean 0 and variance 1, fresh at each step,
    from a minimum u v = product. A step of plain SGD with residual r multiplies D by 1 - lr^2 r^2,
    exactly. So D falls over 1 / lr^2 steps, toward the flattest minimum, u^2 = v^2: with the
    sharpness S = u^2 + v^2 = sqrt(D^2 + 4 product^2), and V the stationary variance of u v,

        d log D / d(lr^2 steps) = -2 V / (lr S),
        V = lr S noise^2 (1 + momentum) / (2 (1 + momentum) - (1 - momentum) lr S).

    As lr falls it is -noise^2 whatever the momentum. For plain SGD this is E r^2; with momentum it
    is the slow equation, -V / (2 S) times the gradient of the sharpness along the minima, with its
    own V, and exact up to what D moves while the buffer forgets.

    Args:
        lr: the effective learning rate, of the averaged form m' = momentum m + (1 - momentum) g.
        momentum: in [0, 1).
        noise: standard deviation of the labels' noise.
        product: the label without noise.
        imbalance: D at time 0.
        time: lr^2 x steps.

    Raises:
        ValueError: a value out of range, or no stable rest: lr S at or above
            2 (1 + momentum) / (1 - momentum).

    Source: 2307.15196, section 4.2; derived here for this network.
    """
    positive("lr", lr)
    kept = coefficient("momentum", momentum)
    variance, start, end = (
        positive(name, value) ** power
        for name, value, power in (
            ("noise", noise, 2),
            ("imbalance", imbalance, 1),
            ("time", time, 1),
        )
    )
    room = 2 * (1 + kept)

    def sharpness(log_imbalance: float) -> float:
        return math.hypot(math.exp(log_imbalance), 2 * product)

    def velocity(log_imbalance: float) -> float:
        return -2 * variance * (1 + kept) / (room - (1 - kept) * lr * sharpness(log_imbalance))

    first = math.log(start)
    if (1 - kept) * lr * sharpness(first) >= room:
        raise ValueError(
            f"lr must be below {room / (1 - kept) / sharpness(first):.4g}, where the minimum at "
            f"the start loses its stability, got {lr:g}"
        )
    place, step = first, end / _STEPS
    for _ in range(_STEPS):
        one = velocity(place)
        two = velocity(place + step * one / 2)
        three = velocity(place + step * two / 2)
        four = velocity(place + step * three)
        place += step * (one + 2 * two + 2 * three + four) / 6
    return place - first
