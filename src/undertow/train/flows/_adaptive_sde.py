"""The SDEs of RMSprop and Adam (2205.10287): one step takes time lr^2.

With the gradient's covariance C = sigma^2 Sigma and v = sigma^2 u, they need no sigma of their own:
sigma_0 = sigma lr enters as lr C^(1/2), and P / sigma_0 as (v^(1/2) + eps) / sigma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.objective import Objective
from undertow.train.flows._noise import Drive, NoisyGradient, drive, stacked
from undertow.train.flows._potential import increasing
from undertow.train.flows._sde import above_zero
from undertow.train.flows._stochastic import (
    Normals,
    State,
    StochasticFlow,
    check_generator,
    solve,
    substep,
)


def rmsprop_sde(
    problem: Objective | NoisyGradient,
    time: float | Sequence[float],
    *,
    lr: float,
    generator: torch.Generator,
    beta2: float = 0.99,
    eps: float = 1e-8,
    batch_size: int | None = None,
    start: Float[Tensor, "*replicas params"] | None = None,
    replicas: int | None = None,
    square: Float[Tensor, "*replicas params"] | None = None,
    substeps: int = 8,
) -> StochasticFlow:
    """Sample paths of the SDE that approximates RMSprop, in float64, all replicas at once.

    d theta = -(grad L dt + lr C^(1/2) dW) / (lr (v^(1/2) + eps)),  dv = c2 (diag C - v) dt,
    c2 = (1 - beta2) / lr^2. One step of RMSprop takes time lr^2. The squared gradient is left
    out of v: it must be small beside the variance. Moments agree up to O(lr^2) where C grows like
    1 / lr^2 and c2 is held fixed.

    Args:
        problem: as of `sgd_sde`. Unless a `NoisyGradient` has a constant covariance, diag C is
            taken from the squares of the noise drawn, whose mean it is.
        time: the end; or the increasing times at which to keep the states.
        lr: learning rate.
        generator: where the normal numbers come from.
        beta2: decay of the mean of squared gradients in a step.
        eps: added to the root of that mean.
        batch_size: of an objective: samples, drawn with replacement, in a batch.
        start: theta(0), for each replica or for all; an objective's own parameters by default.
        replicas: how many, where `start` is for all.
        square: v(0); diag C at the start by default, where it comes to rest. From v = 0 the
            first steps would be as long as eps lets them.
        substeps: Euler-Maruyama steps in the time of one step of RMSprop.

    Raises:
        TypeError, ValueError: as `sgd_sde`.
    """
    times = increasing("time", time)
    longest, rate, eps = _units(lr, beta2, "beta2", eps, substeps)
    check_generator(generator)
    source, theta = drive(problem, start, replicas, batch_size)
    variance = _variance(source, theta) if square is None else _given_square(square, theta)

    def step(state: State, noise: Tensor, clock: float, length: float) -> State:
        theta, square = state
        gradient, drawn = source.parts(theta, noise)
        scale = square.sqrt().add_(eps)
        theta = theta.addcdiv(gradient, scale, value=-length / lr)
        theta.addcdiv_(drawn, scale, value=-math.sqrt(length))
        keep = math.exp(-rate * length)
        return [theta, square.mul_(keep).add_(_squares(source, drawn), alpha=1 - keep)]

    return solve(
        step,
        [theta, variance],
        times,
        longest,
        Normals(source.draws, source.shaped, generator),
        equation="SDE of RMSprop",
        averages=("square",),
    )


def adam_sde(
    problem: Objective | NoisyGradient,
    time: float | Sequence[float],
    *,
    lr: float,
    generator: torch.Generator,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    batch_size: int | None = None,
    start: Float[Tensor, "*replicas params"] | None = None,
    replicas: int | None = None,
    start_time: float = 0.0,
    mean: Float[Tensor, "*replicas params"] | None = None,
    square: Float[Tensor, "*replicas params"] | None = None,
    substeps: int = 8,
) -> StochasticFlow:
    """Sample paths of the SDE that approximates Adam, in float64, all replicas at once.

    d theta = -(m / g1) / (lr ((v / g2)^(1/2) + eps)) dt,  dm = c1 (grad L - m) dt + lr c1
    C^(1/2) dW,  dv = c2 (diag C - v) dt,  c_i = (1 - beta_i) / lr^2, with the bias corrections
    g_i = 1 - exp(-c_i t). One step of Adam takes time lr^2.

    From the beginning of training, m = v = 0, the drift of theta has no limit at t = 0 (m / g1
    grows like t^(-1/2)), but its integral has: the moving averages are advanced first, exactly for
    a constant gradient, and theta after them, as Adam itself does. Adam's first steps, whose v / g2
    is a mean of few squares, are then followed less well. The theorem of order lr^2 starts later,
    which is `start_time`.

    Args:
        problem: as of `rmsprop_sde`.
        time: the end; or the increasing times at which to keep the states.
        lr: learning rate.
        generator: where the normal numbers come from.
        beta1: decay of the mean of gradients in a step.
        beta2: decay of the mean of squared gradients in a step.
        eps: added to the root of that mean, after its bias correction.
        batch_size: of an objective: samples, drawn with replacement, in a batch.
        start: theta(0), for each replica or for all; an objective's own parameters by default.
        replicas: how many, where `start` is for all.
        start_time: the age of Adam's averages at the start, lr^2 x the steps they have seen; the
            times asked for count from there.
        mean: m(start_time), where that is not 0.
        square: v(start_time) likewise.
        substeps: Euler-Maruyama steps in the time of one step of Adam.

    Raises:
        TypeError, ValueError: as `sgd_sde`.
    """
    times = increasing("time", time)
    longest, rate2, eps = _units(lr, beta2, "beta2", eps, substeps)
    _, rate1, _ = _units(lr, beta1, "beta1", eps, substeps)
    check_generator(generator)
    source, theta = drive(problem, start, replicas, batch_size)
    averages = _averages(start_time, mean, square, theta)

    def step(state: State, noise: Tensor, clock: float, length: float) -> State:
        theta, mean, square = state
        gradient, drawn = source.parts(theta, noise)
        end = start_time + clock + length
        # Both averages over this step are exact where gradient and covariance are constant.
        keep = math.exp(-rate1 * length)
        spread = lr * math.sqrt(rate1 * -math.expm1(-2 * rate1 * length) / 2)
        mean.mul_(keep).add_(gradient, alpha=1 - keep).add_(drawn, alpha=spread)
        keep = math.exp(-rate2 * length)
        square.mul_(keep).add_(_squares(source, drawn), alpha=1 - keep)
        scale = square.mul(-1 / math.expm1(-rate2 * end)).sqrt_().add_(eps)
        theta.addcdiv_(mean, scale, value=length / (lr * math.expm1(-rate1 * end)))
        return [theta, mean, square]

    return solve(
        step,
        [theta, *averages],
        times,
        longest,
        Normals(source.draws, source.shaped, generator),
        equation="SDE of Adam",
        averages=("mean", "square"),
    )


def _squares(source: Drive, noise: Tensor) -> Tensor:
    """The diagonal of C, or an unbiased estimate of it."""
    return noise.square() if source.variance is None else source.variance


@torch.no_grad()
def _variance(source: Drive, theta: Tensor) -> Tensor:
    """The diagonal of C, in memory of its own."""
    points = theta[:1] if bool((theta == theta[0]).all()) else theta
    return source.diagonal(points).expand_as(theta).clone()


def _averages(
    start_time: float, mean: Tensor | None, square: Tensor | None, theta: Tensor
) -> tuple[Tensor, Tensor]:
    """Adam's m and v at the start."""
    if not (math.isfinite(start_time) and start_time >= 0):
        raise ValueError(f"start_time must be a finite number >= 0, got {start_time!r}")
    if mean is None and square is None and start_time == 0:
        return torch.zeros_like(theta), torch.zeros_like(theta)
    if mean is None or square is None or start_time == 0:
        raise ValueError(
            "give start_time > 0, mean and square together, or none of them: at time 0 both "
            "averages are 0"
        )
    return _like("mean", mean, theta), _given_square(square, theta)


def _like(name: str, given: Tensor, theta: Tensor) -> Tensor:
    value = stacked(name, given, len(theta))
    if value.shape != theta.shape:
        raise ValueError(
            f"{name} must be [{theta.shape[1]}] or {list(theta.shape)}, got {tuple(given.shape)}"
        )
    return value


def _given_square(square: Tensor, theta: Tensor) -> Tensor:
    value = _like("square", square, theta)
    if bool((value < 0).any()):
        raise ValueError("square is a mean of squares; it has negative entries")
    return value


def _units(
    lr: float, beta: float, name: str, eps: float, substeps: int
) -> tuple[float, float, float]:
    """The longest step, the rate c = (1 - beta) / lr^2, and eps, all checked."""
    lr = above_zero("lr", lr)
    if not 0 <= beta < 1:
        raise ValueError(f"{name} must be from 0 to below 1, got {beta!r}")
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be a finite number >= 0, got {eps!r}")
    return substep(lr * lr, substeps), (1 - beta) / lr**2, float(eps)
