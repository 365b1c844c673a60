"""Wilcoxon's signed-rank test, exact also where differences are as large as each other.

Seeds that are drawn twice are such ties; SciPy then permutes, for seconds. The null distribution of
a sum of ranks, each with a sign of chance, is a product of polynomials instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_EXACT = 500  # differences up to which the distribution is written out


def signed_rank_below(differences: Sequence[float]) -> float:
    """The p-value of differences whose median is not below zero, against that it is.

    Zeros take no part, and ranks of a tie are their mean (Wilcoxon 1945). Of more than 500
    differences it is SciPy's approximation.
    """
    array = np.asarray(differences, dtype=np.float64)
    array = array[array != 0]
    if not len(array):
        return 1.0
    from scipy.stats import rankdata, wilcoxon

    if len(array) > _EXACT:
        return float(wilcoxon(array, alternative="less", method="approx").pvalue)
    ranks = np.rint(2 * rankdata(abs(array))).astype(int)  # means of whole numbers: halves
    chance = np.zeros(int(ranks.sum()) + 1)
    chance[0], end = 1.0, 1
    for rank in ranks:
        end += int(rank)
        chance[rank:end] += chance[: end - rank].copy()
        chance[:end] /= 2
    return float(min(1.0, chance[: int(ranks[array > 0].sum()) + 1].sum()))
