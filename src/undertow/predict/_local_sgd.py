"""Local SGD: how long workers may go without averaging, and what the wait adds to the drift.

Quadratic synchronisation rule (2310.14423) and the slow drift of 2303.01215. K workers take H steps
each on their own samples, then their parameters are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from undertow.predict._arguments import count, positive

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64


_LONGEST = 41.0  # the log of a period longer than any run


@dataclass(frozen=True, eq=False)
class SyncRounds:
    """The rounds of a run: `starts` (step numbers), `periods` (local steps of each round).

    `share` is rounds over steps, the communication in parts of that of averaging at every step.
    """

    starts: Int64[np.ndarray, " rounds"]
    periods: Int64[np.ndarray, " rounds"]
    share: float

    def __repr__(self) -> str:
        if not len(self.periods):
            return "No rounds."
        return (
            f"{len(self.periods):,} rounds of {self.periods.min()} to {self.periods.max()} steps, "
            f"{self.share:.1%} of the communication."
        )


def sync_period(lr: float, *, alpha: float, base: int, power: float = 2.0) -> int:
    """H = max(base, floor((alpha / lr)^2)), the local steps of a round that starts at rate `lr`.

    Keeps the slow drift at K times that of parallel SGD as the rate decays. Longer than `base` once
    lr < alpha / sqrt(base + 1) or so.

    Args:
        lr: learning rate at the start of the round, above 0.
        alpha: the growth coefficient, in units of a learning rate; 0 keeps `base` throughout.
        base: the least period, 1 or more.
        power: 2, the quadratic rule; 1 and 3 are what it was compared with.

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if a value is out of its range.

    Source: 2310.14423, the quadratic synchronisation rule.
    """
    least = count("base", base)
    if alpha == 0:
        positive("lr", lr)
        return least
    growth = math.log(positive("alpha", alpha)) - math.log(positive("lr", lr))
    growth *= positive("power", power)
    if growth > _LONGEST:
        return max(least, int(math.exp(_LONGEST)))
    # The quotient may miss a whole number by rounding: 0.3 / 0.1 is 2.9999999999999996.
    return max(least, int((alpha / lr) ** power * (1 + 1e-12)))


def sync_rounds(
    lr: Float[np.ndarray, " steps"] | Sequence[float],
    *,
    alpha: float,
    base: int,
    power: float = 2.0,
    warmup_steps: int = 0,
) -> SyncRounds:
    """The rounds of the quadratic synchronisation rule over a learning-rate schedule.

    The period of a round is `sync_period` at its first step, or what is left of the run. Rounds
    that start during warm-up take the period of the highest rate, as small rates there are no sign
    of being near a minimum. At a rate of zero the round is what is left of the run.

    Args:
        lr: the learning rate of every step.
        alpha: as in `sync_period`.
        base: as in `sync_period`.
        power: as in `sync_period`.
        warmup_steps: how many steps the rate rises.

    Raises:
        TypeError: if a count is no whole number.
        ValueError: if a value is out of its range.

    Source: 2310.14423; with its cosine schedules of 200 and 300 epochs of 312 steps this gives
    the 10.4% (alpha 0.0175, base 4, lr 0.008), 39.7% (0.2, 2, 0.8) and 20.1% (0.25, 4, 0.8) there.
    """
    rates = np.asarray(lr, dtype=np.float64)
    if rates.ndim != 1 or not np.isfinite(rates).all() or (rates < 0).any():
        raise ValueError("lr must hold one finite number >= 0 for each step")
    warm = count("warmup_steps", warmup_steps, least=0)
    steps = len(rates)
    if warm and (warm >= steps or not rates.any()):
        raise ValueError(f"warmup_steps must be below the {steps} steps, got {warm}")
    highest = float(rates.max(initial=0.0))
    starts: list[int] = []
    periods: list[int] = []
    step = 0
    while step < steps:
        rate = highest if step < warm else rates[step]
        period = steps
        if rate > 0:
            period = sync_period(float(rate), alpha=alpha, base=base, power=power)
        starts.append(step)
        periods.append(min(period, steps - step))
        step += periods[-1]
    share = len(starts) / steps if steps else float("nan")
    return SyncRounds(np.array(starts, dtype=np.int64), np.array(periods, dtype=np.int64), share)


def local_drift_multiplier(
    lr: float,
    eigenvalue: float | Float[np.ndarray, "*shape"],
    *,
    num_workers: int,
    period: int,
    partner: float | Float[np.ndarray, "*shape"] | None = None,
    continuous: bool = False,
) -> float | Float64[np.ndarray, "*shape"]:
    """1 + (K - 1) psi: by how much Local SGD drifts faster along the minima than parallel SGD.

    Both have the total batch B = K x local batch. The third-derivative drift of the slow equation,
    -(1 / 2B) d^3 L[.], takes each entry (i, j) of the noise times this. With H = `period` and
    x = lr H (l_i + l_j), continuous time has psi = (exp(-x) - 1 + x) / x. The steps themselves have

        psi = 1 - (1 - r^H) / (H (1 - r)),    r = (1 - lr l_i)(1 - lr l_j),

    which is 0 at H = 1, where Local SGD is parallel SGD, and the continuous form's limit as lr
    falls at a fixed lr H. Between 1 (lr H l << 1: nothing but saved communication) and K.

    Args:
        lr: learning rate.
        eigenvalue: l_i of the Hessian at the minimum; an array is taken elementwise.
        num_workers: K.
        period: H, local steps between two averages.
        partner: l_j, of an entry off the diagonal; `eigenvalue` itself by default.
        continuous: psi of the continuous time limit in place of the exact one.

    Raises:
        TypeError: if K or H is no whole number.
        ValueError: if K, H < 1, lr <= 0, an eigenvalue is negative, or lr x eigenvalue >= 2.

    Source: 2303.01215, the slow equation with psi; the discrete form sums the same geometric series
    over the steps of a round.
    """
    workers, local = count("num_workers", num_workers), count("period", period)
    rate = positive("lr", lr)
    first = _eigenvalues("eigenvalue", eigenvalue, rate)
    second = first if partner is None else _eigenvalues("partner", partner, rate)
    if continuous:
        decay = rate * local * (first + second)
        # (exp(-x) - 1 + x) / x loses its digits at small x, where it is x/2 - x^2/6 + x^3/24.
        safe = np.where(decay > 1e-4, decay, 1.0)
        series = decay / 2 - decay**2 / 6 + decay**3 / 24
        psi = np.where(decay > 1e-4, np.expm1(-safe) / safe + 1, series)
    else:
        gap = rate * (first + second) - rate**2 * first * second  # 1 - r
        small = (local == 1) | (local * np.abs(gap) <= 1e-4)  # elsewhere digits cancel
        safe = np.where(small, 0.5, gap)
        series = (local - 1) * (gap / 2 - (local - 2) * gap**2 / 6)
        psi = np.where(small, series, 1 - (1 - (1 - safe) ** local) / (local * safe))
    multiplier = 1 + (workers - 1) * psi
    return float(multiplier) if np.ndim(multiplier) == 0 else multiplier


def _eigenvalues(name: str, values: object, lr: float) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all() or (array < 0).any():
        raise ValueError(f"{name} must be finite and >= 0, as at a minimum")
    if (lr * array).max(initial=0.0) >= 2:
        raise ValueError(
            f"{name}: lr x {name} must be below 2, where a local step is stable, got "
            f"{lr * array.max():.4g}"
        )
    return array
