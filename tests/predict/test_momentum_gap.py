"""The exact gap between momentum and SGD on a quadratic, against simulated paths."""

from __future__ import annotations

import math

import numpy as np
import pytest

from undertow import predict


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_the_recursion_is_the_mean_over_simulated_paths(spread: float) -> None:
    """Gaussian noise of variance (1 + spread x^2) / lr, 200,000 paths of both methods."""
    lr, momentum = 1 / 16, 1 - 2.0 * (1 / 16) ** 0.5
    generator = np.random.default_rng(3)
    kept = np.array([[momentum], [0.0]])
    place, velocity = np.ones((2, 200_000)), np.zeros((2, 200_000))
    gaps = []
    for step in range(1, 33):
        noise = generator.standard_normal(place.shape[1]) / math.sqrt(lr)
        gradient = place + np.sqrt(1 + spread * place**2) * noise
        velocity = kept * velocity + (1 - kept) * gradient
        place = place - lr * velocity
        if step % 8 == 0:
            squares = (place**2).mean(1)
            gaps.append(abs(squares[0] - squares[1]))
    assert max(gaps) == pytest.approx(predict.momentum_gap(lr, momentum, spread=spread), rel=0.05)


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_the_recursion_is_exactly_the_mean_over_all_coins(spread: float) -> None:
    """Noise of two values has the variance too, and in eight steps there are 256 paths."""
    lr, momentum = 1 / 4, 0.6
    kept = np.array([[momentum], [0.0]])
    place, velocity, gaps = np.ones((2, 256)), np.zeros((2, 256)), []
    for step in range(8):
        coins = 2.0 * (np.arange(256) >> step & 1) - 1
        gradient = place + np.sqrt((1 + spread * place**2) / lr) * coins
        velocity = kept * velocity + (1 - kept) * gradient
        place = place - lr * velocity
        if step % 2:
            gaps.append(abs(float(np.diff((place**2).mean(1))[0])))
    assert predict.momentum_gap(lr, momentum, spread=spread) == pytest.approx(max(gaps), rel=1e-12)


def test_no_momentum_leaves_no_gap() -> None:
    assert predict.momentum_gap(1 / 64, 0.0) == 0


def test_the_gap_vanishes_with_the_rate_at_fixed_momentum() -> None:
    gaps = [predict.momentum_gap(2.0**-n, 0.5) for n in (10, 12)]
    assert math.log(gaps[0] / gaps[1]) / math.log(4) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0.0, 0.5), "lr"), ((0.1, 1.0), "momentum"), ((1.0, 0.5), "horizon must hold at least")],
)
def test_bad_arguments_are_named(arguments: tuple[float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict.momentum_gap(*arguments)
