"""Schedules as functions of the step: closed forms, and one value a step however they are asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.train.schedules import Constant, Cosine, StepDecay

SCHEDULES = (Constant(), StepDecay((30, 10), 0.3), Cosine(40), Cosine(40, warmup=7, floor=0.1))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@given(first=st.integers(0, 60), count=st.integers(0, 30))
@settings(max_examples=30, deadline=None)
def test_a_factor_depends_on_its_step_alone(schedule: Constant, first: int, count: int) -> None:
    whole = schedule(np.arange(100))
    part = schedule(np.arange(first, first + count))
    assert part.shape == (count,)
    assert part.dtype == np.float64
    assert np.array_equal(part, whole[first : first + count])
    assert bool(np.all((whole >= 0) & (whole <= 1)))


def test_step_decay_multiplies_at_each_milestone() -> None:
    factors = StepDecay((30, 10), 0.3)(np.array([0, 9, 10, 29, 30, 1000]))
    np.testing.assert_allclose(factors, [1, 1, 0.3, 0.3, 0.09, 0.09], rtol=1e-15)


def test_step_decay_is_the_multi_step_scheduler_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5], gamma=0.1)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(StepDecay((3, 5))(np.arange(8)), rates, rtol=1e-12)


def test_cosine_warms_up_linearly_and_ends_at_its_floor() -> None:
    schedule = Cosine(40, warmup=8, floor=0.2)
    np.testing.assert_allclose(schedule(np.arange(8)), np.arange(1, 9) / 8)
    assert schedule(np.array([8]))[0] == 1
    assert schedule(np.array([24]))[0] == pytest.approx(0.6)  # half way, half way down
    np.testing.assert_allclose(schedule(np.array([40, 41, 1000])), 0.2)
    assert bool(np.all(np.diff(schedule(np.arange(8, 41))) < 0))


@pytest.mark.parametrize(("total", "warmup"), [(10, 10), (10, 11), (10, -1), (0, 0)])
def test_a_warm_up_must_end_before_the_total(total: int, warmup: int) -> None:
    with pytest.raises(ValueError, match=f"warmup must be .*got {warmup} of {total}"):
        Cosine(total, warmup=warmup)


def test_schedules_can_be_fields_of_a_trial() -> None:
    assert (
        len({Constant(), Constant(), Cosine(5), Cosine(5), StepDecay((1,)), StepDecay((1,))}) == 3
    )
