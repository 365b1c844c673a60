"""Wilcoxon's signed-rank test: SciPy's where that is exact, else all signs written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import rankdata, wilcoxon

from undertow.lab._signed_rank import signed_rank_below


@pytest.mark.parametrize("count", [1, 5, 12, 40])
def test_without_ties_it_is_scipys_exact_test(count: int) -> None:
    values = np.random.default_rng(count).normal(-0.3, 1, count)
    expected = wilcoxon(values, alternative="less", method="exact").pvalue
    assert signed_rank_below(values) == pytest.approx(expected, rel=1e-12)


def test_with_ties_it_is_the_share_of_signs() -> None:
    values = np.array([-3, -3, -2, -2, -2, 1, 1, -1, 3, 0, 0.0])
    kept = values[values != 0]
    ranks = rankdata(abs(kept))
    observed = ranks[kept > 0].sum()
    sums = [ranks[list(s)].sum() for s in itertools.product((False, True), repeat=len(kept))]
    assert signed_rank_below(values) == pytest.approx(np.mean(np.array(sums) <= observed))


def test_zeros_alone_say_nothing_and_many_are_approximated() -> None:
    assert signed_rank_below([0.0, 0.0]) == 1.0
    many = np.random.default_rng(0).normal(-0.1, 1, 501)
    assert signed_rank_below(many) == pytest.approx(signed_rank_below(many[:-1]), rel=0.5)
