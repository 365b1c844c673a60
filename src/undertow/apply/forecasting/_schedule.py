"""Learning-rate schedules as a command line spells them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from undertow.apply._arguments import whole_number

if TYPE_CHECKING:
    from jaxtyping import Float64

Schedule = str | Callable[[int], float] | Sequence[float]

_STEP = re.compile(r"step:(?P<factor>[0-9.eE+-]+)@(?P<at>[0-9,]+)")


def lr_factors(
    schedule: Schedule, steps: int, *, warmup_steps: int = 0
) -> Float64[np.ndarray, " steps"]:
    """What multiplies the peak learning rate at each step.

    After a linear warm-up over `warmup_steps`: `constant`; `cosine` and `linear`, down to zero
    at the last step; or `step:0.1@3000,6000`, times 0.1 from steps 3000 and 6000 on. A function
    of the step or one factor a step stand as they are, without a warm-up.

    Raises:
        TypeError: warmup_steps is no whole number.
        ValueError: a schedule that is none of these, or a warm-up that does not fit.
    """
    if not isinstance(schedule, str):
        values = [schedule(step) for step in range(steps)] if callable(schedule) else schedule
        factors = np.asarray(values, dtype=np.float64)
        if factors.shape != (steps,) or not np.isfinite(factors).all() or (factors < 0).any():
            raise ValueError(
                f"schedule must give one finite factor >= 0 for each of the {steps} steps"
            )
        return factors
    if whole_number("warmup_steps", warmup_steps, least=0) >= max(steps, 1):
        raise ValueError(f"warmup_steps must be below the {steps} steps, got {warmup_steps}")
    rising = np.arange(1, warmup_steps + 1) / (warmup_steps + 1)
    count = steps - warmup_steps
    share = np.arange(count) / max(count - 1, 1)
    falling: np.ndarray
    if schedule == "constant":
        falling = np.ones(count)
    elif schedule == "cosine":
        falling = (1 + np.cos(np.pi * share)) / 2
    elif schedule == "linear":
        falling = 1 - share
    else:
        found = _STEP.fullmatch(schedule)
        try:
            assert found is not None
            factor = float(found["factor"])
            assert 0 <= factor < math.inf
            milestones = [int(word) for word in found["at"].split(",")]
        except (AssertionError, ValueError):
            raise ValueError(
                f"schedule {schedule!r} does not parse; give constant, cosine, linear, or "
                "step:0.1@3000,6000 (a factor, and the steps from which it counts)"
            ) from None
        drops = np.searchsorted(np.sort(milestones), np.arange(warmup_steps, steps), side="right")
        falling = factor**drops
    return np.concatenate([rising, falling])
