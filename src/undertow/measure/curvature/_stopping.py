"""Sampling until the standard error of a mean is small enough, with few looks at it.

Stopping at the first of many looks at which it happens to be small would bias the estimate.
"""

from __future__ import annotations

import math

# Samples before the first look: fewer give no error bar to rely on.
FIRST = 24
# The interval widens by this over the number of samples: to stop where the standard error happens
# to be small makes it small by a part of order 1 / n. Calibrated on traces, of four spectra.
_STOPPING = 2.0


def still_wanted(count: int, stderr: float, target: float, room: int) -> int:
    """How many samples more would bring the standard error to its target, were they alike."""
    if not target:
        return room
    return math.ceil(count * ((stderr / max(target, 1e-300)) ** 2 - 1))


def half_width(stderr: float, count: int) -> float:
    """Half of a 95% interval of the mean, by Student's t."""
    from scipy import stats  # loads slowly

    return float(stats.t.ppf(0.975, count - 1)) * stderr * (1 + _STOPPING / count)
