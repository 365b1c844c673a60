"""The start of a run and how it fades: initial singular values, and E up to each step."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from undertow import predict
from undertow.predict import Initializer

if TYPE_CHECKING:
    from jaxtyping import Float64


@lru_cache(maxsize=256)  # the layers of a network share few shapes
def initial_values(
    init: Initializer, rows: int, cols: int, taps: int = 1
) -> Float64[np.ndarray, " values"]:
    """Typical singular values of a freshly initialised rows x cols matrix; not to be written to.

    A convolution's matrix is c_out x (c_in / groups x taps), so that its fan_out is rows x taps.
    """
    std = predict.initial_std(init, fan_in=cols, fan_out=rows * taps)
    values = predict.initial_spectrum(rows, cols, std)
    values.flags.writeable = False
    return values


def running_exponent(
    rates: Float64[np.ndarray, " steps"], weight_decay: float, momentum: float
) -> Float64[np.ndarray, " steps_and_one"]:
    """E before the first step and after each: `predict.decay_exponent` as a run goes on."""
    return np.concatenate([[0.0], np.cumsum(rates)]) * weight_decay / (1 - momentum)
