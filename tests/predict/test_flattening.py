"""The rate at which label noise flattens a diagonal network, against recursions written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from undertow.predict import label_noise_flattening, local_drift_multiplier

N, D = 3, 5


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed).normal
    return draw(size=(N, D)), draw(size=D), draw(size=D)


def gradients() -> np.ndarray:
    x, u, v = problem()
    return np.concatenate([2 * u * x, -2 * v * x], axis=1)


def flattest() -> tuple[float, np.ndarray]:
    """The trace of the Hessian, and the part of its gradient that keeps the fit."""
    x, u, v = problem()
    rows, squares = gradients(), (x**2).mean(0)
    slope = 8 * np.concatenate([squares * u, squares * v])
    slope -= np.linalg.pinv(rows) @ (rows @ slope)
    return float(4 * squares @ (u**2 + v**2)), slope


def written_out(lr: float, workers: int, period: int, noise: float) -> float:
    """By the covariances of one worker and of a pair, iterated over rounds in parameter space."""
    rows = gradients()
    hessian = rows.T @ rows / N
    step = np.eye(2 * D) - lr * hessian
    start = np.zeros_like(hessian)
    for _ in range(3_000):
        own, pair, total = start, start, np.zeros_like(start)
        for _ in range(period):
            total = total + own
            squares = np.einsum("ia,ab,ib->i", rows, own, rows) + noise**2
            own = own - lr * (hessian @ own + own @ hessian)
            own += lr**2 * (rows.T * squares) @ rows / N
            pair = step @ pair @ step
        start = (own + (workers - 1) * pair) / workers
    x, _, _ = problem()
    bends = np.concatenate([2 * x, -2 * x], axis=1)
    drift = -lr * (bends * (rows @ total / period)).mean(0)
    trace, slope = flattest()
    return float(slope @ drift) / trace


@pytest.mark.parametrize(("workers", "period"), [(1, 1), (1, 4), (3, 1), (3, 5)])
def test_covariances_of_single_samples_are_those_of_the_recursion(
    workers: int, period: int
) -> None:
    x, u, v = problem()
    found = label_noise_flattening(x, u, v, lr=0.02, num_workers=workers, period=period, noise=0.7)
    assert found == pytest.approx(written_out(0.02, workers, period, 0.7), rel=1e-6)


def rate(lr: float, **options: Any) -> float:
    return label_noise_flattening(*problem(), lr=lr, **options)


def test_at_small_rates_it_is_the_gradient_flow_of_the_trace() -> None:
    trace, slope = flattest()
    for form in ("additive", "sampled"):
        found = rate(1e-6, noise=2.0, form=form) / 1e-12
        assert found == pytest.approx(-4 * slope @ slope / (4 * trace), rel=1e-3)


def test_workers_multiply_it_by_a_mean_of_their_multipliers() -> None:
    values = np.linalg.eigvalsh(gradients() @ gradients().T / N)
    for period in (1, 10, 1000):
        gain = rate(0.01, num_workers=8, period=period, form="additive") / rate(
            0.01, num_workers=8, form="additive"
        )
        each = local_drift_multiplier(0.01, values, num_workers=8, period=period)
        assert np.min(each) <= gain * (1 + 1e-9)
        assert gain <= np.max(each) * (1 + 1e-9)


def test_one_worker_has_no_rounds() -> None:
    assert rate(0.01, period=50) == pytest.approx(rate(0.01))
    assert rate(0.01, num_workers=4, form="additive") == pytest.approx(
        rate(0.01, form="additive") / 4
    )


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="form must be 'additive' or 'sampled', got 'exact'"):
        rate(0.01, form="exact")
    with pytest.raises(ValueError, match="lr must be so small that steps on single samples rest"):
        rate(1.0)
    with pytest.raises(ValueError, match="inputs must be independent"):
        label_noise_flattening(np.ones((2, 3)), np.ones(3), np.ones(3), lr=0.01)
    with pytest.raises(TypeError, match="num_workers"):
        rate(0.01, num_workers=1.5)
