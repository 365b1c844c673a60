"""What survives of a random initialisation: its singular values, shrunk, against a threshold.

An i.i.d. matrix starts with singular values on the Marchenko-Pastur law, and weight decay shrinks
them all alike, so the count above a threshold follows without training.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from undertow.predict._arguments import count, positive

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int

Initializer = Literal["pytorch", "he", "lecun", "xavier"]
"""How the weights of a layer are drawn before training."""

# Points at which the distribution function is tabulated.
_GRID = 2**14


def initial_std(init: Initializer, *, fan_in: int, fan_out: int | None = None) -> float:
    """Standard deviation of an entry of a freshly initialised weight.

    - `pytorch`: 1 / sqrt(3 fan_in), the default of `nn.Linear` and of convolutions
      (uniform on +-1 / sqrt(fan_in));
    - `he`: sqrt(2 / fan_in);
    - `lecun`: 1 / sqrt(fan_in);
    - `xavier`: sqrt(2 / (fan_in + fan_out)).

    A convolution's fan_in is c_in / groups x taps.

    Raises:
        TypeError: if a fan is no whole number.
        ValueError: if `init` is none of these, a fan is below 1, or xavier lacks fan_out.
    """
    fan_in = count("fan_in", fan_in)
    if init == "pytorch":
        return 1 / math.sqrt(3 * fan_in)
    if init == "he":
        return math.sqrt(2 / fan_in)
    if init == "lecun":
        return 1 / math.sqrt(fan_in)
    if init == "xavier":
        if fan_out is None:
            raise ValueError("fan_out is needed for init='xavier'")
        return math.sqrt(2 / (fan_in + count("fan_out", fan_out)))
    raise ValueError(f"init must be 'pytorch', 'he', 'lecun' or 'xavier', got {init!r}")


def initial_spectrum(rows: int, cols: int, std: float) -> Float64[np.ndarray, " values"]:
    """Typical singular values, in descending order, of a rows x cols matrix of i.i.d. entries.

    With k = min(rows, cols), n = max(rows, cols) and aspect = k / n, the squares over n std^2
    follow the Marchenko-Pastur law on [(1 - sqrt(aspect))^2, (1 + sqrt(aspect))^2]; the values
    given are its quantiles at (i - 1/2) / k. Exact as k grows; the law is the same for uniform
    and normal entries. At the edges a draw differs by order k^(-2/3) relative.

    Raises:
        TypeError: if rows or cols is no whole number.
        ValueError: if rows or cols is below 1, or std not above 0.
    """
    short, long = sorted((count("rows", rows), count("cols", cols)))
    scale = positive("std", std) * math.sqrt(long)
    aspect = short / long
    # lambda = 1 + aspect + 2 sqrt(aspect) cos(angle) turns the density into a smooth function:
    # (2 / pi) sin(angle)^2 / lambda, falling from the upper edge at angle 0.
    angle = np.linspace(0, math.pi, _GRID + 1)
    square = 1 + aspect + 2 * math.sqrt(aspect) * np.cos(angle)
    density = np.zeros_like(angle)
    density[1:-1] = np.sin(angle[1:-1]) ** 2 / square[1:-1]
    if short == long:
        density[-1] = 1.0  # the limit of sin^2 / (2 + 2 cos)
    above = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    levels = (np.arange(short) + 0.5) / short
    found = np.interp(levels, above / above[-1], angle)
    return scale * np.sqrt(1 + aspect + 2 * math.sqrt(aspect) * np.cos(found))


def surviving_rank(
    initial_spectrum: Float[np.ndarray, "*batch values"],
    decay_exponent: float | Float[np.ndarray, "*batch"] | None = None,
    *,
    final_norm: float | Float[np.ndarray, "*batch"],
    decay_factor: float | Float[np.ndarray, "*batch"] | None = None,
    threshold: float = 1e-3,
) -> int | Int[np.ndarray, "*batch"]:
    """#{i : f s_i(W_0) > threshold ||W_T||_F}, the initial directions still above the threshold.

    f is exp(-decay_exponent), or the exact `decay_factor`; give one of them. Assumes
    W_T = f W_0 + G_T (SGD without momentum, or decoupled decay; approximate for momentum) and
    that the learned part G_T does not cancel the residue. The threshold rank of W_T is about the
    larger of this count and the rank of G_T (`forecast_rank`).

    Args:
        initial_spectrum: singular values of W_0, measured or from `initial_spectrum`.
        decay_exponent: E, a number or an array that broadcasts against `final_norm`.
        final_norm: ||W_T||_F.
        decay_factor: f in place of exp(-E).
        threshold: relative to `final_norm`.

    Raises:
        ValueError: if both or neither of exponent and factor are given, or a value is negative
            or not finite.
    """
    factor = factor_of(decay_exponent, decay_factor)
    spectrum = nonnegative("initial_spectrum", initial_spectrum)
    if spectrum.ndim == 0:
        raise ValueError("initial_spectrum must hold singular values along its last axis")
    norm = nonnegative("final_norm", final_norm)
    limit = nonnegative("threshold", threshold) * norm
    counts = (factor[..., None] * spectrum > limit[..., None]).sum(axis=-1)
    return int(counts) if counts.ndim == 0 else counts


def forecast_rank(
    survivors: int | Int[np.ndarray, "*batch"], learned_rank: int | Int[np.ndarray, "*batch"]
) -> int | Int[np.ndarray, "*batch"]:
    """The larger of surviving and learned rank, a forecast of the threshold rank of W_T.

    The residue f W_0 and the learned part G_T share directions, so their ranks do not add while
    one of them dominates. Where both lie near the threshold it is an underestimate; from the
    spectrum of G_T `combined_rank` is right there, too.
    """
    larger = np.maximum(survivors, learned_rank)
    return int(larger) if larger.ndim == 0 else larger


def factor_of(
    decay_exponent: float | Float[np.ndarray, "*batch"] | None,
    decay_factor: float | Float[np.ndarray, "*batch"] | None,
) -> Float64[np.ndarray, "*batch"]:
    """f, from whichever of exponent and factor is given."""
    if (decay_exponent is None) == (decay_factor is None):
        raise ValueError("give either decay_exponent or decay_factor")
    if decay_exponent is None:
        return nonnegative("decay_factor", decay_factor)
    return np.exp(-nonnegative("decay_exponent", decay_exponent))


def nonnegative(name: str, value: object) -> np.ndarray:
    """The value as an array; ValueError where a number is negative or not finite."""
    array = np.asarray(value, dtype=np.float64)
    if not np.isfinite(array).all() or (array < 0).any():
        raise ValueError(f"{name} must be finite and >= 0")
    return array
