"""What the hyperparameters of a prediction may be, and the errors that say so."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

Schedule = Callable[[int], float] | Sequence[float] | None


def count(name: str, value: SupportsIndex, *, least: int = 1) -> int:
    """`value` as an int that is at least `least`.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is below `least`.
    """
    try:
        whole = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if whole < least:
        raise ValueError(f"{name} must be at least {least}, got {whole}")
    return whole


def number(name: str, value: float) -> float:
    """`value` as a float; text is none, though it may look like one (YAML reads 3e-4 as text)."""
    if isinstance(value, str | bytes):
        raise ValueError(f"{name} must be a number, got the text {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}") from None


def positive(name: str, value: float) -> float:
    """`value` as a finite float above zero."""
    value = number(name, value)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value}")
    return value


def coefficient(name: str, value: float) -> float:
    """`value` as a float in [0, 1), the share of an average that a step keeps."""
    value = number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")
    return value


def decay_rate(weight_decay: float) -> float:
    """`weight_decay` as a finite float that is not negative."""
    weight_decay = number("weight_decay", weight_decay)
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"weight_decay must be a finite number >= 0, got {weight_decay}")
    return weight_decay


def step_decay(lr: float, weight_decay: float) -> float:
    """The part of the weights that one step removes, lr x weight_decay; below one."""
    product = positive("lr", lr) * decay_rate(weight_decay)
    _check_contraction(product)
    return product


def step_decays(
    lr: float | Float[np.ndarray, " steps"] | Sequence[float],
    weight_decay: float,
    steps: int | None,
    schedule: Schedule,
) -> tuple[Float64[np.ndarray, " values"], int]:
    """lr_t x weight_decay for each step, with how often it repeats (a constant is one value)."""
    if np.ndim(lr) == 0:
        if steps is None:
            raise ValueError("steps is needed when lr is one number; or give lr for every step")
        steps = count("steps", steps, least=0)
        product = step_decay(float(lr), weight_decay)  # type: ignore[arg-type]
        if schedule is None:
            return np.array([product]), steps
        if callable(schedule):
            schedule = [schedule(step) for step in range(steps)]
        factors = _per_step("schedule", schedule, steps)
        products = product * factors
    else:
        if schedule is not None:
            raise ValueError("schedule multiplies a single lr; lr was already given for every step")
        rates = _per_step("lr", lr, steps)  # type: ignore[arg-type]
        products = rates * decay_rate(weight_decay)
    _check_contraction(products.max(initial=0.0))
    return products, 1


def _per_step(name: str, values: Sequence[float] | np.ndarray, steps: int | None) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one value per step, got shape {array.shape}")
    if steps is not None and len(array) != count("steps", steps, least=0):
        raise ValueError(f"{name} has {len(array)} values for steps={steps}; it needs one a step")
    if not np.isfinite(array).all() or (array < 0).any():
        raise ValueError(f"{name} must hold finite numbers >= 0")
    return array


def _check_contraction(product: float) -> None:
    if product >= 1:
        raise ValueError(
            f"lr x weight_decay is {product:.4g}; at 1 or more a single step wipes the weights out "
            "or flips their sign. Lower lr or weight_decay (usual products are below 1e-2)"
        )
