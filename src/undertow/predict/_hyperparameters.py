"""The hyperparameters of an optimizer: which it reads, their ranges, and PyTorch's defaults."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from undertow.predict._arguments import coefficient, count, decay_rate, number, positive
from undertow.predict._families import Family


def completed(hyper: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Every hyperparameter in its range, with the defaults that are not zero.

    Raises:
        TypeError: a count that is no whole number.
        ValueError: a name that the optimizer does not read, a value out of its range, or no `lr`.
    """
    for name in hyper:
        if name not in family.reads:
            close = difflib.get_close_matches(str(name), family.reads, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            reads = ", ".join(family.reads)
            raise ValueError(f"hyper: {family.name} reads {reads}, got {name!r}{hint}")
    if "lr" not in hyper:
        raise ValueError(f"hyper must hold lr, got {', '.join(map(str, hyper)) or 'nothing'}")
    full = dict(hyper)
    for name, one in (("betas", "beta1"), ("betas", "beta2"), ("alpha", "beta2")):
        if name in full and one in full:
            raise ValueError(f"hyper holds both {name} and {one}; give one of them")
    for name, value in family.defaults.items():
        if name == "betas" and ("beta1" in full or "beta2" in full):
            full.setdefault("beta1", value[0])
            full.setdefault("beta2", value[1])
        elif not (name == "alpha" and "beta2" in full):
            full.setdefault(name, value)
    return {name: _CHECKS[name](name, value) for name, value in full.items()}


def _steps(name: str, value: int) -> int:
    return count(name, value, least=0)


def _milestones(name: str, value: Sequence[int]) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a sequence of step numbers, got {value!r}")
    return tuple(_steps(name, step) for step in value)


def _share(name: str, value: float) -> float:
    return coefficient(name, positive(name, value))


def _nonnegative(name: str, value: float) -> float:
    value = number(name, value)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")
    return float(value)


def _pair(name: str, betas: Sequence[float]) -> tuple[float, float]:
    if not (isinstance(betas, Sequence) and len(betas) == 2):
        raise ValueError(f"{name} must be two numbers, got {betas!r}")
    return coefficient(f"{name}[0]", betas[0]), _share(f"{name}[1]", betas[1])


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "lr": positive,
    "weight_decay": lambda _, value: decay_rate(value),
    "eps": _nonnegative,
    "betas": _pair,
    "beta1": coefficient,
    "beta2": _share,
    "alpha": _share,
    "momentum": coefficient,
    "momentum_decay": _nonnegative,
    "nesterov": _flag,
    "decoupled_weight_decay": _flag,
    "steps": _steps,
    "warmup_steps": _steps,
    "milestones": _milestones,
}
