"""How often the intervals of `lab` hold what they should, and how long they are.

A row is a statistic of one distribution. Of `--samples` samples of n seeds: the share whose 95%
interval holds the truth, the median width, and the 99% quantile of the width over that median,
which says how far one odd seed can throw it. Of a test of equivalence: how often it calls alike
what lies just at the margin (nominal: at most 0.05). It prints the table of docs/statistics.md.

    python -m benchmarks.coverage [--samples 4000]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from undertow import lab

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Array]

SEEDS = (8, 12, 24)
POINTS = 5  # of each seed, where it has a line of them


def numbers(draw: Callable[[np.random.Generator, tuple[int, int]], Array], width: int = 1) -> Draw:
    """So many numbers a seed, `[seeds, width]`."""
    return lambda generator, count: draw(generator, (count, width))


DISTRIBUTIONS: dict[str, tuple[Callable[..., Array], float, float]] = {
    # how it is drawn, its median, its mean
    "normal": (lambda g, size: g.normal(size=size), 0.0, 0.0),
    "t3": (lambda g, size: g.standard_t(3, size=size), 0.0, 0.0),
    "exponential": (lambda g, size: g.exponential(size=size), math.log(2), 1.0),
    "lognormal 0.5": (lambda g, size: g.lognormal(0, 0.5, size=size), 1.0, math.exp(1 / 8)),
    "lognormal 1": (lambda g, size: g.lognormal(0, 1, size=size), 1.0, math.exp(1 / 2)),
    "five values": (lambda g, size: g.integers(0, 5, size=size).astype(float), 2.0, 2.0),
}


@dataclass(frozen=True)
class Row:
    """A statistic of a distribution.

    Attributes:
        statistic: what it is called.
        distribution: of what.
        draw: from a generator and the number of seeds to what the statistic is given.
        effect: the statistic.
        truth: what its interval should hold; NaN of a test of equivalence.
        ratio: widths are of logarithms.
    """

    statistic: str
    distribution: str
    draw: Draw
    effect: Callable[[Array], lab.Effect]
    truth: float
    ratio: bool = False


def rows() -> list[Row]:
    """Every row of the table."""
    return [*_medians(), *_shares(), *_clusters(), *_means(), *_equivalences()]


def _medians() -> list[Row]:
    found = []
    for name, (draw, median, _) in DISTRIBUTIONS.items():
        found.append(
            Row("median", name, numbers(draw), lambda x: lab.median_interval(x[:, 0]), median)
        )
    for name in ("normal", "exponential", "lognormal 1"):
        draw, median, _ = DISTRIBUTIONS[name]
        logs = f"exp of {name}"
        found.append(
            Row("median of ratios", logs, numbers(draw), _ratio, math.exp(median), ratio=True)
        )
    return found


def _ratio(x: Array) -> lab.Effect:
    return lab.paired_ratio(np.exp(x[:, 0]), np.ones(len(x)))


def _shares() -> list[Row]:
    def of(share: float) -> Row:
        draw = numbers(lambda g, size: (g.random(size) < share).astype(float))
        return Row("share", f"of {share:g}", draw, _share, share)

    return [of(0.1), of(0.5)]


def _share(x: Array) -> lab.Effect:
    return lab.proportion(int(x.sum()), len(x))


def _clusters() -> list[Row]:
    found = []
    for name in ("normal", "lognormal 1"):
        draw, _, _ = DISTRIBUTIONS[name]
        for kind, spread in (("same x", 0.0), ("own x", 3.0)):
            errors = numbers(draw, POINTS + 1)
            found.append(
                Row("slope in clusters", f"{name}, {kind}", errors, _line(lab.slope, spread), 1.0)
            )
    draw, _, _ = DISTRIBUTIONS["normal"]
    own, each = numbers(draw, POINTS + 1), _line(lab.spearman, 0.0)
    generator = np.random.default_rng(0)
    alone = [each(own(generator, 1)).value for _ in range(4001)]
    truth = float(np.median(alone))
    return [*found, Row("Spearman in clusters", "normal", own, each, truth)]


def _line(statistic: Callable[..., lab.Effect], spread: float) -> Callable[[Array], lab.Effect]:
    def effect(draws: Array) -> lab.Effect:
        x = np.arange(float(POINTS)) * (1 + spread * np.abs(draws[:, -1:])) + spread * draws[:, -1:]
        y = x + draws[:, :-1]
        labels = np.repeat(np.arange(len(draws)), POINTS).tolist()
        return statistic(x.ravel(), y.ravel(), clusters=labels)

    return effect


def _means() -> list[Row]:
    found = []
    for name, (draw, _, mean) in DISTRIBUTIONS.items():
        found.append(Row("bootstrap mean", name, numbers(draw), _bootstrap, mean))
    for name in ("normal", "exponential"):
        draw, _, mean = DISTRIBUTIONS[name]
        found.append(
            Row("log slope of means", name, numbers(_centred(draw, mean), 3), _log_slope, -1.0)
        )
    return found


def _bootstrap(x: Array) -> lab.Effect:
    return lab.bootstrap_interval(x[:, 0], resamples=1000)


def _centred(draw: Callable[..., Array], mean: float) -> Callable[..., Array]:
    """Errors 1, 1/2, 1/4 at levels 1, 2, 4, with noise of a tenth of them."""
    levels = 2.0 ** -np.arange(3)
    return lambda g, size: levels * (1 + 0.1 * (draw(g, size) - mean))


def _log_slope(errors: Array) -> lab.Effect:
    levels = np.log(2.0) * np.arange(3)

    def slope(means: Array) -> float:
        return float(np.polyfit(levels, np.log(np.abs(means)), 1)[0])

    columns = [dict(enumerate(column)) for column in errors.T.tolist()]
    readings = [lab.Reading(lambda _, own=own: lab.PerSeed(own)) for own in columns]
    return lab.of_means(readings, slope).effect({})


def _equivalences() -> list[Row]:
    found = []
    for name in ("normal", "five values", "lognormal 1"):
        draw, median, _ = DISTRIBUTIONS[name]
        for paired in (True, False):
            found.append(
                Row(
                    f"equivalence, {'paired' if paired else 'unpaired'}",
                    name,
                    numbers(draw, 2),
                    _at_margin(median, paired),
                    math.nan,
                )
            )
    return found


def _at_margin(median: float, paired: bool) -> Callable[[Array], lab.Effect]:
    """A difference that lies just at the margin of one: of its median, or of the shift."""

    def effect(draws: Array) -> lab.Effect:
        first, second = draws.T
        if paired:
            return lab.equivalence_test(first - median + 1, 0 * first, margin=1)
        return lab.equivalence_test(first + 1, second, margin=1, paired=False)

    return effect


def measured(row: Row, count: int, samples: int) -> tuple[float, float, float]:
    """Coverage, median width, and its 99% quantile over it; or how often it is called alike."""
    generator = np.random.default_rng(count)
    effects = [row.effect(row.draw(generator, count)) for _ in range(samples)]
    if math.isnan(row.truth):
        alike = [effect.p_value is not None and effect.p_value < 0.05 for effect in effects]
        return float(np.mean(alike)), math.nan, math.nan
    low, high = np.array([effect.interval for effect in effects]).T
    held = float(np.mean((low <= row.truth) & (row.truth <= high)))
    widths = np.log(high / low) if row.ratio else high - low
    median, longest = np.quantile(widths, [0.5, 0.99])
    return held, float(median), float(longest / median) if median else math.nan


def cell(found: tuple[float, float, float]) -> str:
    """`.951 (.79, 1.9)`: coverage, median width, and the longest over it."""
    held, width, longest = found
    text = f"{held:.3f}"
    return text if math.isnan(width) else f"{text} ({width:.2g}, {longest:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4000)
    samples = parser.parse_args().samples
    print("| statistic | of | " + " | ".join(f"n = {count}" for count in SEEDS) + " |")
    print("|---|---|" + "---|" * len(SEEDS))
    for row in rows():
        cells = [cell(measured(row, count, samples)) for count in SEEDS]
        print(f"| {row.statistic} | {row.distribution} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
