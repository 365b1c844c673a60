"""The learning rate of every step of a run, from whatever says it.

Two sources that contradict each other are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from undertow.apply.forecasting._schedule import Schedule, lr_factors
from undertow.apply.forecasting._scheduler import Rates, is_scheduler, scheduled_rates

if TYPE_CHECKING:
    from jaxtyping import Float64


def rates_of(
    lr: float | Sequence[float] | None,
    schedule: Schedule | Any,
    steps: int,
    warmup_steps: int,
    interval: int,
) -> Rates:
    """The learning rate of each step, and what must be known of it.

    Args:
        lr: the peak, one a step, or None beside a scheduler.
        schedule: by name, a function or factors, or a scheduler (or Lightning's dictionary of one).
        steps: of the run.
        warmup_steps: before a schedule by name.
        interval: optimizer steps between two of a scheduler's.

    Raises:
        TypeError: a scheduler that follows the loss.
        ValueError: rates that are none, or that contradict each other.
    """
    if isinstance(schedule, Mapping) and "scheduler" in schedule:  # Lightning's form
        if schedule.get("interval", "epoch") == "epoch" and interval == 1:
            raise ValueError(
                "scheduler_interval is needed: this scheduler steps once an epoch, so give the "
                "optimizer's steps in one"
            )
        schedule = schedule["scheduler"]
    if is_scheduler(schedule):
        if warmup_steps:
            raise ValueError("warmup_steps goes with a schedule by name; a scheduler has its own")
        found = scheduled_rates(schedule, steps, interval=interval)
        _check_scheduled(lr, schedule, found.values)
        return found
    if lr is None:
        raise ValueError("lr is needed, unless schedule is a scheduler of PyTorch")
    rates = _numbers("lr", lr)
    if rates.ndim:
        if not isinstance(schedule, str) or schedule != "constant" or warmup_steps:
            raise ValueError("lr is one rate a step already: leave schedule and warmup_steps out")
        if rates.shape != (steps,) or not np.isfinite(rates).all() or (rates < 0).any():
            raise ValueError(f"lr must be one finite rate >= 0 for each of the {steps} steps")
        return Rates(rates)
    if not (math.isfinite(rates) and rates > 0):
        raise ValueError(f"lr must be a finite number above 0, got {lr}")
    factors = lr_factors(cast(Schedule, schedule), steps, warmup_steps=warmup_steps)
    peak = float(factors.max())
    if not isinstance(schedule, str) and 0 < peak <= rates < 0.5:
        raise ValueError(
            f"schedule peaks at {peak:g}, no higher than lr itself: it multiplies lr, and these "
            "look like rates; give rates as lr, one a step"
        )
    return Rates(float(rates) * factors)


def _numbers(name: str, value: Any) -> Float64[np.ndarray, ...]:
    """A number or several; text is none, and neither is a truth value."""
    if not isinstance(value, str | bytes | bool):
        try:
            return np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            pass
    raise ValueError(f"{name} must be a number, or one for each step, got {value!r}")


def _check_scheduled(lr: Any, scheduler: Any, rates: np.ndarray) -> None:
    """A rate given beside a scheduler must be one of its own."""
    if lr is None:
        return
    inner = getattr(scheduler, "scheduler", scheduler)
    own = [float(rates.max()), *map(float, getattr(inner, "base_lrs", []))]
    if not any(math.isclose(float(lr), rate, rel_tol=1e-3) for rate in own):
        raise ValueError(
            f"lr is {lr:g}, and the scheduler's own peak {own[0]:g}: leave lr out, or make it agree"
        )
