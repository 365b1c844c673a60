"""Where a normalised network's weights settle, and how soon (2010.02916, 2305.17212).

For a scale-invariant loss the gradient is orthogonal to the weights and falls as 1 / ||w||: noise
makes the norm grow, decay makes it shrink, and the direction moves at a rate that both set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from undertow.predict._arguments import coefficient, count, positive, step_decay

Settling = Literal["sgd", "adamw"]


@dataclass(frozen=True)
class Equilibrium:
    """Where norm and direction of scale-invariant weights settle.

    Attributes:
        intrinsic_lr: lambda_e = lr x weight_decay / (1 - momentum), the decay of one step.
        mixing_steps: 1 / lambda_e, the steps over which the network's function forgets its start
            (a conjecture of the paper), and a norm that is too large falls by a factor e.
        relaxation_steps: the steps over which a small deviation of ||w|| falls by a factor e, about
            1 / (4 lambda_e), and 1 / (2 lambda_e) under AdamW, whose steps no norm shrinks.
        angular_update: by how much a step turns the weights, in radians.
        norm: ||w|| at equilibrium; None without `gradient_sqnorm`, or AdamW's `num_weights`.
        effective_lr: at equilibrium, how far a step moves the direction for the gradient at unit
            norm: lr / ((1 - momentum) ||w||^2), and lr / ||w|| under AdamW; None without a norm.
    """

    intrinsic_lr: float
    mixing_steps: float
    relaxation_steps: float
    angular_update: float
    norm: float | None
    effective_lr: float | None

    def __repr__(self) -> str:
        settled = ""
        if self.norm is not None and self.effective_lr is not None:
            settled = f", ||w|| {self.norm:.4g} and effective lr {self.effective_lr:.4g}"
        return (
            f"Equilibrium in about {self.mixing_steps:.4g} steps (norm {self.relaxation_steps:.4g})"
            f" at intrinsic lr {self.intrinsic_lr:.4g}: {self.angular_update:.4g} rad a "
            f"step{settled}."
        )


def equilibrium(
    lr: float,
    weight_decay: float,
    *,
    momentum: float = 0.0,
    gradient_sqnorm: float | None = None,
    optimizer: Settling = "sgd",
    beta1: float | None = None,
    num_weights: int | None = None,
) -> Equilibrium:
    """Norm, turn of a step, effective learning rate and clock of weights that decay holds.

    The weights w are scale-invariant: the gradient g is orthogonal to them and ||g|| = ||g_1|| /
    ||w||, g_1 being the gradient at w / ||w||. It is independent from step to step, of mean zero,
    with q = E ||g_1||^2; without momentum any g that is orthogonal to w will do.

    `sgd`, with momentum b, PyTorch's, and coupled decay: v' = b v + g + weight_decay w and w' =
    w - lr v'. The second moments E ||w||^2, E <w, v> and E ||v||^2 close. At rest, for x = lr
    weight_decay:

        ||w||^4          = lr q / (weight_decay (1 - b) (2 - x / (1 + b)))
        cos of the angle = 1 - x / (1 + b)          angle about sqrt(2 x / (1 + b))
        lr / ((1 - b) ||w||^2)                      about sqrt(2 lambda_e / q)

    lr tr Sigma / (2 weight_decay) in place of the first to first order, without momentum and
    signal. Deviations shrink by the slowest eigenvalue of the moments' recursion, without momentum
    1 - 2 lambda_e (2 - lambda_e) a step; with it they overshoot once lambda_e is above about
    (1 - b) / 16, and shrink by sqrt(b). Exact in the mean where ||w|| does not fluctuate, as in
    many dimensions.

    `adamw`, the decay decoupled: the step is lr m / sqrt(v) with v the mean square of each
    weight's gradient. Where beta2 is near 1 and gradients are as large for all of the
    `num_weights` C, m / sqrt(v) is a running mean of noise of square norm C. With b = beta1 and
    k = 1 - lr weight_decay:

        ||w||^2          = lr^2 C (1 - b) (1 + b k) / ((1 + b) (1 - b k) (1 - k^2))
                                                    about lr C / (2 weight_decay)
        cos of the angle = (k + b) / (1 + b k)      angle about sqrt(2 x (1 - b) / (1 + b))

    To first order these are the rotational equilibria of 2305.17212. In a network gradients have
    some memory of the steps before, which momentum adds up: `sgd` without it is right all the same.
    AdamW's group is a unit's weights under batch norm. Under layer norm units are not
    scale-invariant one by one, m / sqrt(v) is not orthogonal to all of them together where their
    gradients differ in size, and a small network turned a quarter less.

    `weight_decay` is PyTorch's, which is this paper's lambda (its loss has (lambda / 2) ||w||^2);
    papers that write lambda ||w||^2 mean half of it.

    Args:
        lr: constant learning rate.
        weight_decay: above 0; coupled, or decoupled in `adamw`.
        momentum: heavy-ball coefficient of `sgd`, in [0, 1).
        gradient_sqnorm: q, the mean square norm of a batch's gradient at unit norm: signal and
            noise, summed over the scale-invariant weights of one group (a layer, or a filter).
            AdamW's norm does not depend on it.
        optimizer: `sgd` or `adamw`.
        beta1: of `adamw`, in [0, 1); by default 0.9.
        num_weights: C, how many weights the group has; read by `adamw`, for the norm.

    Raises:
        ValueError: if a value is out of its range, lr x weight_decay / (1 - momentum) >= 1 or there
            is no decay: then there is no equilibrium; or an argument is the other optimizer's.
        TypeError: `num_weights` is no whole number.

    Source: 2010.02916, equations of the norm and of gamma = ||w||^4 / lr^2; 2305.17212, table of
    equilibria; the exact discrete forms are derived from the updates.
    """
    check_optimizer(optimizer)
    if optimizer == "adamw":
        if momentum or gradient_sqnorm is not None:
            raise ValueError(
                "momentum and gradient_sqnorm are SGD's; AdamW's step depends on beta1 and "
                "num_weights instead"
            )
        kept = coefficient("beta1", 0.9 if beta1 is None else beta1)
        return _adamw(lr, weight_decay, kept, num_weights)
    if num_weights is not None or beta1 is not None:
        raise ValueError(
            "num_weights and beta1 are read by optimizer='adamw'; SGD has gradient_sqnorm and "
            "momentum instead"
        )
    kept = coefficient("momentum", momentum)
    decay = positive("weight_decay", weight_decay)
    rate = positive("lr", lr) / (1 - kept)
    intrinsic = step_decay(rate, decay)
    turn = step_decay(lr, decay) / (1 + kept)
    norm = effective = None
    if gradient_sqnorm is not None:
        square = positive("gradient_sqnorm", gradient_sqnorm)
        norm = (rate * square / (decay * (2 - turn))) ** 0.25
        effective = rate / norm**2
    relaxation = _relaxation(step_decay(lr, decay), kept)
    return Equilibrium(intrinsic, 1 / intrinsic, relaxation, _angle(turn), norm, effective)


def check_optimizer(optimizer: str) -> None:
    """Refuse an optimizer whose equilibrium is not known here."""
    if optimizer not in get_args(Settling):
        raise ValueError(
            f"optimizer must be {' or '.join(get_args(Settling))} (momentum is sgd's), got "
            f"{optimizer!r}; with Adam's coupled decay the norm depends on more than these"
        )


def _adamw(lr: float, weight_decay: float, kept: float, num_weights: int | None) -> Equilibrium:
    rate, decay = positive("lr", lr), positive("weight_decay", weight_decay)
    lost = step_decay(rate, decay)
    left = 1 - lost
    norm = effective = None
    if num_weights is not None:
        averaged = (1 - kept) / (1 + kept) * (1 + kept * left) / (1 - kept * left)
        size = count("num_weights", num_weights)
        norm = rate * math.sqrt(size * averaged / (lost * (2 - lost)))
        effective = rate / norm
    turn = lost * (1 - kept) / (1 + kept * left)
    relaxation = -0.5 / math.log1p(-lost)
    return Equilibrium(lost, 1 / lost, relaxation, _angle(turn), norm, effective)


def _angle(turn: float) -> float:
    """The arccos of 1 - turn, in a form that keeps the digits of a small one."""
    return 2 * math.asin(math.sqrt(turn / 2))


def _relaxation(lost: float, kept: float) -> float:
    """Steps over which the slowest deviation of SGD's second moments falls by a factor e.

    A' = A - 2 S + C', B' = S - C', C' = kept^2 C + lost^2 A + 2 kept lost B + G(A) with S = kept B
    + lost A, in units in which lr is 1; G falls as 1 / A and is `grown` times A at rest. 1 - delta
    being an eigenvalue, 1 / delta solves a cubic whose coefficients lose no digits where lost is
    small.
    """
    grown = lost * (1 - kept) * (2 - lost / (1 + kept))
    last = 2 * lost * (1 - kept) * (2 * (1 + kept) - lost)
    own = np.array(
        [
            [2 * lost - lost**2 + grown, 2 * kept * (1 - lost), -(kept**2)],
            [lost**2 - lost - grown, 1 - kept + 2 * kept * lost, kept**2],
            [grown - lost**2, -2 * kept * lost, 1 - kept**2],
        ]
    )
    pairs = ([0, 1], [0, 2], [1, 2])
    middle = sum(float(np.linalg.det(own[np.ix_(pair, pair)])) for pair in pairs)
    delta = 1 / np.roots([last, -middle, float(np.trace(own)), -1.0])
    with np.errstate(divide="ignore"):  # what is gone in one step
        falls = 0.5 * np.log1p(np.maximum(np.abs(delta) ** 2 - 2 * delta.real, -1.0))
    return float(-1 / falls.max())


def equilibrium_steps(
    lr: float,
    weight_decay: float,
    *,
    initial_norm: float,
    equilibrium_norm: float,
    momentum: float = 0.0,
    tolerance: float = 0.01,
    optimizer: Settling = "sgd",
) -> float:
    """Steps until ||w|| is within a relative `tolerance` of its equilibrium.

    ln(|r^n - 1| / |(1 +- tolerance)^n - 1|) / (n lambda_e) with r = ||w_0|| / ||w_eq||, from
    d ||w||^n / dt = -n lambda_e (||w||^n - ||w_eq||^n), n = 4 and under AdamW 2. From a norm much
    too large these are ln(r) / lambda_e steps of pure decay and a little more; from one too small,
    ln(1 / tolerance) / (n lambda_e) at most. Zero where the start is that close already. In
    continuous time: right while lambda_e is small, with momentum against (1 - momentum) / 16, and
    ||w_0||^2 well above lr ||g_1||, below which one step overshoots; and where AdamW's averages
    have filled.

    Raises:
        ValueError: if a value is out of its range, or lr x weight_decay / (1 - momentum) >= 1.

    Source: 2010.02916, the equation of gamma, solved.
    """
    check_optimizer(optimizer)
    if optimizer == "adamw" and momentum:
        raise ValueError("momentum is SGD's; how soon AdamW's norm settles depends on no beta")
    power = 4 if optimizer == "sgd" else 2
    rate = positive("lr", lr) / (1 - coefficient("momentum", momentum))
    intrinsic = step_decay(rate, positive("weight_decay", weight_decay))
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie strictly between 0 and 1, got {tolerance}")
    ratio = positive("initial_norm", initial_norm) / positive("equilibrium_norm", equilibrium_norm)
    if abs(ratio - 1) <= tolerance:
        return 0.0
    goal = 1 + tolerance if ratio > 1 else 1 - tolerance
    return math.log((ratio**power - 1) / (goal**power - 1)) / (power * intrinsic)
