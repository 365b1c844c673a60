"""One number a seed, with arithmetic within seeds, and the effect that they amount to.

The effect is the median over seeds, with an interval that one odd seed cannot throw. What becomes
of seeds without a value, of zero and of infinity: see `undertow.lab._readings`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from undertow.lab._effect import UNKNOWN, Effect
from undertow.lab._statistics import median_interval, proportion


def unknown(count: int = 0, why: str = "too few runs are left") -> Effect:
    """An effect of which nothing is known."""
    return Effect(math.nan, UNKNOWN, None, count, why, seeds=count)


@dataclass(frozen=True)
class PerSeed:
    """One number a seed.

    Arithmetic is within seeds: with another `PerSeed`, of the seeds that both have. The quotient of
    two is a ratio, also when scaled: its median is taken in logarithms, so that exchanging the two
    inverts it. A comparison with a number says of each seed whether it holds, for a share.
    """

    values: Mapping[int, float]
    is_ratio: bool = False

    def __sub__(self, other: PerSeed | float) -> PerSeed:
        return self._with(other, operator.sub)

    def __add__(self, other: PerSeed | float) -> PerSeed:
        return self._with(other, operator.add)

    def __mul__(self, other: PerSeed | float) -> PerSeed:
        return self._with(other, operator.mul)

    def __truediv__(self, other: PerSeed | float) -> PerSeed:
        if not isinstance(other, PerSeed):
            return self._with(other or math.nan, operator.truediv)
        return PerSeed(self._with(other, _quotient).values, is_ratio=True)

    def __le__(self, bound: float) -> PerSeed:
        return self._holds(operator.le, bound)

    def __lt__(self, bound: float) -> PerSeed:
        return self._holds(operator.lt, bound)

    def __ge__(self, bound: float) -> PerSeed:
        return self._holds(operator.ge, bound)

    def __gt__(self, bound: float) -> PerSeed:
        return self._holds(operator.gt, bound)

    def __neg__(self) -> PerSeed:
        return self.map(operator.neg)

    def __abs__(self) -> PerSeed:
        return self.map(abs)

    def __len__(self) -> int:
        return len(self.values)

    def map(self, function: Callable[[float], float]) -> PerSeed:
        """The function of each seed's number."""
        return PerSeed({seed: function(value) for seed, value in self.values.items()})

    def known(self, least: float = 0.0, of: int | None = None) -> PerSeed:
        """Without the seeds whose value is NaN or infinite.

        None of them where fewer than the share `least` of `of` seeds (by default, of these) is
        left: the survivors of many that were lost are no fair sample.
        """
        kept = {seed: value for seed, value in self.values.items() if math.isfinite(value)}
        enough = len(kept) >= least * (len(self.values) if of is None else of)
        return PerSeed(kept if enough else {}, self.is_ratio)

    def mean(self) -> float:
        """The mean over seeds; NaN of none."""
        return float(np.mean(list(self.values.values()))) if self.values else math.nan

    def share(self) -> Effect:
        """The share of seeds whose number is not zero, with its exact interval."""
        if (unfit := self._unfit(math.isfinite)) is not None:
            return unfit
        found = proportion(sum(map(bool, self.values.values())), len(self))
        return replace(found, seeds=len(self))

    def effect(self) -> Effect:
        """The median with its 95% interval over seeds; a ratio may be zero or infinite."""
        fit = _is_number if self.is_ratio else math.isfinite
        if (unfit := self._unfit(fit)) is not None:
            return unfit
        array = np.array([self.values[seed] for seed in sorted(self.values)], dtype=np.float64)
        return replace(median_interval(array, ratios=self.is_ratio), seeds=len(self))

    def _unfit(self, fit: Callable[[float], bool]) -> Effect | None:
        """What is unknown of seeds that are too few, or not all fit."""
        count = len(self.values)
        if count < 2:
            return unknown(count)
        odd = sum(not fit(value) for value in self.values.values())
        return unknown(count, f"{odd} of {count} seeds have no finite value") if odd else None

    def _holds(self, compare: Callable[[float, float], bool], bound: float) -> PerSeed:
        """Whether it holds, as a number; NaN of NaN, of which nothing holds and nothing fails."""
        return self.map(lambda value: float(compare(value, bound)) if value == value else math.nan)

    def _with(self, other: PerSeed | float, combine: Callable[[float, float], float]) -> PerSeed:
        if not isinstance(other, PerSeed):
            own = {seed: combine(value, other) for seed, value in self.values.items()}
            scaled = combine in (operator.mul, operator.truediv)
            return PerSeed(own, self.is_ratio and scaled)
        both = sorted(self.values.keys() & other.values.keys())
        return PerSeed({s: combine(self.values[s], other.values[s]) for s in both})


def _quotient(first: float, second: float) -> float:
    if not (math.isfinite(first) and math.isfinite(second)) or first == second == 0:
        return math.nan
    return first / second if second else math.copysign(math.inf, first)


def _is_number(value: float) -> bool:
    return not math.isnan(value)
