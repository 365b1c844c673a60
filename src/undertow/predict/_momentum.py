"""Momentum beside plain SGD: the learning rate that makes them alike, and where they part.

2307.15196: in the small-step regime heavy-ball momentum only rescales the learning rate. On a
quadratic the stationary variance tells exactly what else it does, and from which curvature on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from undertow.predict._arguments import coefficient, positive

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

Form = Literal["torch", "ema"]

_SMALL_STEP = 0.1  # variance ratio 0.95 at momentum 0.9


@dataclass(frozen=True)
class MomentumEquivalent:
    """The learning rate for another momentum, and whether the two will train alike.

    Attributes:
        lr: for the momentum asked for, in the form asked for.
        effective_lr: lr / (1 - momentum) of PyTorch's form: the learning rate of plain SGD.
        curvature: effective_lr x sharpness; None without a sharpness.
        variance_ratio: stationary variance along that eigenvector, of the run given over its
            equivalent; None without a sharpness, 0 or infinite where one of the two is unstable.
        stability_limit: the effective_lr x sharpness below which the run given is stable,
            2 (1 + momentum) / (1 - momentum).
    """

    lr: float
    effective_lr: float
    curvature: float | None
    variance_ratio: float | None
    stability_limit: float

    def __repr__(self) -> str:
        if self.curvature is None or self.variance_ratio is None:
            regime = "alike while lr x sharpness is small"
        else:
            alike = "alike" if self.curvature <= _SMALL_STEP else "not alike"
            regime = (
                f"{alike}: at lr x sharpness {self.curvature:.3g} the variance ratio is "
                f"{self.variance_ratio:.3g}"
            )
        return f"Equivalent lr {self.lr:.6g} (effective {self.effective_lr:.6g}); {regime}."


def momentum_equivalent(
    lr: float,
    momentum: float,
    *,
    to: float = 0.0,
    form: Form = "torch",
    sharpness: float | None = None,
) -> MomentumEquivalent:
    """The learning rate at momentum `to` (0: plain SGD) that trains like (`lr`, `momentum`).

    In PyTorch's form m' = momentum m + g, x' = x - lr m' the rate that acts is lr / (1 - momentum),
    so lr' = lr (1 - to) / (1 - momentum). In the averaged form m' = momentum m + (1 - momentum) g
    the rate acts as it stands and lr' = lr. Assumes constant lr and momentum, dampening 0, no
    Nesterov, and small steps; compare at equal numbers of steps.

    Where they part: along an eigenvector of the Hessian with eigenvalue h, with gradient noise of
    variance s^2 and effective rate a = lr / (1 - momentum), the stationary variance is

        V = a s^2 (1 + momentum) / (h (2 (1 + momentum) - (1 - momentum) a h)),

    finite while a h < 2 (1 + momentum) / (1 - momentum). Against plain SGD the ratio is
    (1 + momentum)(2 - a h) / (2 (1 + momentum) - (1 - momentum) a h): 0.995, 0.953, 0.760 and 0.514
    at a h = 0.01, 0.1, 0.5 and 1 for momentum 0.9. Up to about 0.1 the momentum buffer buys
    nothing; from 1 on it buys stability. The noise must be independent from step to step: over
    shuffled epochs of few 1 / (1 - momentum) steps momentum averages it away, and the ratio is
    smaller at small a h (0.79 in place of 0.953 at 44 steps an epoch).

    Args:
        lr: constant learning rate.
        momentum: in [0, 1).
        to: the momentum to move to, in [0, 1).
        form: `torch` or `ema` (averaged); of both rates.
        sharpness: h, largest eigenvalue of the Hessian.

    Raises:
        ValueError: if a value is out of its range, or both runs are unstable at that sharpness.

    Source: 2307.15196, section 2 (the two forms); the variances solve the moment recursion.
    """
    kept, other = coefficient("momentum", momentum), coefficient("to", to)
    if form not in ("torch", "ema"):
        raise ValueError(f"form must be 'torch' or 'ema', got {form!r}")
    rate = positive("lr", lr)
    effective = rate / (1 - kept) if form == "torch" else rate
    moved = effective * (1 - other) if form == "torch" else effective
    limit = 2 * (1 + kept) / (1 - kept)
    if sharpness is None:
        return MomentumEquivalent(moved, effective, None, None, limit)
    curvature = effective * positive("sharpness", sharpness)
    own, its = _variance(curvature, kept), _variance(curvature, other)
    if math.isinf(own) and math.isinf(its):
        raise ValueError(
            f"sharpness: at effective lr x sharpness = {curvature:.4g} neither run is stable (limit"
            f" {limit:.4g}); lower lr"
        )
    return MomentumEquivalent(moved, effective, curvature, own / its, limit)


def _variance(curvature: float, momentum: float) -> float:
    """The stationary variance in units of effective lr x s^2 / h; infinite from the limit on."""
    room = 2 * (1 + momentum) - (1 - momentum) * curvature
    return (1 + momentum) / room if room > 0 else math.inf


def averaged_lr(
    lr: Float[np.ndarray, " steps"] | Sequence[float],
    momentum: float | Float[np.ndarray, " steps"] | Sequence[float],
    *,
    form: Form = "torch",
) -> Float64[np.ndarray, " steps"]:
    """How far each step's gradient moves the weights by the end of the run, per unit of gradient.

    In PyTorch's form the gradient of step k moves them by sum over s >= k of lr_s prod over
    k < r <= s of momentum_r; in the averaged form by (1 - momentum_k) times that. Plain SGD on this
    schedule is the one to compare with when lr or momentum change: at a drop of the rate the buffer
    carries gradients into the lower rate, and what is still in the buffer at the last step is lost.
    At constant values it is lr / (1 - momentum), and lr in the averaged form, but for the last few
    1 / (1 - momentum) steps.

    Raises:
        ValueError: if lengths differ, a rate is negative or not finite, a momentum is not in
            [0, 1), or the form is neither `torch` nor `ema`.

    Source: 2307.15196, the averaged learning rate; here over a run that ends.
    """
    if form not in ("torch", "ema"):
        raise ValueError(f"form must be 'torch' or 'ema', got {form!r}")
    rates = np.asarray(lr, dtype=np.float64)
    if rates.ndim != 1 or not np.isfinite(rates).all() or (rates < 0).any():
        raise ValueError("lr must hold one finite number >= 0 for each step")
    if np.ndim(momentum) > 0 and np.shape(momentum) != rates.shape:
        raise ValueError(
            f"momentum must be one number or one per step, got shape {np.shape(momentum)} for "
            f"{len(rates)} steps"
        )
    kept = np.broadcast_to(np.asarray(momentum, dtype=np.float64), rates.shape)
    if not ((kept >= 0) & (kept < 1)).all():
        raise ValueError("momentum must lie in [0, 1) at every step")
    moved, carried = np.empty_like(rates), 0.0
    for step in range(len(rates) - 1, -1, -1):
        carried = moved[step] = rates[step] + carried
        carried *= kept[step]
    return moved * (1 - kept) if form == "ema" else moved
