"""Completions of rank one that have more nuclear norm than necessary."""

from __future__ import annotations

import math

import pytest
import torch

from undertow import train
from undertow.predict import completion_counterexample


@pytest.mark.parametrize(("dim", "strength"), [(3, 4.0), (3, 2.0), (3, 0.5), (4, 3.0), (4, 1.0)])
def test_the_least_trace_is_that_of_the_convex_completion(dim: int, strength: float) -> None:
    known = completion_counterexample(dim, strength)
    observed = torch.from_numpy(known.observed)
    found = train.nuclear_norm_completion(observed, observed != 0, positive=True)
    assert found.nuclear_norm == pytest.approx(known.least, rel=1e-5)
    assert known.rank_one >= known.least


@pytest.mark.parametrize(("dim", "strength"), [(3, 4.0), (3, 1.5), (4, 3.0)])
def test_greedy_learning_ends_at_rank_one(dim: int, strength: float) -> None:
    known = completion_counterexample(dim, strength)
    observed = torch.from_numpy(known.observed)
    loss = train.completion_loss(observed, observed != 0)
    greedy = train.greedy_low_rank(loss, dim, symmetric=True)
    assert len(greedy.phases) == 1
    assert float(greedy.matrix.trace()) == pytest.approx(known.rank_one, rel=1e-6)


def test_the_gap_of_four_by_four_is_in_closed_form() -> None:
    root = math.sqrt(1 + 4 * 3.0**2)  # the eigenvalues are (root + 1) / 2 and (root - 1) / 2
    assert completion_counterexample(4, 3.0).gap == pytest.approx(2 / (1 + root))


@pytest.mark.parametrize(
    ("dim", "strength", "words"),
    [
        (5, 2.0, "dim must be 3 or 4, got 5"),
        (3, 0.0, "strength must be a finite number above 0"),
        (4, 0.5, "strength must be at least 1 for a dim of 4, got 0.5"),
    ],
)
def test_what_is_no_counterexample_is_named(dim: int, strength: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        completion_counterexample(dim, strength)
