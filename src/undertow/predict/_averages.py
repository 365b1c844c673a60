"""Averages over steps at another batch size: how long they remember, and what noise they leave.

An average that keeps beta a step remembers 1 / (1 - beta) steps. At k times the batch these samples
are 1 / k as many steps; 2205.10287 has 1 - beta' = k (1 - beta), 2507.07101 has beta' = beta^k.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from undertow.predict._normal import erf

Betas = Literal["half-life", "sde", "keep"]
"""What becomes of averages: see `rescale`."""
BETAS: Mapping[str, str] = {
    "half-life": "beta' = beta^k",
    "sde": "1 - beta' = k (1 - beta)",
    "keep": "beta' = beta",
}
"""What may become of averages, and its equation."""
REASONS: Mapping[str, str] = {
    "half-life": "halves over the same samples",
    "sde": "averages over the same samples, as the equation has it",
    "keep": "as it was: remembers k times as many samples",
}


def moved_average(beta: float, factor: float, mode: str) -> float | None:
    """The decay of an average at `factor` times the batch; None where the mode has none.

    `half-life` gives each sample half its weight after the same number of samples, and lies in
    [0, 1) at any k. `sde` keeps (1 - beta) per sample, agrees with it to first order in 1 - beta
    and ends at k = 1 / (1 - beta). Where there is no average (beta = 0) there is none after.
    """
    if mode == "keep" or beta == 0:
        return beta
    if mode == "half-life":
        return math.exp(factor * math.log(beta))
    new = 1 - factor * (1 - beta)
    return new if new > 1e-12 else None  # 10 x (1 - 0.9) is below one by rounding


def noise_left(family: str, hyper: Mapping[str, Any]) -> float:
    """What the averages of an update of one size leave of a gradient's noise, as a ratio of sds.

    The update is phi(c), phi of degree zero (a sign, a polar factor, a division by the norm) and c
    a weighted sum of independent gradients. With weight w on the last one and 1 - w on an average
    of those before it that keeps b a step, whose own noise is sqrt((1 - b) / (1 + b)),

        noise^2 = w^2 + (1 - w)^2 (1 - b) / (1 + b)

    Lion has w = 1 - beta1 and b = beta2 (2302.06675); Muon in Nesterov's form w = 1 - mu^2 and
    b = mu; a plain average w = 1 - b, which gives noise^2 = (1 - b) / (1 + b).
    """
    beta1, beta2 = hyper.get("betas", (hyper.get("beta1", 0.0), hyper.get("beta2", 0.0)))
    if family == "lion":
        kept, last = beta2, 1 - beta1
    elif family == "lamb":
        kept, last = beta1, 1 - beta1
    else:
        kept = hyper.get("momentum", 0.0)
        last = 1 - kept**2 if hyper.get("nesterov") else 1 - kept
    return math.sqrt(last**2 + (1 - last) ** 2 * (1 - kept) / (1 + kept))


def largest_gradient(beta2: float) -> float:
    """E max_j beta2^j |z_j| over standard normal z: what Adamax divides by, in sds of a gradient.

    From P(max < x) = prod_j erf(x / (beta2^j sqrt(2))), summed numerically; grows like the root of
    the logarithm of the steps remembered.
    """
    x = np.linspace(0, 10, 501)
    # Gradients decayed below 1 / 20 decide nothing. Many are taken in blocks, by their middle.
    steps = max(1, math.ceil(math.log(0.05) / math.log(beta2))) if beta2 > 0 else 1
    each = max(1.0, steps / 400)
    sizes = beta2 ** (each * (np.arange(min(steps, 400)) + 0.5) - 0.5)
    with np.errstate(divide="ignore"):
        log_below = each * np.log(erf(x / (sizes[:, None] * math.sqrt(2)))).sum(0)
    above = 1 - np.exp(log_below)
    return float(np.sum((above[1:] + above[:-1]) / 2) * (x[1] - x[0]))
