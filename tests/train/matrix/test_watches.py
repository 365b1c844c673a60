"""What is kept while descent goes on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from undertow.train import (
    ClosestApproach,
    Crossing,
    EigenvaluesLearned,
    factored_descent,
    recovery_loss,
)

DOUBLE = torch.float64
TARGET = torch.diag(torch.tensor([3.0, 1.0], dtype=DOUBLE))
START = 1e-3 * torch.eye(2, dtype=DOUBLE).expand(3, 2, 2) * torch.tensor([[[1.0]], [[2.0]], [[4]]])


def test_the_closest_approach_is_the_least_of_the_curve_and_when_it_was() -> None:
    near = ClosestApproach(torch.stack([torch.zeros_like(TARGET), TARGET]), every=1)
    factored_descent(recovery_loss(TARGET), START, lr=0.05, steps=200, observe=near)
    least, when = near.curve.min(-1)
    assert near.curve.shape == (3, 2, 201)
    assert torch.equal(near.closest, least)
    assert torch.equal(near.steps, when.double())
    assert near.steps[:, 0].tolist() == [0, 0, 0]  # it only leaves zero
    assert near.closest[:, 1].max() < 1e-2


def test_points_of_the_curve_are_thinned_out_and_the_closest_is_not() -> None:
    every, tenth = (ClosestApproach(TARGET[None], every=count) for count in (1, 10))

    def both(step: int, matrices: torch.Tensor) -> None:
        every(step, matrices)
        tenth(step, matrices)

    factored_descent(recovery_loss(TARGET), START, lr=0.05, steps=95, observe=both)
    assert torch.equal(tenth.curve, every.curve[..., ::10])
    assert torch.equal(tenth.closest, every.closest)


def test_eigenvalues_are_learned_one_after_the_other_and_sooner_from_a_larger_start() -> None:
    learned = EigenvaluesLearned(torch.tensor([1.5, 0.5, 9.0], dtype=DOUBLE)[:2])
    factored_descent(recovery_loss(TARGET), START, lr=0.01, steps=2000, observe=learned)
    assert (learned.steps[:, 0] < learned.steps[:, 1]).all()
    assert (learned.steps[1:] < learned.steps[:-1]).all()
    # From size a the s-th takes log(1 / a) / (lr lambda_s) steps.
    waited = learned.steps[0] - learned.steps[2]
    expected = torch.tensor([math.log(4) / (0.01 * value) for value in (3, 1)], dtype=DOUBLE)
    assert torch.allclose(waited, expected, rtol=0.1)


def test_what_is_never_learned_has_no_step() -> None:
    learned = EigenvaluesLearned(torch.tensor([1.5, 2.0], dtype=DOUBLE), every=7)
    factored_descent(recovery_loss(TARGET), START, lr=0.05, steps=500, observe=learned)
    assert learned.steps[:, 1].isnan().all()
    assert (learned.steps[:, 0] % 7 == 0).all()


@pytest.mark.parametrize("watch", [ClosestApproach, EigenvaluesLearned])
def test_a_watch_that_never_looks_is_refused(watch: Any) -> None:
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        watch(torch.zeros(1, 2, 2), every=0)


def test_a_crossing_is_between_two_steps_and_ends_the_descent() -> None:
    half = Crossing(lambda matrices: matrices[..., 0, 0], 1.5)
    steps: list[int] = []

    def watch(step: int, matrices: torch.Tensor) -> bool:
        steps.append(step)
        return half(step, matrices)

    factored_descent(recovery_loss(TARGET), START, lr=0.01, steps=2000, observe=watch)
    assert (half.before[:, 0, 0] < 1.5).all()
    assert (half.after[:, 0, 0] >= 1.5).all()
    assert half.steps[0] > half.steps[1] > half.steps[2]  # from larger and larger starts
    assert steps[-1] == half.steps.max()
    exact, values = half.singular_values(1.5)
    assert ((half.steps - 1 < exact) & (exact <= half.steps)).all()
    assert torch.allclose(values[:, 0], torch.full((3,), 1.5, dtype=DOUBLE))
    assert (half.before[:, 1, 1] < values[:, 1]).all()
    assert (values[:, 1] < half.after[:, 1, 1]).all()


def test_a_level_that_is_never_reached_has_no_step() -> None:
    never = Crossing(lambda matrices: matrices[..., 0, 0], 4.0)
    factored_descent(recovery_loss(TARGET), START, lr=0.05, steps=300, observe=never)
    assert never.steps.isnan().all()
    assert never.singular_values(4.0)[0].isnan().all()
