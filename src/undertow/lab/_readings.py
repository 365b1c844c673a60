"""Readings: from the records of a study to one number a seed, or to an effect.

    loss = of("networks", "loss", method="momentum") - of("networks", "loss", method="sgd")

The unit of every interval is the seed, and the effect of numbers by seed their median, with an
interval that one odd seed of nine cannot throw. One policy holds for all readings:

- what is null is not there; a seed without a value takes no part, and pairs are seeds with both;
- an experiment without records has no seeds;
- a value that is NaN or infinite makes the effect unknown, unless `known()` leaves it out;
- a ratio is taken within seeds: zero over anything is zero, anything over zero is infinite, and
  zero over zero unknown; so is what is divided by one number for all seeds where that is zero;
- fewer than two seeds leave the effect unknown, a share too; fewer than six have a median without
  end, since no interval of so few covers 95%.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import polars as pl

from undertow.lab._association import slope
from undertow.lab._effect import UNKNOWN, Effect
from undertow.lab._fits import slopes
from undertow.lab._intervals import student_quantile
from undertow.lab._per_seed import PerSeed, unknown

Records = Mapping[str, pl.DataFrame]

KEPT = ~pl.col("diverged").any().over("trial")
"""A condition on records: of trials that did not diverge anywhere."""
How = Literal["mean", "median", "min", "max", "first", "last", "all", "any"]


@dataclass(frozen=True)
class Reading:
    """A function from records to `PerSeed` or `Effect`, with the arithmetic of what it gives."""

    read: Callable[[Records], Any]

    def __call__(self, records: Records) -> Any:
        return self.read(records)

    def __sub__(self, other: Reading | float) -> Reading:
        return self._with(other, operator.sub)

    def __add__(self, other: Reading | float) -> Reading:
        return self._with(other, operator.add)

    def __mul__(self, other: Reading | float) -> Reading:
        return self._with(other, operator.mul)

    def __truediv__(self, other: Reading | float) -> Reading:
        return self._with(other, operator.truediv)

    def __le__(self, bound: float) -> Reading:
        return self.then(lambda found: found <= bound)

    def __lt__(self, bound: float) -> Reading:
        return self.then(lambda found: found < bound)

    def __ge__(self, bound: float) -> Reading:
        return self.then(lambda found: found >= bound)

    def __gt__(self, bound: float) -> Reading:
        return self.then(lambda found: found > bound)

    def __neg__(self) -> Reading:
        return self.then(operator.neg)

    def __abs__(self) -> Reading:
        return self.then(abs)

    def then(self, function: Callable[[Any], Any]) -> Reading:
        """The function of what is read, such as `PerSeed.known` or `PerSeed.share`."""
        return Reading(lambda records: function(self.read(records)))

    def effect(self, records: Records) -> Effect:
        """What is read, as an effect."""
        found = self.read(records)
        return found.effect() if isinstance(found, PerSeed) else found

    def _with(self, other: Reading | float, combine: Callable[[Any, Any], Any]) -> Reading:
        if not isinstance(other, Reading):
            return self.then(lambda found: combine(found, other))
        return Reading(lambda records: combine(self.read(records), other.read(records)))


def per_seed(
    frame: pl.DataFrame,
    value: str | pl.Expr,
    *conditions: pl.Expr | str,
    how: How = "mean",
    **where: Any,
) -> PerSeed:
    """One number a seed from a frame: of the rows that meet the conditions, in the frame's order.

    Args:
        frame: with a column `seed`.
        value: a column, or an expression of columns.
        conditions: expressions or names of boolean columns, all of which must hold.
        how: what becomes of several rows of a seed.
        where: what columns must equal.
    """
    if frame.is_empty():
        return PerSeed({})
    rows = frame.filter(*conditions, **where).select("seed", value=_expression(value)).drop_nulls()
    found = rows.group_by("seed").agg(_one_of(how, rows.schema["value"]))
    return PerSeed(
        {seed: float(number) for seed, number in found.drop_nulls().sort("seed").iter_rows()}
    )


def _one_of(how: How, kind: pl.DataType) -> pl.Expr:
    """One number of several, NaN where one of them is: polars itself would pass over it."""
    number = pl.col("value")
    found: pl.Expr = getattr(number, how)()
    if not kind.is_float() or how not in ("median", "min", "max"):
        return found
    return pl.when(number.is_nan().any()).then(math.nan).otherwise(found).alias("value")


def _expression(value: str | pl.Expr) -> pl.Expr:
    return pl.col(value) if isinstance(value, str) else value


def of(
    experiment: str,
    value: str | pl.Expr,
    *conditions: pl.Expr | str,
    how: How = "mean",
    **where: Any,
) -> Reading:
    """The reading of `per_seed` from the records of one experiment."""
    return Reading(
        lambda records: per_seed(_of(records, experiment), value, *conditions, how=how, **where)
    )


def _of(records: Records, experiment: str) -> pl.DataFrame:
    if experiment not in records:
        known = ", ".join(records)
        raise ValueError(f"no experiment is called {experiment!r}; there are {known}")
    return records[experiment]


def kept(frame: pl.DataFrame) -> pl.DataFrame:
    """The records of the trials that did not diverge; all of them where none can."""
    return frame.filter(KEPT) if "diverged" in frame.columns else frame


def lost(records: Records, *experiments: str) -> tuple[int, int]:
    """How many trials diverged, and how many have records: of these experiments, or of all."""
    frames = [records[name] for name in experiments or records]
    left = sum(kept(frame)["trial"].n_unique() for frame in frames)
    total = sum(frame["trial"].n_unique() for frame in frames)
    return total - left, total


def share(
    experiment: str, holds: pl.Expr | str, *conditions: pl.Expr | str, **where: Any
) -> Reading:
    """The share of seeds in all of whose rows something holds, with its exact interval.

    Unknown where something that is compared is NaN: polars itself takes NaN for the greatest number
    there is, so that `NaN > x` is true.
    """

    def read(records: Records) -> Effect:
        frame, expression = _of(records, experiment), _expression(holds)
        odd = [part.is_nan() for part in _compared(expression, frame)]
        truth = expression.cast(pl.Float64)
        if odd:
            truth = pl.when(pl.any_horizontal(odd)).then(math.nan).otherwise(truth)
        return per_seed(frame, truth, *conditions, how="min", **where).share()

    return Reading(read)


def _compared(expression: pl.Expr, frame: pl.DataFrame) -> list[pl.Expr]:
    """The parts of a condition that are floats themselves: what it compares."""
    if frame.is_empty():
        return []
    (kind,) = frame.lazy().select(expression).collect_schema().dtypes()
    if kind.is_float():
        return [expression]
    parts = expression.meta.pop() if kind == pl.Boolean else []
    return [found for part in parts for found in _compared(part, frame)]


def greatest(readings: Iterable[Reading]) -> Reading:
    """Of several readings the greatest number of each seed; NaN where one of them is.

    A seed counts that any of them has; where one of them has none at all, neither has this.
    """
    every = list(readings)

    def read(records: Records) -> PerSeed:
        found: list[PerSeed] = [reading(records) for reading in every]
        if not all(map(len, found)):
            return PerSeed({})
        values: dict[int, list[float]] = {}
        for own in found:
            for seed, value in own.values.items():
                values.setdefault(seed, []).append(value)
        return PerSeed({seed: float(np.max(own)) for seed, own in sorted(values.items())})

    return Reading(read)


def worst(readings: Iterable[Reading], target: float = 0.0, *, of_ratios: bool = False) -> Reading:
    """Of several readings the effect whose interval reaches farthest from the target.

    One that is unknown is worse than any, and it rests on the fewest seeds of them. Of ratios by
    the factor between the two: half of the target is as far as twice.
    """
    every = list(readings)

    def distance(end: float) -> float:
        if not of_ratios:
            return abs(end - target)
        return abs(math.log(end / target)) if 0 < end < math.inf else math.inf

    def reach(effect: Effect) -> tuple[float, float]:
        return max(map(distance, effect.interval)), distance(effect.value)

    def read(records: Records) -> Effect:
        effects = [reading.effect(records) for reading in every]
        found = max(effects, key=reach, default=unknown())
        for effect in effects:
            if any(map(math.isnan, (effect.value, *effect.interval))):
                found = effect
        seeds = [effect.seeds for effect in effects if effect.seeds is not None]
        return replace(found, seeds=min(seeds, default=found.seeds))

    return Reading(read)


def slope_of(
    experiment: str,
    x: str | pl.Expr,
    y: str | pl.Expr,
    *conditions: pl.Expr | str,
    **where: Any,
) -> Reading:
    """The median of the seeds' own least-squares slopes of y on x, over rows that meet conditions.

    Unknown where a value is not finite, where a seed has fewer than two x, or of fewer than two
    seeds.
    """

    def read(records: Records) -> Effect:
        frame = _of(records, experiment)
        if frame.is_empty():
            return unknown()
        rows = frame.filter(*conditions, **where)
        points = rows.select("seed", x=_expression(x), y=_expression(y)).drop_nulls()
        across, up = (points[name].to_numpy() for name in ("x", "y"))
        counts = points["seed"].n_unique(), points["x"].n_unique()
        if min(counts) < 2:
            return unknown(counts[0])
        if not np.isfinite([across, up]).all():
            return unknown(counts[0], "a value is not finite")
        return slope(across, up, clusters=points["seed"].to_list())

    return Reading(read)


def agreement_of(
    experiment: str,
    x: str | pl.Expr,
    y: str | pl.Expr,
    *conditions: pl.Expr | str,
    **where: Any,
) -> Reading:
    """Each seed's own rank correlation of x and y, Kendall's tau-b, over rows that meet conditions.

    From -1 to 1: of pairs of rows, the share that x and y order alike less the share that they
    order differently, both of those that neither ties. NaN where a seed has fewer than two rows,
    equal x or equal y throughout, or a value that is NaN.
    """

    def read(records: Records) -> PerSeed:
        from scipy.stats import kendalltau

        frame = _of(records, experiment)
        if frame.is_empty():
            return PerSeed({})
        rows = frame.filter(*conditions, **where)
        points = rows.select("seed", x=_expression(x), y=_expression(y)).drop_nulls()
        found = {}
        for own in points.sort("seed").partition_by("seed"):
            tau = kendalltau(own["x"], own["y"]).statistic if len(own) > 1 else math.nan
            found[own["seed"][0]] = float(tau)
        return PerSeed(found)

    return Reading(read)


def slope_by_seed(
    experiment: str, x: pl.Expr, y: pl.Expr, *, smallest: int | None = None, **where: Any
) -> Reading:
    """Each seed's own least-squares slope of y on x, such as the power of a law in logarithms.

    Args:
        experiment: whose records.
        x: an expression of columns.
        y: likewise.
        smallest: how many rows of a seed to fit, those of the smallest x, and a seed with fewer
            has no slope; by default all.
        where: what columns must equal.
    """

    def read(records: Records) -> PerSeed:
        fits = slopes(_of(records, experiment), x, y, smallest=smallest, **where)
        return per_seed(
            fits, "slope", pl.lit(True) if smallest is None else pl.col("points") == smallest
        )

    return Reading(read)


def of_means(
    readings: Sequence[Reading] | Sequence[Sequence[Reading]],
    statistic: Callable[[np.ndarray], float],
    *,
    least: int = 4,
) -> Reading:
    """A statistic of the means of several readings, over the seeds that all of them have.

    For what no single seed has: the slope of a mean curve, the distance between two. Its interval
    is the jackknife's: Student's, about the statistic, with the standard error from leaving out
    each seed in turn (Tukey 1958). Like any of a mean, it needs seeds without long tails, such as
    blocks of many runs.

    Args:
        readings: each to one number a seed; or curves of them, as many in each.
        statistic: from their means, `[readings]` or `[curves, readings]`, to a number.
        least: of fewer seeds than this there is no interval.
    """
    placed = np.array(readings, dtype=object)

    def read(records: Records) -> Effect:
        found = [reading(records).values for reading in placed.flat]
        seeds = sorted(set.intersection(*map(set, found)))
        if not seeds:
            return unknown()
        values = np.array([[own[seed] for own in found] for seed in seeds])
        odd = int((~np.isfinite(values)).any(axis=1).sum())
        if odd:
            return unknown(len(seeds), f"{odd} of {len(seeds)} seeds have no finite value")

        def of_mean(means: np.ndarray) -> float:
            return float(statistic(means.reshape(placed.shape)))

        return _jackknifed(values, of_mean, least)

    return Reading(read)


def _jackknifed(values: np.ndarray, statistic: Callable[[np.ndarray], float], least: int) -> Effect:
    """A statistic of the mean of rows, with an interval from leaving each of them out."""
    count, total = len(values), values.sum(axis=0)
    value = statistic(total / count)
    if count < max(least, 2):
        return Effect(value, UNKNOWN, None, count, "too few seeds", seeds=count)
    without = np.array([statistic((total - own) / (count - 1)) for own in values])
    error = math.sqrt((count - 1) * float(without.var()))
    half = student_quantile(0.95, count - 1) * error
    method = "statistic of means, jackknife"
    return Effect(value, (value - half, value + half), None, count, method, seeds=count)
