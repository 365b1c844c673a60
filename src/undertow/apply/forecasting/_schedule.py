"""Learning-rate schedules: as a command line spells them, as lists, as functions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from undertow.apply._arguments import whole_number

if TYPE_CHECKING:
    from jaxtyping import Float64

Schedule = str | Callable[[int], float] | Sequence[float]
Spelled = dict[str, float]

_STEP = re.compile(r"step:(?P<factor>[0-9.eE+-]+)@(?P<at>[0-9,]+)")
# The numbers that may follow a name, after a colon, with what they are where they are not given.
_SHAPES: dict[str, Spelled] = {
    "constant": {},
    "cosine": {"floor": 0.0},
    "linear": {"floor": 0.0},
    "wsd": {"decay share": 0.1, "floor": 0.0},
    "onecycle": {"warm-up share": 0.3, "div_factor": 25.0, "final_div_factor": 1e4},
}
_ALIASES = {
    "warmup": "constant",
    "constant_with_warmup": "constant",
    "cosine_with_min_lr": "cosine",
    "one_cycle": "onecycle",
    "warmup_stable_decay": "wsd",
}
FORMS = (
    "constant, cosine or cosine:FLOOR, linear or linear:FLOOR, wsd or wsd:DECAY_SHARE,FLOOR, "
    "onecycle or onecycle:WARM_UP_SHARE, or step:0.1@3000,6000 (a factor, and the steps from "
    "which it counts)"
)


def lr_factors(
    schedule: Schedule, steps: int, *, warmup_steps: int = 0
) -> Float64[np.ndarray, " steps"]:
    """What multiplies the peak learning rate at each step.

    After a linear warm-up over `warmup_steps`:

    - `constant`;
    - `cosine` and `linear`, down to zero at the last step, or `cosine:0.1`, to a tenth;
    - `wsd`, warm-up, stable, decay: constant, and linearly down over the last tenth of the run, or
      `wsd:0.2,0.1` over the last fifth to a tenth;
    - `step:0.1@3000,6000`, times 0.1 from steps 3000 and 6000 on.

    `onecycle`, with the defaults of PyTorch's `OneCycleLR`, has a warm-up of its own, over the
    first 30% of the run or those of `onecycle:0.1`. A function of the step or one factor a step
    stand as they are, without a warm-up.

    Raises:
        TypeError: warmup_steps is no whole number.
        ValueError: a schedule that is none of these, or a warm-up that does not fit.
    """
    warmup_steps = whole_number("warmup_steps", warmup_steps, least=0)
    if not isinstance(schedule, str):
        return _listed(schedule, steps, warmup_steps)
    if warmup_steps >= max(steps, 1):
        raise ValueError(f"warmup_steps must be below the {steps} steps, got {warmup_steps}")
    name, numbers = _spelled(schedule)
    if name == "onecycle":
        if warmup_steps:
            raise ValueError(
                "schedule 'onecycle' has its own warm-up: leave warmup_steps at 0, or write its "
                "share of the run, onecycle:0.1"
            )
        return _one_cycle(steps, *numbers)
    rising = np.arange(1, warmup_steps + 1) / (warmup_steps + 1)
    count = steps - warmup_steps
    falling: np.ndarray
    if name == "step":
        factor, *milestones = numbers
        drops = np.searchsorted(np.sort(milestones), np.arange(warmup_steps, steps), side="right")
        falling = factor**drops
    else:
        falling = _falling(name, count, steps, numbers)
    return np.concatenate([rising, falling])


def _falling(name: str, count: int, steps: int, numbers: list[float]) -> np.ndarray:
    """The factors after the warm-up of a shape that has a floor, or of the constant one."""
    if name == "constant":
        return np.ones(count)
    floor = numbers[-1]
    share = np.arange(count) / max(count - 1, 1)
    if name == "cosine":
        above = (1 + np.cos(np.pi * share)) / 2
    elif name == "linear":
        above = 1 - share
    else:
        decaying = min(round(numbers[0] * steps), count)
        above = np.ones(count)
        if decaying:
            above[count - decaying :] = 1 - np.arange(1, decaying + 1) / decaying
    return floor + (1 - floor) * above


def _one_cycle(steps: int, rising: float, div_factor: float, final_div_factor: float) -> np.ndarray:
    """The cosine form of PyTorch's `OneCycleLR`."""
    top, last = rising * steps - 1, steps - 1
    start = 1 / div_factor
    end = start / final_div_factor
    step = np.arange(steps)

    def between(first: float, second: float, share: np.ndarray) -> np.ndarray:
        return second + (first - second) / 2 * (1 + np.cos(np.pi * share))

    up = between(start, 1.0, step / top) if top else np.ones(steps)
    down = between(1.0, end, (step - top) / (last - top)) if last > top else np.ones(steps)
    return np.where(step <= top, up, down)


def _spelled(schedule: str) -> tuple[str, list[float]]:
    """The name of a schedule and its numbers.

    Raises:
        ValueError: it does not parse.
    """
    found = _STEP.fullmatch(schedule)
    try:
        if found is not None:
            factor = float(found["factor"])
            if not 0 <= factor < math.inf:
                raise ValueError
            return "step", [factor, *(int(word) for word in found["at"].split(","))]
        given, colon, rest = schedule.strip().lower().replace("-", "_").partition(":")
        name = _ALIASES.get(given, given)
        defaults = _SHAPES.get(name)
        words = rest.split(",") if colon else []
        if defaults is None or len(words) > len(defaults):
            raise ValueError
        numbers = [float(word) for word in words] + list(defaults.values())[len(words) :]
    except ValueError:
        raise ValueError(f"schedule {schedule!r} does not parse; give {FORMS}") from None
    for label, value in zip(defaults, numbers, strict=True):
        least, most = (1.0, math.inf) if "factor" in label else (0.0, 1.0)
        if not least <= value <= most or not math.isfinite(value):
            limits = f"at least {least:g}" if "factor" in label else f"from {least:g} to {most:g}"
            raise ValueError(f"schedule {schedule!r}: its {label} must be {limits}, got {value:g}")
    return name, numbers


def _listed(schedule: Any, steps: int, warmup_steps: int) -> np.ndarray:
    """A factor a step, from a sequence or a function."""
    if warmup_steps:
        raise ValueError(
            "warmup_steps goes with a schedule by name; a function or a list has its own"
        )
    values = [schedule(step) for step in range(steps)] if callable(schedule) else schedule
    try:
        factors = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        factors = np.empty(0)
    if factors.shape != (steps,) or not np.isfinite(factors).all() or (factors < 0).any():
        raise ValueError(
            f"schedule must give one finite factor >= 0 for each of the {steps} steps, "
            f"or be {FORMS}"
        )
    return factors
