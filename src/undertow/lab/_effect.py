"""What a statistic returns, and the checks that every statistic makes of its input."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from undertow.lab._intervals import Array, Interval

UNKNOWN = (math.nan, math.nan)


@dataclass(frozen=True, repr=False)
class Effect:
    """An effect size with its confidence interval.

    Attributes:
        value: the effect.
        interval: its confidence interval (95% unless asked otherwise); NaN where there is none.
        p_value: of the test that belongs to the effect, where there is one.
        count: the number of values, pairs or points it rests on.
        method: how it was computed.
        note: what to know before relying on it; empty when nothing is unusual.
        seeds: how many seeds it rests on; None of what no seed had a part in.
    """

    value: float
    interval: Interval
    p_value: float | None
    count: int
    method: str
    note: str = ""
    seeds: int | None = None

    def __repr__(self) -> str:
        low, high = self.interval
        p_value = "" if self.p_value is None else f", p = {self.p_value:.2g}"
        note = f"; {self.note}" if self.note else ""
        return (
            f"{self.value:.4g} [{low:.4g}, {high:.4g}]{p_value}, "
            f"n = {self.count} ({self.method}{note})"
        )


def finite_values(name: str, values: ArrayLike) -> Array:
    """`values` as an array `[n]`; ValueError when there are none or one is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(
            f"{name}: expected at least one number in one dimension, got {array.shape}"
        )
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise ValueError(
            f"{name}: {bad} of {len(array)} values are NaN or infinite; leave out what diverged, "
            "and say so, before asking for an effect"
        )
    return array


def paired_values(
    a: ArrayLike, b: ArrayLike, *, names: tuple[str, str] = ("a", "b")
) -> tuple[Array, Array]:
    """Two arrays `[n]`; ValueError when their lengths differ."""
    first, second = finite_values(names[0], a), finite_values(names[1], b)
    if len(first) != len(second):
        raise ValueError(
            f"{names[0]} and {names[1]}: expected pairs, got {len(first)} and {len(second)} values"
        )
    return first, second


def cluster_members(clusters: Sequence[Hashable], count: int) -> list[NDArray[np.intp]]:
    """The indices of each cluster's points, clusters in order of appearance."""
    if len(clusters) != count:
        raise ValueError(f"clusters: expected {count} labels, one per point, got {len(clusters)}")
    members: dict[Hashable, list[int]] = {}
    for index, label in enumerate(clusters):
        members.setdefault(label, []).append(index)
    return [np.array(indices) for indices in members.values()]
