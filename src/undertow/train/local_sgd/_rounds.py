"""How many local steps a round takes: fixed, by a function, or by the quadratic rule of 2310.14423.

One rule for simulated workers and real ones: it sees the number of steps taken and the learning
rate, both at the start of the round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from undertow.objective import whole_number
from undertow.predict import sync_period

Period = int | Literal["qsr"] | Callable[[int, float], int]


@dataclass(frozen=True)
class Rounds:
    """The local steps of each round.

    Attributes:
        period: H; or "qsr", max(base, floor((alpha / lr)^power)) with lr at the round's start; or
            a function of the steps taken and of lr at the round's start.
        alpha: the growth coefficient of "qsr", in units of a learning rate.
        base: the least period of "qsr".
        power: 2 is the quadratic rule.
        warmup_steps: while the rate rises over the first steps "qsr" takes the period of `peak_lr`:
            a small rate there is no sign of being near a minimum.
        peak_lr: the rate after warm-up; needed where there is one.
        total_steps: where the run ends, so that its last round ends there too; None: unknown.

    Raises:
        TypeError: a count is no whole number, or `period` of another kind.
        ValueError: a value is out of its range, or one that "qsr" needs is missing.
    """

    period: Period = 1
    alpha: float | None = None
    base: int = 1
    power: float = 2.0
    warmup_steps: int = 0
    peak_lr: float | None = None
    total_steps: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.period, str):
            if self.period != "qsr":
                raise ValueError(
                    f"period must be a number of steps, 'qsr' or a function, got {self.period!r}"
                )
        elif not callable(self.period):
            whole_number("period", self.period, least=1)
        whole_number("base", self.base, least=1)
        whole_number("warmup_steps", self.warmup_steps, least=0)
        if self.total_steps is not None:
            whole_number("total_steps", self.total_steps, least=1)
        if self.period == "qsr":
            self._check_rule()
        elif self.alpha is not None:
            raise ValueError(f"alpha is read by period='qsr' only, got {self.alpha}")

    def _check_rule(self) -> None:
        if self.alpha is None:
            raise ValueError(
                "alpha must be given with period='qsr', in units of a learning rate: a round grows "
                "beyond base once lr is below alpha / sqrt(base + 1)"
            )
        if self.warmup_steps and self.peak_lr is None:
            raise ValueError(
                "peak_lr must be given with period='qsr' and warmup_steps: rounds in warm-up take "
                "the period of the rate after it"
            )
        sync_period(self.peak_lr or 1.0, alpha=self.alpha, base=self.base, power=self.power)

    def length(self, step: int, lr: float) -> int:
        """The local steps of the round that starts after `step` steps at the rate `lr`.

        At a rate of zero "qsr" takes what is left of the run.

        Raises:
            ValueError: the rate is zero under "qsr" and the run has no known end, it is negative or
                no number, or a function gave less than 1.
            TypeError: a function gave no whole number.
        """
        left = None if self.total_steps is None else self.total_steps - step
        if self.period == "qsr":
            assert self.alpha is not None
            warm = step < self.warmup_steps and self.peak_lr is not None
            rate = self.peak_lr if warm and self.peak_lr is not None else lr
            if rate == 0 and left is not None and left > 0:
                return left
            if not (math.isfinite(rate) and rate > 0):
                raise ValueError(
                    f"the learning rate is {rate} at the start of the round after step {step}, and "
                    "period='qsr' divides by it; end the schedule above zero, or give total_steps, "
                    "where the last round ends"
                )
            period = sync_period(rate, alpha=self.alpha, base=self.base, power=self.power)
        elif callable(self.period):
            period = whole_number("what period returns", self.period(step, lr), least=1)
        else:
            assert isinstance(self.period, int)
            period = self.period
        return period if left is None or left <= 0 else min(period, left)
