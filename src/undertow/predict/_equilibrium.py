"""Where a normalised network's weights settle, and how soon (2010.02916).

For a scale-invariant loss the gradient is orthogonal to the weights and falls as 1 / ||w||: noise
makes the norm grow, decay makes it shrink, and the direction moves at a rate that both set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from undertow.predict._arguments import coefficient, positive, step_decay


@dataclass(frozen=True)
class Equilibrium:
    """Where norm and direction of scale-invariant weights settle.

    Attributes:
        intrinsic_lr: lambda_e = lr x weight_decay / (1 - momentum), the decay of one step.
        mixing_steps: 1 / lambda_e, the steps over which the network's function forgets its start
            (a conjecture of the paper), and a norm that is too large falls by a factor e.
        relaxation_steps: about 1 / (4 lambda_e), the steps over which a small deviation of ||w||^4
            falls by a factor e.
        angular_update: by how much a step turns the weights, in radians.
        norm: ||w|| at equilibrium; None without `gradient_sqnorm`.
        effective_lr: lr / ((1 - momentum) ||w||^2) at equilibrium; None without it.
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
) -> Equilibrium:
    """Norm, effective learning rate and clock at the equilibrium of SGD with weight decay.

    For w <- (1 - lr weight_decay) w - lr g with g orthogonal to w and ||g|| = ||g_1|| / ||w||, g_1
    being the gradient at w / ||w||, lambda_e = lr weight_decay and q = E ||g_1||^2:

        ||w'||^2 = (1 - lambda_e)^2 ||w||^2 + lr^2 q / ||w||^2
        ||w||^4  = lr q / (weight_decay (2 - lambda_e))    at rest; lr tr Sigma / (2 weight_decay)
                                                           to first order and without signal
        lr / ||w||^2 = sqrt(lambda_e (2 - lambda_e) / q)
        angle a step = arccos(1 - lambda_e)                about sqrt(2 lambda_e)

    and a deviation of ||w||^2 shrinks by 2 (1 - lambda_e)^2 - 1 a step. Exact where ||g_1|| is
    constant; it holds for the mean to first order where it fluctuates.

    `weight_decay` is PyTorch's, which is this paper's lambda (its loss has (lambda / 2) ||w||^2);
    papers that write lambda ||w||^2 mean half of it.

    With momentum (PyTorch's, the decay coupled), lr is lr / (1 - momentum) in all of this except
    the angle of one step, which is about sqrt(2 lr weight_decay / (1 + momentum)); of first order
    in lambda_e / (1 - momentum), for gradients that are independent from step to step.

    Args:
        lr: constant learning rate.
        weight_decay: above 0, coupled.
        momentum: heavy-ball coefficient, in [0, 1).
        gradient_sqnorm: q, the mean square norm of a batch's gradient at unit norm: signal and
            noise, summed over the scale-invariant weights of one group (a layer, or a filter).

    Raises:
        ValueError: if a value is out of its range, lr x weight_decay / (1 - momentum) >= 1 or there
            is no decay: then there is no equilibrium.

    Source: 2010.02916, equations of the norm and of gamma = ||w||^4 / lr^2; the exact discrete
    forms are derived from the update.
    """
    kept = coefficient("momentum", momentum)
    decay = positive("weight_decay", weight_decay)
    rate = positive("lr", lr) / (1 - kept)
    intrinsic = step_decay(rate, decay)
    lost = 2 * intrinsic * (2 - intrinsic)  # of a deviation in one step; 1 - lost loses digits
    # The arccos of 1 - x, in a form that keeps the digits of a small x.
    turned = 2 * math.asin(math.sqrt(step_decay(lr, decay) / (1 + kept) / 2))
    norm = effective = None
    if gradient_sqnorm is not None:
        square = positive("gradient_sqnorm", gradient_sqnorm)
        norm = (rate * square / (decay * (2 - intrinsic))) ** 0.25
        effective = rate / norm**2
    # A deviation of ||w||^4 and one of ||w||^2 shrink alike. From 1 - 1/sqrt(2) on they alternate.
    relaxation = 0.0
    if lost != 1:
        relaxation = -1 / (math.log1p(-lost) if lost < 1 else math.log(lost - 1))
    return Equilibrium(intrinsic, 1 / intrinsic, relaxation, turned, norm, effective)


def equilibrium_steps(
    lr: float,
    weight_decay: float,
    *,
    initial_norm: float,
    equilibrium_norm: float,
    momentum: float = 0.0,
    tolerance: float = 0.01,
) -> float:
    """Steps until ||w|| is within a relative `tolerance` of its equilibrium.

    ln(|r^4 - 1| / |(1 +- tolerance)^4 - 1|) / (4 lambda_e) with r = ||w_0|| / ||w_eq||, from
    d ||w||^4 / dt = -4 lambda_e (||w||^4 - ||w_eq||^4). From a norm much too large these are
    ln(r) / lambda_e steps of pure decay and a little more; from one too small, ln(1 / tolerance) /
    (4 lambda_e) at most. Zero where the start is that close already. In continuous time: right
    while lambda_e is small and ||w_0||^2 well above lr ||g_1||, below which one step overshoots.

    Raises:
        ValueError: if a value is out of its range, or lr x weight_decay / (1 - momentum) >= 1.

    Source: 2010.02916, the equation of gamma, solved.
    """
    rate = positive("lr", lr) / (1 - coefficient("momentum", momentum))
    intrinsic = step_decay(rate, positive("weight_decay", weight_decay))
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie strictly between 0 and 1, got {tolerance}")
    ratio = positive("initial_norm", initial_norm) / positive("equilibrium_norm", equilibrium_norm)
    if abs(ratio - 1) <= tolerance:
        return 0.0
    goal = 1 + tolerance if ratio > 1 else 1 - tolerance
    return math.log((ratio**4 - 1) / (goal**4 - 1)) / (4 * intrinsic)
