"""Forecast flips against a network of many units, and their laws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from undertow.predict import ReluFlips, arc_cosine_kernel, local_sgd_rounds, relu_flips

INPUTS = np.random.default_rng(0).standard_normal((8, 6))
INPUTS /= np.linalg.norm(INPUTS, axis=1, keepdims=True)
LABELS = np.where(np.random.default_rng(1).random(8) < 0.5, -1.0, 1.0)
CLIENTS = np.arange(8).reshape(2, 4)


def forecast(width: int = 10_000, **changes: Any) -> ReluFlips:
    some = max(width, 1)
    given: dict[str, Any] = {"clients": CLIENTS, "period": 3, "rounds": 12, "lr": 1 / some}
    given |= {"width": width, "init_std": math.sqrt(2 / some), "residual": -LABELS, "draws": 2_000}
    return relu_flips(INPUTS, **(given | changes))


def trained(width: int) -> tuple[float, float, float]:
    """Flips since the start and of clients, and drift, of a network whose outputs start at 0."""
    random = np.random.default_rng(2)
    half = random.standard_normal((width // 2, 6)) * math.sqrt(2 / width)
    first = np.concatenate([half, half])  # each unit with both signs
    signs = np.repeat([1.0, -1.0], width // 2)
    average, between, drifts = first, [], []

    def gradient(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
        before = INPUTS[rows] @ weights.T
        residual = np.maximum(before, 0) @ signs - LABELS[rows]
        return np.asarray(((before > 0) * residual[:, None] * signs).T @ INPUTS[rows] / len(rows))

    for _ in range(12):
        ends = []
        for rows in CLIENTS:
            own = average.copy()
            for _ in range(3):
                own -= gradient(own, rows) / width
            ends.append(own)
        average = np.mean(ends, axis=0)
        for own, rows in zip(ends, CLIENTS, strict=True):
            between.append(((INPUTS[rows] @ own.T > 0) != (INPUTS[rows] @ average.T > 0)).mean())
            there = gradient(average, rows)
            apart = np.linalg.norm(gradient(own, rows) - there)
            drifts.append(apart / np.linalg.norm(there))
    since = ((INPUTS @ first.T > 0) != (INPUTS @ average.T > 0)).mean()
    return float(since), float(np.mean(between)), float(np.mean(drifts))


def test_flips_and_drift_are_those_of_a_wide_network() -> None:
    width = 40_000
    known, (since, between, drift) = forecast(width), trained(width)
    assert known.since_start[-1] == pytest.approx(since, rel=0.1)
    assert known.between.mean() == pytest.approx(between, rel=0.1)
    assert known.gradient_drifts.mean() == pytest.approx(drift, rel=0.05)


def test_shares_are_of_order_one_over_the_root_of_the_width() -> None:
    narrow, wide = forecast(1_000), forecast(100_000)
    np.testing.assert_allclose(narrow.since_start, 10 * wide.since_start, rtol=1e-9)
    np.testing.assert_allclose(narrow.between, 10 * wide.between, rtol=1e-9)


def test_the_drift_tends_to_that_of_the_kernel_as_the_width_grows() -> None:
    path = local_sgd_rounds(
        arc_cosine_kernel(INPUTS), clients=CLIENTS, period=3, lr=1.0, rounds=12, residual=-LABELS
    )
    beyond = [
        forecast(width).gradient_drifts ** 2 - path.gradient_drifts**2 for width in (100, 10_000)
    ]
    assert (beyond[1] >= 0).all()
    np.testing.assert_allclose(beyond[0], 10 * beyond[1], rtol=1e-6, atol=1e-12)


def test_nothing_flips_where_nothing_is_to_be_learned() -> None:
    known = forecast(residual=np.zeros(8))
    assert known.since_start.tolist() == known.between.tolist() == [0.0] * 12
    assert known.stderr == 0


def test_a_unit_that_stops_being_pushed_is_counted_once() -> None:
    """One sample alone: half of the units move away from zero, half up to zero and no further."""
    known = relu_flips(
        INPUTS[:1],
        width=100,
        init_std=0.1,
        clients=[[0]],
        period=4,
        lr=0.001,
        rounds=3,
        residual=[1.0],
        draws=20_000,
    )
    moved = 0.001 * sum((1 - 0.001 * 100 * 0.5) ** step for step in range(12))
    expected = moved / (2 * 0.1 * math.sqrt(2 * math.pi))  # those with a_j = 1 and 0 < u < moved
    assert known.since_start[-1] == pytest.approx(expected, rel=0.05)
    assert known.between.tolist() == [0.0] * 3
    assert "draws" not in repr(known)


def test_the_error_bar_holds_other_draws() -> None:
    found = [forecast(draws=200, seed=seed) for seed in range(20)]
    ends = np.array([known.since_start[-1] for known in found])
    assert ends.std(ddof=1) == pytest.approx(found[0].stderr, rel=0.6)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"width": 0}, ValueError, "width must be at least 1"),
        ({"rounds": 0}, ValueError, "rounds must be at least 1"),
        ({"draws": 1}, ValueError, "draws must be at least 2"),
        ({"init_std": 0.0}, ValueError, "init_std must be a finite number above 0"),
        ({"seed": 0.5}, TypeError, "seed must be a whole number"),
        ({"clients": [[0, 1]]}, ValueError, "each of the rows 0 to 7 once"),
        ({"init_std": 1e-5}, ValueError, "width = 10000 is too narrow"),
    ],
)
def test_what_cannot_be_forecast_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        forecast(**changes)
