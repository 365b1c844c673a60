"""The hard-margin support vector machine without a bias, exactly, or a proof that there is none.

min ||w||^2 with w . z_n >= 1 for all n, as least-distance programming by non-negative least squares
(Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float64

_KKT = 1e-10  # to which optimality is held
_LEAST = 1e-7  # of a margin over the longest z, below which it is not told from none


def hard_margin(
    rows: Float64[np.ndarray, "points features"], name: str
) -> tuple[Float64[np.ndarray, " features"], Float64[np.ndarray, " points"]]:
    """The w of least norm with w . z >= 1 for all rows z, and its multipliers: w = sum lam_n z_n.

    By Lawson and Hanson, with E the matrix of columns (z_n, 1) and f = (0, ..., 0, 1): let u >= 0
    minimise ||E u - f|| and r = E u - f. If r = 0, sum u_n z_n = 0 with sum u_n = 1, so that no w
    has w . z_n > 0 for all n (Gordan). Else w = -r_z / r_1 is the minimiser. It is computed anew
    from the support {u_n > 0} and held to w . z_n >= 1, lam >= 0 and w = sum lam_n z_n to 1e-10.

    Args:
        rows: z.
        name: of what must be separable, in the error.

    Raises:
        ValueError: no w separates them; the message names the rows of a mixture that is zero.
        RuntimeError: optimality did not come out to 1e-10: rows too near to dependent.
    """
    longest = float(np.linalg.norm(rows, axis=1).max())
    scaled = rows / longest if longest > 0 else rows
    system = np.vstack([scaled.T, np.ones(len(rows))])
    mixture, residual = _non_negative_least_squares(system)
    if -residual[-1] <= _LEAST**2:
        used = ", ".join(map(str, np.flatnonzero(mixture > 0)))
        raise ValueError(
            f"{name} must be separable by a plane through 0, but a mixture of y x of the samples "
            f"{used} is 0: take one of them out, or add a constant feature for a bias"
        )
    support = mixture > 0
    # Of the support alone, without the rounding of the search.
    w = np.linalg.lstsq(scaled[support], np.ones(int(support.sum())), rcond=None)[0]
    multipliers = np.zeros(len(rows))
    multipliers[support] = np.linalg.lstsq(scaled[support].T, w, rcond=None)[0]
    size = float(np.linalg.norm(w))
    worst = max(
        1 - float((scaled @ w).min()),
        -float(multipliers.min()) / float(multipliers.max()),
        float(np.linalg.norm(w - scaled.T @ multipliers)) / size,
    )
    if worst > _KKT:
        raise RuntimeError(
            f"the largest margin of {name} was found to {worst:.1e} only, not to {_KKT:g}: some of "
            "its samples are nearly dependent; leave out such twins, or average features"
        )
    return w / longest, multipliers / longest**2


def _non_negative_least_squares(
    system: Float64[np.ndarray, "rows columns"],
) -> tuple[Float64[np.ndarray, " columns"], Float64[np.ndarray, " rows"]]:
    """The u >= 0 that minimises ||E u - f|| with f = (0, ..., 0, 1), and E u - f."""
    goal = np.zeros(len(system))
    goal[-1] = 1.0
    columns = system.shape[1]
    found, free = np.zeros(columns), np.zeros(columns, dtype=bool)
    tiny = 1e-15 * columns
    for _ in range(10 * columns + 100):
        residual = system @ found - goal
        gain = np.where(free, -np.inf, -system.T @ residual)
        best = int(gain.argmax())
        if free.all() or gain[best] <= tiny:
            break
        free[best] = True
        while True:
            solved = np.zeros(columns)
            solved[free] = np.linalg.lstsq(system[:, free], goal, rcond=None)[0]
            below = free & (solved <= 0)
            if not below.any():
                found = solved
                break
            # As far towards it as all stay non-negative; what gets to zero is held there.
            apart = found[below] - solved[below]
            far = float(np.min(np.divide(found[below], apart, out=0 * apart, where=apart > 0)))
            found = found + far * (solved - found)
            free &= found > tiny
            found[~free] = 0.0
    return found, system @ found - goal
