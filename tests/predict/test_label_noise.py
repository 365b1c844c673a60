"""The drift along minima under label noise, against its limit, its equation and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest

from undertow import predict

SETTING: dict[str, Any] = {"noise": 0.5, "product": 1.0, "imbalance": 3.0, "time": 2.0}


def test_as_the_rate_falls_the_drift_is_that_of_the_noise_whatever_the_momentum() -> None:
    for momentum in (0.0, 0.5, 0.9, 0.99):
        found = predict.label_noise_drift(1e-7, momentum, **SETTING)
        assert found == pytest.approx(-(0.5**2) * 2.0, rel=1e-5)


def test_two_times_follow_each_other() -> None:
    whole = predict.label_noise_drift(0.1, 0.9, **SETTING)
    half = predict.label_noise_drift(0.1, 0.9, **SETTING | {"time": 1.0})
    then = SETTING | {"time": 1.0, "imbalance": 3.0 * math.exp(half)}
    assert half + predict.label_noise_drift(0.1, 0.9, **then) == pytest.approx(whole, rel=1e-9)


def test_sgd_drifts_faster_than_momentum_at_a_finite_rate() -> None:
    plain, slow = (predict.label_noise_drift(0.2, momentum, **SETTING) for momentum in (0.0, 0.9))
    assert plain < slow < -0.5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.0}, "lr must be"),
        ({"momentum": 1.0}, "momentum"),
        ({"imbalance": -1.0}, "imbalance must be"),
        ({"lr": 0.7}, "where the minimum at the start loses its stability, got 0.7"),
    ],
)
def test_what_is_out_of_range_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict.label_noise_drift(**{"lr": 0.1, "momentum": 0.0, **SETTING, **changed})
