"""The rates that a scheduler of PyTorch will give, from a copy that moves an optimizer of its own.

Neither the scheduler that was given nor its optimizer is touched.
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Rates:
    """The rate of each step, and what must be known of it.

    Attributes:
        values: one a step.
        notes: for the reader.
        optimizer: that the scheduler moves, where there is one.
        momenta: its momentum at each step, or the first of its betas.
    """

    values: np.ndarray
    notes: tuple[str, ...] = ()
    optimizer: Any = None
    momenta: np.ndarray | None = None


def is_scheduler(schedule: Any) -> bool:
    """Whether it moves the rates of an optimizer, alone or inside accelerate's or DeepSpeed's."""
    return hasattr(_inner(schedule), "optimizer") and callable(getattr(schedule, "step", None))


def scheduled_rates(schedule: Any, steps: int, *, interval: int = 1) -> Rates:
    """The learning rates of the next `steps` steps, of the first parameter group.

    Args:
        schedule: a scheduler of `torch.optim.lr_scheduler`, of Transformers, or one like them:
            `optimizer` and `step()`.
        steps: of the optimizer.
        interval: optimizer steps between two of the scheduler's; the steps of an epoch where it
            steps once an epoch.

    Raises:
        TypeError: the scheduler follows a measured value, or cannot be copied.
        ValueError: it ends before the run does, or gives a rate that is none.
    """
    scheduler = _inner(schedule)
    if any(kind.__name__ == "ReduceLROnPlateau" for kind in type(scheduler).__mro__):
        raise TypeError(
            "schedule: ReduceLROnPlateau follows a loss that is not known before the run; give the "
            "factors that you expect as step:0.1@STEP,STEP"
        )
    optimizer = _stand_in(scheduler.optimizer)
    try:
        copied = copy.deepcopy(scheduler, {id(scheduler.optimizer): optimizer})
    except Exception as error:
        raise TypeError(
            f"schedule: {type(scheduler).__name__} cannot be copied ({error}); give a list of "
            "factors"
        ) from None
    values, momenta = np.empty(steps), np.empty(steps)
    group = optimizer.param_groups[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no optimizer steps between: there is none here
        for step in range(steps):
            if step and step % interval == 0:
                _advance(copied, step, steps)
            values[step] = float(group["lr"])
            momenta[step] = float(group.get("momentum", group.get("betas", (0.0,))[0]))
    if not np.isfinite(values).all() or (values < 0).any():
        step = int(np.argmin(np.isfinite(values) & (values >= 0)))
        raise ValueError(f"schedule: the scheduler's rate is {values[step]} at step {step}")
    notes = _notes(scheduler, interval)
    if np.ptp(momenta) and "momentum" in group:
        notes.append("the scheduler moves the momentum, too: E takes it step by step")
    return Rates(values, tuple(notes), bare(scheduler.optimizer), momenta)


def bare(optimizer: Any) -> Any:
    """The optimizer inside what holds it, as accelerate does."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _inner(schedule: Any) -> Any:
    """The scheduler inside accelerate's wrapper."""
    while not hasattr(schedule, "optimizer") and hasattr(schedule, "scheduler"):
        schedule = schedule.scheduler
    if type(schedule).__name__ == "AcceleratedScheduler":
        schedule = schedule.scheduler
    return schedule


def _stand_in(optimizer: Any) -> Any:
    """An optimizer with the same groups over a single number, for a scheduler to move."""
    import torch

    optimizer = bare(optimizer)
    made = torch.optim.SGD([torch.zeros(1)], lr=0.0)
    made.defaults = copy.deepcopy(optimizer.defaults)
    made.param_groups = [
        {
            **{name: copy.deepcopy(value) for name, value in group.items() if name != "params"},
            "params": [torch.zeros(1)],
        }
        for group in optimizer.param_groups
    ]
    return made


def _advance(scheduler: Any, step: int, steps: int) -> None:
    try:
        scheduler.step()
    except ValueError as error:
        raise ValueError(
            f"schedule: the scheduler ends at step {step} of {steps} ({error})"
        ) from None


def _notes(scheduler: Any, interval: int) -> list[str]:
    notes = []
    taken = getattr(scheduler, "last_epoch", 0)
    if isinstance(taken, int) and taken > 0:
        notes.append(f"the scheduler goes on from its step {taken}, where it stands")
    if interval == 1:
        notes.append(
            "the scheduler steps with the optimizer; give scheduler_interval, the optimizer's "
            "steps between two of its own, where it steps once an epoch"
        )
    rates = {float(group["lr"]) for group in scheduler.optimizer.param_groups}
    if len(rates) > 1:
        low, high = min(rates), max(rates)
        if not math.isclose(low, high):
            notes.append("parameter groups have rates of their own; these are of the first")
    return notes
