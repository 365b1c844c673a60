"""What the noise scale says of batch sizes: how far a path is kept, and which rate is the best.

B_noise compares the noise of a gradient with its signal (1812.06162). Below it gradients are mostly
noise, and the rules of stochastic differential equations hold; above it more samples tell little.
"""

from __future__ import annotations

import math
from typing import Literal

from undertow.predict._arguments import count, positive

CLOSENESS = math.sqrt(2)  # the factor that counts as close in 2102.12470


def largest_batch(batch_size: int, noise_scale: float, *, closeness: float = CLOSENESS) -> float:
    """The largest batch to which a run can be scaled up: k B, k = C^2 (1 + N/G) - N/G.

    N/G = `noise_scale` / `batch_size` is the noise-to-signal ratio at the present batch B. Under
    the linear rule a scale-invariant network's ||w||^2 settles in proportion to lr (G + N), which
    grows by (k G + N) / (G + N); within factors C for ||w||^2, G and N that may be C^2. The mean
    square that RMSprop and Adam divide by leaves the square-root rule by the same factor, and their
    steps by its root. In samples: C^2 B + (C^2 - 1) noise_scale. Necessary, not sufficient.

    A stochastic differential equation itself asks for N/G >= 1 / (C^2 - 1): at C^2 = 2, for a
    batch of at most `noise_scale`.

    Args:
        batch_size: B, of the run as it is.
        noise_scale: B_simple = tr Sigma / ||grad L||^2, in samples.
        closeness: C, above 1.

    Raises:
        TypeError: if batch_size is no whole number.
        ValueError: if a value is out of its range.

    Source: 2102.12470, section on necessary conditions, in the form derived here.
    """
    square = positive("closeness", closeness) ** 2
    if square <= 1:
        raise ValueError(f"closeness must be above 1, got {closeness}")
    return square * count("batch_size", batch_size) + (square - 1) * positive(
        "noise_scale", noise_scale
    )


def best_lr(
    batch_size: int, noise_scale: float, *, update: Literal["gradient", "sign"] = "gradient"
) -> float:
    """The rate that a step gains most from at a batch size, over the largest that there is.

    A step theta - lr u lowers a quadratic loss of gradient g and curvature H most, on average, at
    lr = g.E[u] / E[u.H u]. At batch B:

    - u the gradient: E[u.H u] = g.H g + tr(H Sigma) / B, so that

          lr / lr_max = 1 / (1 + B_noise / B),    B_noise = tr(H Sigma) / g.H g

      and lr_max = |g|^2 / g.H g. It rises in proportion to B, and levels off at B_noise.
    - u its sign: E u_i = erf(g_i sqrt(B / 2) / sigma_i), about sqrt(2 B / pi) g_i / sigma_i where
      noise outweighs each g_i, and E[u.H u] = tr H + sum over i != j of H_ij E u_i E u_j. So

          lr / lr_max = 2 / (sqrt(B_noise / B) + sqrt(B / B_noise)),
          B_noise = (pi / 2) tr H / sum over i != j of H_ij g_i g_j / (sigma_i sigma_j)

      It rises like sqrt(B), is largest at B_noise, and falls again: agreeing signs add up along
      curved directions. That is the work of the terms off the diagonal: where their sum is nothing
      or negative there is no fall. Where signs have become sure the rate no longer changes.

    The first B_noise is tr Sigma / |g|^2, as `measure.gradient_noise` has it, where all directions
    curve alike. Of signs it is another number; to put the first in its place is a guess.

    Args:
        batch_size: B.
        noise_scale: B_noise, in samples.
        update: what a step follows.

    Raises:
        TypeError: if batch_size is no whole number.
        ValueError: if a value is out of its range.

    Sources: 1812.06162 (gradients), 2405.14578 (signs); both derived here as above.
    """
    ratio = positive("noise_scale", noise_scale) / count("batch_size", batch_size)
    if update == "gradient":
        return 1 / (1 + ratio)
    if update == "sign":
        return 2 / (math.sqrt(ratio) + 1 / math.sqrt(ratio))
    raise ValueError(f"update must be 'gradient' or 'sign', got {update!r}")


def noise_warnings(noise_scale: float, old_batch: int, new_batch: int) -> list[str]:
    """Where signal dominates, in words."""
    found = []
    square = CLOSENESS**2
    small, large = sorted((old_batch, new_batch))
    most = largest_batch(small, noise_scale)
    if large > most:
        # (k G + N) / (G + N), with N/G = noise_scale / batch
        ratio = (large + noise_scale) / (small + noise_scale)
        found.append(
            f"signal-dominated: mean squared gradients at batches {small} and {large} differ by a "
            f"factor {ratio:.3g} from what the rule keeps, more than {square:.3g}; with noise "
            f"scale {noise_scale:.4g} a batch of {small} scales to at most {most:.5g}"
        )
    if noise_scale / large < 1 / (square - 1):
        found.append(
            f"noise is no longer the larger part of a gradient at batch {large}: N/G = "
            f"{noise_scale / large:.3g} is below 1, so no stochastic differential equation "
            "describes that run"
        )
    return found
