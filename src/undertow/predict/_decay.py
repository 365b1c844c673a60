"""How much of the initial weights weight decay has forgotten.

A step of SGD with coupled decay, or of any optimizer with decoupled decay, multiplies what was
there before by 1 - lr x weight_decay (PyTorch's weight_decay, twice the papers' lambda).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from undertow.predict._arguments import Schedule, coefficient, count, step_decay, step_decays

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int


def decay_exponent(
    lr: float | Float[np.ndarray, " steps"] | Sequence[float],
    weight_decay: float,
    steps: int | None = None,
    *,
    momentum: float = 0.0,
    schedule: Schedule = None,
) -> float:
    """E = sum_t lr_t weight_decay / (1 - momentum), the e-folds by which decay shrank the start.

    exp(-E) approximates `decay_factor` from above while every lr_t weight_decay is small. For
    AdamW and other decoupled decay leave `momentum` at 0: it does not enter there. For heavy-ball
    momentum with coupled decay the formula is of first order in lr weight_decay / (1 - momentum).

    Args:
        lr: the peak learning rate, or one value per step (zero is allowed there).
        weight_decay: PyTorch's, so that a step multiplies by 1 - lr x weight_decay.
        steps: number of optimizer steps; needed when `lr` is one number.
        momentum: of SGD with coupled decay, in [0, 1).
        schedule: multiplies `lr`: one factor per step, or a function of the step from 0.

    Raises:
        ValueError: if a value is out of its range or lengths differ, or if lr x weight_decay >= 1.
    """
    kept = coefficient("momentum", momentum)
    products, repeats = step_decays(lr, weight_decay, steps, schedule)
    return float(products.sum() * repeats / (1 - kept))


def decay_factor(
    lr: float | Float[np.ndarray, " steps"] | Sequence[float],
    weight_decay: float,
    steps: int | None = None,
    *,
    momentum: float = 0.0,
    schedule: Schedule = None,
) -> float:
    """The factor f = prod_t (1 - lr_t weight_decay) in W_T = f W_0 + what was learned.

    Exact for SGD without momentum and for decoupled decay. With momentum it is exp(-E), of first
    order in lr weight_decay / (1 - momentum). Arguments and errors as in `decay_exponent`.
    """
    if momentum:
        exponent = decay_exponent(lr, weight_decay, steps, momentum=momentum, schedule=schedule)
        return math.exp(-exponent)
    products, repeats = step_decays(lr, weight_decay, steps, schedule)
    return float(np.exp(repeats * np.log1p(-products).sum()))


def null_space_decay(
    lr: float, weight_decay: float, steps: int | Int[np.ndarray, "*shape"]
) -> float | Float64[np.ndarray, "*shape"]:
    """(1 - lr weight_decay)^steps: what is left of the weights orthogonal to all inputs.

    No gradient reaches that part, so it holds for every batch size and order of the data
    (CBMM Memo 144). `steps` may be an array of step counts.

    Raises:
        TypeError: if a step count is no whole number.
        ValueError: if lr <= 0, weight_decay < 0, lr x weight_decay >= 1, or a step count is
            negative.
    """
    logarithm = np.log1p(-step_decay(lr, weight_decay))
    if np.ndim(steps) == 0:
        return float(np.exp(count("steps", steps, least=0) * logarithm))
    times = np.asarray(steps)
    if times.dtype.kind not in "iu":
        raise TypeError(f"steps must hold whole numbers, got {times.dtype}")
    if (times < 0).any():
        raise ValueError(f"steps must hold numbers >= 0, got {times.min()}")
    return np.exp(times * logarithm)
