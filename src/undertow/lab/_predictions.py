"""Predictions: what must be read off the records, written down before there are any.

    {"share of heads": near(0.5, 0.05, of("coins", "heads"), "a fair coin"), ...}

A prediction is data: its rule can be printed before anything has run, its words come from its
numbers, and what is unknown (NaN, too few runs) never passes and never refutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from undertow.lab._cells import format_number
from undertow.lab._effect import Effect
from undertow.lab._per_seed import PerSeed
from undertow.lab._readings import Reading, Records
from undertow.lab._signed_rank import signed_rank_below

Outcome = Literal["supported", "refuted", "inconclusive"]


@dataclass(frozen=True)
class Check:
    """One thing that was predicted, with what was measured.

    `interval` is the 95% confidence interval of `value`. `rule` is the threshold in words.
    `refuted` is true when the evidence is against what the paper says, not only short of the
    threshold; of a control, never.
    A control has `control=True`; its `passed` means that it failed, as it must.
    """

    name: str
    value: float
    interval: tuple[float, float]
    rule: str
    passed: bool
    refuted: bool = False
    control: bool = False

    @property
    def result(self) -> str:
        """`passed`, `refuted` or `not passed`."""
        return "passed" if self.passed else "refuted" if self.refuted else "not passed"

    def __repr__(self) -> str:
        low, high = self.interval
        kind = "control" if self.control else "check"
        return (
            f"{kind} {self.result}: {self.name} = {self.value:.4g}"
            f" [{low:.4g}, {high:.4g}] ({self.rule})"
        )


@dataclass(frozen=True)
class Verdict:
    """Supported when every check and control passed; refuted when a check's evidence is against it.

    Anything else is inconclusive, a control that did not fail as it must included: then the
    experiment cannot tell. Where none was `promised`, it is so whatever was seen.
    """

    outcome: Outcome
    checks: tuple[Check, ...]
    summary: str
    promised: bool = True

    def __repr__(self) -> str:
        passed = sum(check.passed for check in self.checks)
        return f"{self.outcome}: {passed} of {len(self.checks)} checks passed. {self.summary}"


def decide(checks: Sequence[Check], summary: str = "", *, promises_verdict: bool = True) -> Verdict:
    """The verdict that a list of checks amounts to.

    A preset that is too small to tell (`promises_verdict=False`) is inconclusive whatever it saw,
    and so is what predicted nothing: controls alone support no claim.
    """
    outcome: Outcome = "inconclusive"
    if promises_verdict and not all(check.control for check in checks):
        controls_hold = all(check.passed for check in checks if check.control)
        if controls_hold and any(check.refuted for check in checks if not check.control):
            outcome = "refuted"
        elif all(check.passed for check in checks):
            outcome = "supported"
    return Verdict(outcome, tuple(checks), summary, promises_verdict)


@dataclass(frozen=True)
class Prediction:
    """That a reading lies in a range, its whole 95% interval within it.

    It is refuted where the whole interval lies beyond what would be `against` the paper: by
    default, outside of the range, which is right only where its bounds are the theory's own. Where
    a bound was set by hand, `against` is the value from which on the evidence speaks against the
    statement (a ratio above 1, a wrong sign), and `math.inf` where none does. Made by `at_most`,
    `no_less`, `near`, `within`, `outside`, `at_most_times`, `every_seed` and `no_seed`.

    Attributes:
        read: from the records to one number a seed, or to an effect.
        words: the rule, from its numbers, and why.
        judge: from an effect that is known to whether it passed and whether it is refuted.
        control: the mechanism is taken away, and the prediction is that the effect goes.
    """

    read: Callable[[Records], object]
    words: str
    judge: Callable[[Effect], tuple[bool, bool]]
    control: bool = False

    def check(self, name: str, records: Records, *, least_seeds: int = 0) -> Check:
        """Hold the prediction against records.

        What is unknown, and what rests on fewer than `least_seeds` of the seeds that it is taken
        over, neither passes nor is refuted.
        """
        effect = Reading(self.read).effect(records)
        enough = effect.seeds is None or effect.seeds >= least_seeds
        known = enough and not math.isnan(effect.value)
        passed, refuted = self.judge(effect) if known else (False, False)
        refuted = refuted and not self.control
        return Check(name, effect.value, effect.interval, self.words, passed, refuted, self.control)


def check_all(
    predictions: Mapping[str, Prediction], records: Records, *, least_seeds: int = 0
) -> list[Check]:
    """Each prediction held against the records, in order; see `Prediction.check`."""
    return [
        prediction.check(name, records, least_seeds=least_seeds)
        for name, prediction in predictions.items()
    ]


def at_most(
    high: float,
    read: Callable[[Records], object],
    note: str = "",
    *,
    control: bool = False,
    against: float | None = None,
) -> Prediction:
    """That it is `high` or less; refuted where it is above `against`, by default above `high`."""
    beyond = (-math.inf, high if against is None else against)
    return _ranged((-math.inf, high), beyond, f"at most {_number(high)}", read, note, control)


def no_less(
    low: float,
    read: Callable[[Records], object],
    note: str = "",
    *,
    control: bool = False,
    against: float | None = None,
) -> Prediction:
    """That it is `low` or more; refuted where it is below `against`, by default below `low`."""
    least = low if against is None else -math.inf if math.isinf(against) else against
    words = f"at least {_number(low)}"
    return _ranged((low, math.inf), (least, math.inf), words, read, note, control)


def within(
    low: float,
    high: float,
    read: Callable[[Records], object],
    note: str = "",
    *,
    control: bool = False,
    against: tuple[float, float] | float | None = None,
) -> Prediction:
    """That it lies between two bounds.

    Refuted where it lies outside of the pair `against`, by default of these bounds; of `math.inf`,
    nowhere.
    """
    pair = against if isinstance(against, tuple) else (-math.inf, math.inf)
    beyond = (low, high) if against is None else pair
    return _ranged((low, high), beyond, f"{_number(low)} to {_number(high)}", read, note, control)


def near(
    target: float,
    by: float,
    read: Callable[[Records], object],
    note: str = "",
    *,
    control: bool = False,
    against: float | None = None,
) -> Prediction:
    """That it lies within `by` of `target`; refuted farther than `against` off, or than `by`."""
    words, far = f"within {_number(by)} of {_number(target)}", by if against is None else against
    bounds, beyond = (target - by, target + by), (target - far, target + far)
    return _ranged(bounds, beyond, words, read, note, control)


def at_most_times(
    factor: float,
    read: Callable[[Records], PerSeed],
    other: Callable[[Records], PerSeed],
    note: str = "",
    *,
    below: float = 0.01,
    least: int = 10,
    against: float | None = None,
) -> Prediction:
    """That it is at most `factor` times another, pair by pair: by the ratio, and by signed ranks.

    A median of ratios can be small though the largest pairs are not. So where there are `least`
    pairs, Wilcoxon's one-sided signed-rank test must find it less than `factor` times the other,
    too, with a p-value `below` this. It alone does not refute; a ratio above `against` does.
    """
    ratio = at_most(factor, lambda records: read(records) / other(records), note, against=against)

    def both(records: Records) -> Effect:
        first, second = read(records), other(records)
        margin = list((first - second * factor).values.values())
        effect = (first / second).effect()
        if len(margin) < least or not np.isfinite(margin).all():
            return replace(effect, p_value=None)
        return replace(effect, p_value=signed_rank_below(margin))

    def judge(effect: Effect) -> tuple[bool, bool]:
        passed, refuted = ratio.judge(effect)
        return passed and (effect.p_value is None or effect.p_value < below), refuted

    words = f"at most {_number(factor)}, with p < {below:g} by signed ranks of {least} runs or more"
    refuted = "" if against is None else _refuted((-math.inf, against))
    return Prediction(both, _with(words, note, refuted), judge)


def outside(
    target: float,
    by: float,
    read: Callable[[Records], object],
    note: str = "",
    *,
    control: bool = False,
) -> Prediction:
    """That it lies farther than `by` from `target`, on either side: two things are not alike."""
    low, high = target - by, target + by

    def judge(effect: Effect) -> tuple[bool, bool]:
        least, most = effect.interval
        return most < low or least > high, low <= least and most <= high and not control

    words = f"farther than {_number(by)} from {_number(target)}"
    return Prediction(read, _with(words, note), judge, control)


def every_seed(
    read: Callable[[Records], object],
    note: str = "",
    *,
    control: bool = False,
    exact: bool = False,
    against: float = 0.5,
) -> Prediction:
    """That something holds in every seed: of a share of seeds, that it is one.

    It is read as a share, or as one number a seed that is not zero where it holds, such as
    `of("runs", "error", how="max") <= 1e-6`. One seed that breaks it leaves it open, unless it is
    `exact`: then that refutes it. It is refuted where the share is below `against`, by default one
    half, with its whole interval; of `math.inf`, as where its bound was set by hand, nowhere.
    """
    return _share(1.0, "in every seed", read, note, control, exact, against)


def no_seed(
    read: Callable[[Records], object],
    note: str = "",
    *,
    control: bool = False,
    exact: bool = False,
) -> Prediction:
    """That something holds in no seed: of a share of seeds, that it is zero. As `every_seed`."""
    return _share(0.0, "in no seed", read, note, control, exact, 0.5)


def _share(
    share: float,
    words: str,
    read: Callable[[Records], object],
    note: str,
    control: bool,
    exact: bool,
    against: float,
) -> Prediction:
    limit = -math.inf if math.isinf(against) else against

    def judge(effect: Effect) -> tuple[bool, bool]:
        low, high = effect.interval
        passed = effect.value == share
        beyond = high < limit if share else low > limit
        return passed, not passed and (exact or beyond)

    def shared(records: Records) -> object:
        found = read(records)
        return found.share() if isinstance(found, PerSeed) else found

    refuted = "" if limit == 0.5 or control else _refuted((limit, math.inf))
    return Prediction(shared, _with(words, note, refuted), judge, control)


def _ranged(
    bounds: tuple[float, float],
    beyond: tuple[float, float],
    words: str,
    read: Callable[[Records], object],
    note: str,
    control: bool,
) -> Prediction:
    """Passed with the whole interval within the bounds, refuted with the whole beyond others."""
    (low, high), (lowest, highest) = bounds, beyond
    if lowest > low or highest < high:
        raise ValueError(f"against must not lie within the rule, {words}, got {beyond}")

    def judge(effect: Effect) -> tuple[bool, bool]:
        least, most = effect.interval
        return low <= least and most <= high, most < lowest or least > highest

    refuted = _refuted(beyond) if bounds != beyond and not control else ""
    return Prediction(read, _with(words, note, refuted), judge, control)


def _refuted(beyond: tuple[float, float]) -> str:
    """What would be evidence against the statement, in words."""
    low, high = beyond
    ends = [f"below {_number(low)}"] * (low > -math.inf) + [f"above {_number(high)}"] * (
        high < math.inf
    )
    return f" (refuted {' or '.join(ends)})" if ends else " (a miss refutes nothing)"


def _with(words: str, note: str, refuted: str = "") -> str:
    """The rule and why; a note such as "of the norm" says what the number is a share of."""
    if note.startswith("of "):
        share, colon, why = note.partition(": ")
        return f"{words} {share}{refuted}{colon}{why}"
    return f"{words}{refuted}: {note}" if note else f"{words}{refuted}"


def _number(value: float) -> str:
    return format_number(value, digits=6)
