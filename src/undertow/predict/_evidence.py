"""How much evidence a mask of square blocks can collect for a label, true or not.

Of attributions that add up, such as those of a linear model, the best mask keeps the blocks whose
sum is positive. Their sums' variance is that of the attributions and of what correlates them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from undertow.predict._arguments import count
from undertow.predict._normal import density, share_below

if TYPE_CHECKING:
    from jaxtyping import Float


def block_evidence(
    mean: Float[np.ndarray, "height width"],
    covariance: Float[np.ndarray, "height width height width"],
    side: int,
) -> float:
    """The mean, over inputs, of the largest sum of attributions that a mask of blocks keeps.

    Attributions A of a label sum to what an input says for it: in a linear softmax A_p =
    (w_a - w_b)_p x_p, in nats of log-odds of label a over b. A mask that is 0 or 1 on blocks of
    side x side pixels keeps at most sum_B max(S_B, 0), with S_B the sum of A over block B. Where
    the S_B are normal, of mean mu_B and variance v_B = sum_{p, q in B} covariance[p, q],

        E = sum_B mu_B Phi(mu_B / v_B^1/2) + v_B^1/2 phi(mu_B / v_B^1/2).

    **White attributions** have v_B = side^2 v, and about a mean of zero E falls as 1 / side. Those
    of images are correlated: v_B grows faster, and E falls more slowly. What speaks *against* the
    label is E of `-mean`; it is larger by the sum of -mean, whatever the side.

    Sums of few pixels have longer tails than normal ones, and E is too large: by a tenth on
    Fashion-MNIST and a quarter on MNIST, at all sides about alike. What one side leaves of another
    is what it is good for.

    Args:
        mean: of the attributions at each pixel, over inputs and wrong labels.
        covariance: of the attributions of every two pixels.
        side: of a block, in pixels, from the first row and column on; those at the end may hang
            over.

    Raises:
        TypeError, ValueError: arrays of another shape, a variance below zero, or a side below 1.

    Source: no paper; derived here, for the certificates of 2211.02912.
    """
    side = count("side", side)
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if mean.ndim != 2 or covariance.shape != mean.shape * 2:
        raise ValueError(
            f"covariance must be of the shape of mean twice, {mean.shape * 2}, and mean of two "
            f"axes, got {covariance.shape} and {mean.shape}"
        )
    rows, columns = (np.arange(0, length, side) for length in mean.shape)
    means = np.add.reduceat(np.add.reduceat(mean, rows, 0), columns, 1)
    # Of each block with itself: the sums over q in every block, then over p, and its diagonal.
    sums = covariance
    for axis, starts in enumerate((rows, columns, rows, columns)):
        sums = np.add.reduceat(sums, starts, axis)
    variances = np.einsum("ijij->ij", sums)
    if not (np.isfinite(means).all() and (variances >= -1e-9 * np.abs(variances).max()).all()):
        raise ValueError("covariance must be finite, of sums whose variance is at least 0")
    deviations = np.sqrt(variances.clip(0))
    z = np.divide(means, deviations, out=np.zeros_like(means), where=deviations > 0)
    found = means * share_below(z) + deviations * density(z)
    return float(np.where(deviations > 0, found, means.clip(0)).sum())
