"""The margin to which a run is going, from how its loss falls while its norm grows.

log(1 / Loss) = margin x rho^L - offset (arXiv 1906.05890, where margins do not move): the offset of
the start holds the margin itself down as long as rho^L is small, and does not matter to the slope.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undertow.measure.function._margins import Margins


@dataclass(frozen=True)
class GrowthMargin:
    """A margin from the growth of the norm.

    Attributes:
        value: d (smoothed margin) / d rho^L over the later half of the growth of rho^L.
        stderr: a scale for how far `value` may be from the normalised margin in the limit, and no
            error of chance: the root of the squares of the line's own error and of the change of
            the slope from the earlier half to the later one. No interval is promised by it: a
            direction that turns late is not seen in the readings before.
        smoothed: the smoothed margin of the last reading; gradient flow does not lower it, so it
            is a lower bound.
        offset: what the start costs, in log loss: value x rho^L less the smoothed margin.
        readings: how many there were.
    """

    value: float
    stderr: float
    smoothed: float
    offset: float
    readings: int

    def as_dict(self) -> dict[str, Any]:
        """Every number by its name."""
        return dict(self.__dict__)

    def __repr__(self) -> str:
        return (
            f"Margin {self.value:.4g} from the growth of the norm over {self.readings} readings, "
            f"whose slope still changes by {self.stderr:.2g} (a scale of the error, not an "
            f"interval); the smoothed margin at the last one is {self.smoothed:.4g}, for an offset "
            f"of {self.offset:.3g} in log loss."
        )


def margin_from_growth(readings: Sequence[Margins]) -> GrowthMargin:
    """The normalised margin that a run is going to: the slope of log(1 / Loss) in rho^L.

    What `margins` reads is q_min / rho^L, and where the loss is e^-24 the offset of the start can
    hide most of it. Along a run log(1 / Loss) is nearly a line in rho^L, whose slope is the margin
    without the offset. It is the limit only as far as the slope has settled, which `stderr` is a
    scale of and no test of.

    Args:
        readings: three or more results of `margins` along one run, in order, with the loss below
            its threshold and rho growing; such as at each doubling of log(1 / Loss).

    Raises:
        ValueError: fewer than three readings (two have a slope, and no error bar), one of a network
            that is not homogeneous or with another degree or loss, one above the threshold of its
            loss, or rho^L that does not grow.
    """
    if len(readings) < 3:
        raise ValueError(
            "readings must be at least 3, so that the slope has an error bar, got "
            f"{len(readings)}: measure `margins` at more steps of the run"
        )
    first = readings[0]
    if any(math.isnan(each.degree) for each in readings):
        raise ValueError("readings must be of a homogeneous network; see `homogeneity`")
    if any((each.degree, each.smoothing) != (first.degree, first.smoothing) for each in readings):
        raise ValueError("readings must have one degree and one smoothing: be of one run")
    above = [index for index, each in enumerate(readings) if not each.below_threshold]
    if above:
        raise ValueError(
            f"reading {above[0]} has a loss above its threshold, before which there is no margin "
            "to extrapolate; leave it out"
        )
    logs = np.array([each.log_norms["parameters"] for each in readings])
    # Over the last, so that rho^L may lie outside of float64's range.
    sizes = np.exp(logs - logs[-1])
    if (np.diff(sizes) <= 0).any():
        raise ValueError("readings must be in the order of the run, with rho^L growing between any")
    margins = np.array([each.smoothed_margin for each in readings])
    slope, error = _slope(sizes, margins)
    unit = math.exp(-logs[-1])
    return GrowthMargin(
        value=slope * unit,
        stderr=error * unit,
        smoothed=readings[-1].smoothed,
        offset=slope - float(margins[-1]),
        readings=len(readings),
    )


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """The slope over the later half of x, and how wrong it may be as that of what follows."""
    middle = int(np.clip(np.searchsorted(x, (x[0] + x[-1]) / 2), 1, len(x) - 2))
    (late, error), (early, _) = (
        _line(x[middle:], y[middle:]),
        _line(x[: middle + 1], y[: middle + 1]),
    )
    return late, math.hypot(error, late - early)


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """The least-squares slope, and its standard error; of two points, none."""
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread
    residual = y - y.mean() - slope * centred
    freedom = len(x) - 2
    return slope, math.sqrt(float(residual @ residual) / freedom / spread) if freedom > 0 else 0.0
