"""The normal distribution, by numpy alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float64

erf = np.vectorize(math.erf, otypes=[np.float64])


def share_below(z: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """Phi(z): the probability that a standard normal number is below z."""
    return (1 + erf(z / math.sqrt(2))) / 2


def density(z: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """phi(z): the density of standard normal numbers at z."""
    return np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
