"""Synchronisation rule and drift multiplier against the papers' numbers and the recursion."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow.predict import local_drift_multiplier, sync_period, sync_rounds


def _cosine(peak: float, epochs: int, warmup: int) -> np.ndarray:
    steps = np.arange(312 * epochs)
    done = (steps - warmup) / (len(steps) - warmup)
    rising = peak * (steps + 1) / max(warmup, 1)
    return np.where(steps < warmup, rising, peak * (1 + np.cos(np.pi * done)) / 2)


@pytest.mark.parametrize(
    ("peak", "epochs", "warmup", "base", "alpha", "share"),
    [
        (0.008, 300, 10_000, 4, 0.0175, 0.104),
        (0.8, 200, 5 * 312, 2, 0.2, 0.397),
        (0.8, 200, 5 * 312, 4, 0.25, 0.201),
    ],
)
def test_communication_of_the_published_runs(
    peak: float, epochs: int, warmup: int, base: int, alpha: float, share: float
) -> None:
    found = sync_rounds(_cosine(peak, epochs, warmup), alpha=alpha, base=base, warmup_steps=warmup)
    assert found.share == pytest.approx(share, abs=5e-4)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=60),
    st.floats(0.01, 3),
    st.integers(1, 9),
)
def test_rounds_tile_the_run_and_follow_the_rule(lr: list[float], alpha: float, base: int) -> None:
    rounds = sync_rounds(lr, alpha=alpha, base=base)
    assert rounds.periods.sum() == len(lr)
    np.testing.assert_array_equal(rounds.starts[1:], np.cumsum(rounds.periods)[:-1])
    for start, period in zip(rounds.starts[:-1], rounds.periods[:-1], strict=True):
        assert period == sync_period(lr[start], alpha=alpha, base=base)


@given(st.integers(1, 200), st.floats(1e-4, 1), st.integers(1, 20))
def test_period_is_the_square_of_the_ratio_floored(root: int, lr: float, base: int) -> None:
    assert sync_period(lr, alpha=root * lr, base=base) == max(base, root**2)
    assert sync_period(lr, alpha=0, base=base) == base
    assert sync_period(lr, alpha=root * lr, base=base, power=1) == max(base, root)
    assert sync_period(lr, alpha=root * lr, base=base, power=3) == max(base, root**3)


def test_a_rate_next_to_nothing_gives_a_round_longer_than_any_run() -> None:
    assert sync_period(5e-324, alpha=1e300, base=4, power=3) > 10**17


def test_a_small_rate_in_warm_up_does_not_lengthen_the_round() -> None:
    lr = np.concatenate([np.linspace(0.01, 1, 100), np.full(100, 1.0)])
    warmed = sync_rounds(lr, alpha=2.0, base=1, warmup_steps=100)
    assert set(warmed.periods.tolist()) == {4}
    assert sync_rounds(lr, alpha=2.0, base=1).periods[0] == 200


def _drift(lr: float, eigenvalue: float, workers: int, period: int) -> float:
    """Mean square displacement over a round of K workers, per that of parallel SGD, exactly.

    Noise has variance `workers` on a worker and 1 on their mean, which starts at rest.
    """
    keep = (1 - lr * eigenvalue) ** 2
    rest = lr**2 / (1 - keep)
    square, total = rest, 0.0
    for _ in range(period):
        total += square
        square = keep * square + workers * lr**2
    return total / period / rest


@given(st.floats(0.01, 1.9), st.integers(1, 40), st.integers(1, 60))
def test_multiplier_is_the_mean_square_that_workers_gain_over_a_round(
    product: float, workers: int, period: int
) -> None:
    found = local_drift_multiplier(0.5, product / 0.5, num_workers=workers, period=period)
    assert found == pytest.approx(_drift(0.5, product / 0.5, workers, period), rel=1e-9)
    assert 1 - 1e-9 <= found <= workers + 1e-9


@given(st.floats(1e-12, 1e-3), st.integers(1, 300))
def test_flat_directions_keep_their_digits(product: float, period: int) -> None:
    keep = (1 - product) ** 2
    powers = np.power(keep, np.arange(period))
    exact = -np.expm1(np.arange(period) * 2 * math.log1p(-product)).mean()
    assert powers.mean() == pytest.approx(1 - exact, abs=1e-9)
    found = local_drift_multiplier(1.0, product, num_workers=2, period=period)
    assert found - 1 == pytest.approx(exact, rel=1e-6, abs=1e-13)


def test_limits() -> None:
    """One local step or one worker is parallel SGD, long rounds reach K, small lr the formula."""
    eigenvalues = np.array([0.0, 0.3, 2.0, 7.0])
    exact = local_drift_multiplier(0.1, eigenvalues, num_workers=8, period=1)
    np.testing.assert_allclose(exact, 1.0)
    alone = local_drift_multiplier(0.1, eigenvalues, num_workers=1, period=50)
    np.testing.assert_allclose(alone, 1.0)
    long = local_drift_multiplier(0.1, eigenvalues[1:], num_workers=8, period=10**6)
    np.testing.assert_allclose(long, 8.0, rtol=1e-4)
    for lr in (1e-2, 1e-3, 1e-4):
        discrete = local_drift_multiplier(lr, 2.0, num_workers=8, period=round(1 / lr))
        smooth = local_drift_multiplier(
            lr, 2.0, num_workers=8, period=round(1 / lr), continuous=True
        )
        assert abs(discrete - smooth) < 20 * lr
    x = 4.0
    assert smooth == pytest.approx(1 + 7 * (math.exp(-x) - 1 + x) / x)
    spurious = local_drift_multiplier(0.02, 1.0, num_workers=8, period=1, continuous=True)
    assert spurious - 1 == pytest.approx(7 * 0.02, rel=0.02)


def test_an_entry_off_the_diagonal_takes_both_eigenvalues() -> None:
    both = local_drift_multiplier(0.1, 2.0, partner=3.0, num_workers=4, period=9)
    other = local_drift_multiplier(0.1, 3.0, partner=2.0, num_workers=4, period=9)
    assert both == pytest.approx(other)
    keep = (1 - 0.2) * (1 - 0.3)
    psi = 1 - np.power(keep, np.arange(9)).mean()
    assert both == pytest.approx(1 + 3 * psi)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sync_period(0.0, alpha=1, base=1), "lr must be"),
        (lambda: sync_period(0.1, alpha=-1, base=1), "alpha must be"),
        (lambda: sync_period(0.1, alpha=1, base=0), "base must be"),
        (lambda: sync_rounds([[0.1]], alpha=1, base=1), "lr must hold"),
        (lambda: sync_rounds([0.1], alpha=1, base=1, warmup_steps=1), "warmup_steps must"),
        (lambda: local_drift_multiplier(0.1, 1, num_workers=0, period=1), "num_workers must"),
        (lambda: local_drift_multiplier(0.1, 1, num_workers=1, period=0), "period must"),
        (lambda: local_drift_multiplier(0.1, -1, num_workers=1, period=1), "eigenvalue must"),
        (lambda: local_drift_multiplier(1, 2, num_workers=1, period=1), "must be below 2"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_it_reads_like_a_sentence() -> None:
    assert repr(sync_rounds([0.1] * 8, alpha=0.1, base=4)) == (
        "2 rounds of 4 to 4 steps, 25.0% of the communication."
    )
    assert repr(sync_rounds([], alpha=0.1, base=4)) == "No rounds."
