"""What a claim is: a paper's statement made into trials, a verdict rule fixed in code, and figures.

A claim is one file. It gives its knobs as a frozen dataclass, its presets as instances of it, and
five functions: trials, run, judge, figures and table. Everything else (worker processes, caching,
resuming, the report, the command line) comes from the rooms around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from undertow import lab

Outcome = Literal["supported", "refuted", "inconclusive"]


@dataclass(frozen=True)
class Check:
    """One thing that the claim predicts, with what was measured.

    `interval` is the 95% confidence interval of `value`. `rule` is the threshold in words.
    `refuted` is true when the evidence is against the prediction, not only short of it.
    A control has `control=True`; its `passed` means that it failed, as it must.
    """

    name: str
    value: float
    interval: tuple[float, float]
    rule: str
    passed: bool
    refuted: bool = False
    control: bool = False

    def __repr__(self) -> str:
        low, high = self.interval
        state = "passed" if self.passed else "refuted" if self.refuted else "not passed"
        kind = "control" if self.control else "check"
        return (
            f"{kind} {state}: {self.name} = {self.value:.4g} [{low:.4g}, {high:.4g}] ({self.rule})"
        )


def check_below(
    name: str, effect: lab.Effect, *, bound: float, rule: str, control: bool = False
) -> Check:
    """A prediction that a quantity is at most `bound`: its whole interval must be."""
    return check_within(name, effect, -math.inf, bound, rule, control=control)


def check_above(
    name: str, effect: lab.Effect, *, bound: float, rule: str, control: bool = False
) -> Check:
    """A prediction that a quantity is at least `bound`: its whole interval must be."""
    return check_within(name, effect, bound, math.inf, rule, control=control)


def check_within(
    name: str, effect: lab.Effect, low: float, high: float, rule: str, *, control: bool = False
) -> Check:
    """A prediction that a quantity lies between two bounds: its whole interval must.

    It is refuted where the whole interval lies outside.
    """
    (least, most), known = effect.interval, not math.isnan(effect.value)
    return Check(
        name,
        effect.value,
        effect.interval,
        rule,
        passed=known and low <= least and most <= high,
        refuted=known and (most < low or least > high),
        control=control,
    )


def over_seeds(values: Any) -> lab.Effect:
    """The mean of one value a seed with its 95% interval; unknown where fewer than two are left."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return _too_few(len(array))
    return lab.bootstrap_interval(array)


def worst_over_seeds(records: pl.DataFrame, expression: pl.Expr) -> lab.Effect:
    """The mean over seeds of each seed's largest value."""
    worst = records.group_by("seed").agg(expression.max().alias("worst")).sort("seed")
    return over_seeds(worst["worst"].drop_nulls())


def ratio_over_seeds(first: Mapping[int, float], second: Mapping[int, float]) -> lab.Effect:
    """The geometric mean of first / second, paired by seed; unknown for fewer than two pairs."""
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        return _too_few(len(seeds))
    tiny = np.finfo(np.float64).tiny  # a rank of zero has a ratio too
    return lab.paired_ratio(
        np.maximum([first[seed] for seed in seeds], tiny),
        np.maximum([second[seed] for seed in seeds], tiny),
    )


def _too_few(count: int) -> lab.Effect:
    return lab.Effect(math.nan, (math.nan, math.nan), None, count, "too few runs are left")


@dataclass(frozen=True)
class Verdict:
    """Supported when every check and control passed; refuted when a check's evidence is against it.

    Anything else is inconclusive, a control that did not fail as it must included: then the
    experiment cannot tell.
    """

    outcome: Outcome
    checks: tuple[Check, ...]
    summary: str

    def __repr__(self) -> str:
        passed = sum(check.passed for check in self.checks)
        return f"{self.outcome}: {passed} of {len(self.checks)} checks passed. {self.summary}"


def decide(checks: Sequence[Check], summary: str = "", *, promises_verdict: bool = True) -> Verdict:
    """The verdict that a list of checks amounts to.

    A preset that is too small to tell (`promises_verdict=False`) is inconclusive whatever it saw.
    """
    outcome: Outcome = "inconclusive"
    if promises_verdict:
        controls_hold = all(check.passed for check in checks if check.control)
        if controls_hold and any(check.refuted for check in checks if not check.control):
            outcome = "refuted"
        elif all(check.passed for check in checks):
            outcome = "supported"
    return Verdict(outcome, tuple(checks), summary)


@dataclass(frozen=True)
class Figure:
    """One chart (an altair chart) with a title and a caption that says what to see in it."""

    name: str
    title: str
    caption: str
    chart: Any


@dataclass(frozen=True)
class Claim:
    """A paper's statement, and how it is put to the test.

    Attributes:
        name: what the command line calls it.
        title: the statement in one line.
        paper: authors, title, year and arXiv number or memo.
        statement: what is claimed, in a paragraph.
        corrections: where the literature's wording does not hold, one sentence each.
        config: the frozen dataclass of knobs.
        presets: `smoke`, `small` and `paper` instances of `config`.
        costs: what each preset costs, in words.
        trials: the trials of a configuration and a base seed; each a frozen dataclass.
        group: trials with equal keys may run as one batched program.
        group_size: at most so many trials run as one.
        run: runs one group; returns the records (flat dictionaries) of each trial, in order.
        judge: the verdict rule, from the records of all trials.
        figures: the charts of the report.
        table: the numbers behind the verdict, for the terminal and the report.
    """

    name: str
    title: str
    paper: str
    statement: str
    corrections: tuple[str, ...]
    config: type
    presets: Mapping[str, Any]
    costs: Mapping[str, str]
    trials: Callable[[Any, int], Sequence[Any]]
    group: Callable[[Any], Hashable]
    group_size: int
    run: Callable[[Sequence[Any]], Sequence[Sequence[Mapping[str, Any]]]]
    judge: Callable[[pl.DataFrame, Any], Verdict]
    figures: Callable[[pl.DataFrame, Any], Sequence[Figure]]
    table: Callable[[pl.DataFrame, Any], pl.DataFrame]
