"""The rounds of a run against `predict.sync_rounds`, and the outer step against torch.optim.SGD."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from undertow.predict import sync_rounds
from undertow.train import Outer, Rounds


def _lengths(rounds: Rounds, lr: list[float]) -> list[int]:
    found: list[int] = []
    while sum(found) < len(lr):
        found.append(rounds.length(sum(found), lr[sum(found)]))
    return found


@given(
    st.lists(st.floats(0.001, 1), min_size=2, max_size=60),
    st.floats(0.01, 3),
    st.integers(1, 9),
    st.data(),
)
def test_rounds_seen_one_by_one_are_those_of_the_whole_schedule(
    lr: list[float], alpha: float, base: int, data: st.DataObject
) -> None:
    warm = data.draw(st.integers(0, len(lr) - 1))
    settings: dict[str, Any] = {"alpha": alpha, "base": base, "warmup_steps": warm}
    rounds = Rounds("qsr", peak_lr=max(lr), total_steps=len(lr), **settings)
    assert _lengths(rounds, lr) == sync_rounds(np.array(lr), **settings).periods.tolist()


def test_fixed_and_own_periods_end_with_the_run() -> None:
    assert _lengths(Rounds(4, total_steps=10), [0.1] * 10) == [4, 4, 2]
    growing = Rounds(lambda step, lr: 1 + step, total_steps=10)
    assert _lengths(growing, [0.1] * 10) == [1, 2, 4, 3]
    assert Rounds(4).length(8, 0.1) == 4


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"period": 0}, "period"),
        ({"period": "always"}, "qsr"),
        ({"period": "qsr"}, "alpha"),
        ({"period": 4, "alpha": 0.1}, "alpha"),
        ({"period": "qsr", "alpha": -1.0}, "alpha"),
        ({"period": "qsr", "alpha": 0.1, "base": 0}, "base"),
        ({"period": "qsr", "alpha": 0.1, "warmup_steps": 5}, "peak_lr"),
        ({"period": 4, "total_steps": 0}, "total_steps"),
    ],
)
def test_rounds_that_cannot_be_meant_are_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Rounds(**settings)
    with pytest.raises(TypeError, match="period"):
        Rounds(2.5)  # type: ignore[arg-type]


def test_a_rate_of_zero_needs_the_end_of_the_run() -> None:
    with pytest.raises(ValueError, match=r"rate is 0\.0 at the start of the round after step 6"):
        Rounds("qsr", alpha=0.1).length(6, 0.0)
    assert Rounds("qsr", alpha=0.1, total_steps=10).length(6, 0.0) == 4
    with pytest.raises(ValueError, match="what period returns must be at least 1"):
        Rounds(lambda step, lr: 0).length(3, 0.1)


@pytest.mark.parametrize("outer", [Outer(), Outer(0.5), Outer(0.7, 0.9), Outer(0.7, 0.9, True)])
def test_the_outer_step_is_that_of_sgd_on_the_averaged_difference(outer: Outer) -> None:
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(7, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    reference = torch.optim.SGD(
        [parameter], lr=outer.lr, momentum=outer.momentum, nesterov=outer.nesterov
    )
    velocity = torch.zeros_like(start) if outer.momentum else None
    for _ in range(4):
        average = start + torch.randn(7, generator=generator, dtype=torch.float64)
        parameter.grad = start - average
        reference.step()
        outer.step_(start, average, velocity)
        torch.testing.assert_close(average, parameter.detach(), rtol=1e-12, atol=1e-12)
        start = average


@pytest.mark.parametrize("settings", [(0.0,), (1.0, 1.0), (1.0, -0.1), (1.0, 0.0, True)])
def test_outer_settings_that_cannot_be_meant_are_refused(settings: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"Outer|momentum"):
        Outer(*settings)
