"""From saddle to saddle: when gradient flow on U U^T from a small start reaches each, and how near.

2301.11500 and 2012.09839 prove that descent passes the minimisers Z_1, Z_2, ... of each rank as the
start shrinks. When and how near follows from spectra at these saddles (our derivation).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from undertow.predict._arguments import positive

if TYPE_CHECKING:
    from jaxtyping import Float, Float64


@dataclass(frozen=True)
class SaddlePhase:
    """One phase, from a start U = scale x U_0 with a small scale.

    Attributes:
        arrival: time at which its direction is learned, over log(1 / scale).
        exponent: power of the scale with which the closest approach to its saddle goes, in the
            limit.
        early_exponent: the same before the approach bends; for good where the way never turns.
    """

    arrival: float
    exponent: float
    early_exponent: float


def saddle_phases(
    rates: Float[np.ndarray, "saddles directions"],
    relaxations: Float[np.ndarray, " phases"],
    *,
    lr: float | None = None,
) -> tuple[SaddlePhase, ...]:
    """Times and closest approaches of gradient flow dU/dt = -grad f(U U^T) U, phase by phase.

    Or of gradient descent: a step multiplies a direction by 1 + lr x and what relaxes by 1 - lr k,
    so that log(1 + lr x) / lr and -log(1 - lr k) / lr stand for the flow's rates x and k.

    In units of log(1 / scale), direction j has size -1 at the start and grows at the j-th largest
    rate of each saddle while the flow stays there. Direction s arrives when its size reaches 0; the
    next is then at -g. A time t later, with v the largest rate at Z_s and k its slowest relaxation,
    the distance to Z_s is a sum of

        scale^(2g) e^(2vt)     from the next direction, which grows,
        scale^g    e^(-kt)     from its mixing with what was learned, which decays,
        c          e^(-kt)     from the way to Z_s itself, if the way turns.

    It is least where two of them meet: at scale^(2g(k+v)/(k+2v)) as long as scale^g is above c, and
    at scale^(2gk/(k+2v)) beyond. With f(W) = ||W - X||^2 / 2 the way never turns, and the former is
    2 (x_s - x_(s+1)) / (x_s + x_(s+1)) in the eigenvalues x of X.

    Args:
        rates: eigenvalues of -grad f in descending order at Z_0 = 0, Z_1, Z_2, ...: more
            directions than there are phases, and a saddle for each phase and the last.
        relaxations: at Z_1, Z_2, ... the least eigenvalue of the Hessian of f(U U^T) / 2 over U of
            as many columns, rotations of columns aside. See `train.saddle_spectra`.
        lr: the step size of gradient descent; None is the flow. Times are steps x lr.

    Raises:
        ValueError: shapes that do not fit, a direction that does not grow where it must, or an lr
            with which a step oversteps what relaxes slowest.
    """
    growing, slowest = _spectra(rates, relaxations, lr)
    phases, now = [], 0.0
    sizes = np.full(len(slowest) + 1, -1.0)
    for s, k in enumerate(slowest):
        growth = np.maximum(growing[s][: len(sizes) - s], 0.0)
        stay = -sizes[s] / growth[0]
        sizes[s:] += growth * stay
        now += stay
        g, v = -sizes[s + 1], max(growing[s + 1][0], 0.0)
        exponents = 2 * g * k / (k + 2 * v), 2 * g * (k + v) / (k + 2 * v)
        phases.append(SaddlePhase(float(now), *map(float, exponents)))
    return tuple(phases)


def greedy_exponents(
    rates: Float[np.ndarray, "saddles directions"],
    relaxations: Float[np.ndarray, " phases"],
    *,
    lr: float | None = None,
) -> tuple[float, float]:
    """Powers of the scale with which the flow keeps to greedy low-rank learning in phases 1 and 2.

    When the first direction is learned, the second has the amplitude b = scale^g, with g the
    relative gap of the first two rates, and enters U U^T by its product with the first. The second
    phase escapes a time log(1 / b) / rate later; by then the first has come to rest up to what is
    left at its slowest relaxation, and another direction, of amplitude b at most, has grown as
    well. The slower of these is the second phase's power for the smallest starts, and the least
    slope before. In units of W = U U^T, the scale is that of U squared, and the powers are half.

    Args:
        rates: as in `saddle_phases`; the first two saddles and directions are looked at.
        relaxations: as in `saddle_phases`; the first is looked at.
        lr: as in `saddle_phases`.

    Raises:
        ValueError: as `saddle_phases`.
    """
    growing, slowest = _spectra(rates, relaxations, lr)
    (first, second), (third, fourth) = growing[0][:2], growing[1][:2]
    gap = (first - second) / first
    return float(gap), float(gap * min(third - fourth, slowest[0]) / third)


def _spectra(
    rates: Float[np.ndarray, "saddles directions"],
    relaxations: Float[np.ndarray, " phases"],
    lr: float | None,
) -> tuple[Float64[np.ndarray, "saddles directions"], Float64[np.ndarray, " phases"]]:
    growing = np.asarray(rates, dtype=np.float64)
    slowest = np.asarray(relaxations, dtype=np.float64)
    shape = growing.shape
    if slowest.ndim != 1 or not len(slowest) or growing.ndim != 2:
        raise ValueError(
            "rates must be [saddles, directions] and relaxations [phases], got shapes "
            f"{shape} and {slowest.shape}"
        )
    if shape[0] != len(slowest) + 1 or shape[1] <= len(slowest):
        raise ValueError(
            f"rates must have one saddle more than the {len(slowest)} phases, and more directions "
            f"than phases, got shape {shape}"
        )
    if not (growing[:-1, 0] > 0).all():
        raise ValueError(
            "rates must be above 0 at the top of every saddle but the last, got "
            f"{growing[:-1, 0].tolist()}"
        )
    if lr is None:
        return growing, slowest
    fastest = max(float(slowest.max()), -float(growing.min()))
    if not positive("lr", lr) * fastest < 1:
        raise ValueError(f"lr must be below 1 / {fastest:g}, the fastest relaxation, got {lr}")
    return np.log1p(lr * growing) / lr, -np.log1p(-lr * slowest) / lr
