"""The initial spectrum against random draws, and survivor counts against matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow.predict import (
    decay_exponent,
    decay_factor,
    forecast_rank,
    initial_spectrum,
    initial_std,
    surviving_rank,
)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "cols"), [(300, 300), (300, 310), (200, 500), (60, 900)])
@pytest.mark.parametrize("entries", ["normal", "uniform"])
def test_quantiles_are_those_of_a_random_matrix(rows: int, cols: int, entries: str) -> None:
    generator = np.random.default_rng(0)
    std = initial_std("pytorch", fan_in=cols)
    if entries == "normal":
        draw = generator.normal(scale=std, size=(rows, cols))
    else:
        draw = generator.uniform(-1, 1, size=(rows, cols)) / math.sqrt(cols)
    found = initial_spectrum(rows, cols, std)
    values = np.linalg.svd(draw, compute_uv=False)
    assert np.abs(found - values).max() < 0.03 * values[0]
    assert np.abs(found - values).mean() < 0.005 * values[0]


def test_square_matrix_follows_the_quarter_circle() -> None:
    """P(s <= 2 x sqrt(n)) = (2 / pi)(x sqrt(1 - x^2) + asin x)."""
    n = 500
    x = initial_spectrum(n, n, 1.0) / (2 * math.sqrt(n))
    below = 2 / math.pi * (x * np.sqrt(1 - x**2) + np.arcsin(x))
    np.testing.assert_allclose(below, (n - np.arange(n) - 0.5) / n, atol=1e-6)


@given(st.integers(1, 300), st.integers(1, 300), st.floats(1e-3, 10))
def test_spectrum_has_the_moments_and_edges_of_the_law(rows: int, cols: int, std: float) -> None:
    found = initial_spectrum(rows, cols, std)
    short, long = min(rows, cols), max(rows, cols)
    assert len(found) == short
    assert (np.diff(found) <= 0).all()
    edges = std * (math.sqrt(long) + math.sqrt(short)), std * (math.sqrt(long) - math.sqrt(short))
    assert edges[1] * (1 - 1e-9) <= found[-1] <= found[0] <= edges[0] * (1 + 1e-9)
    if short >= 30:  # ||W||_F^2 = rows cols std^2, up to the rounding of a sum by its midpoints
        assert (found**2).sum() == pytest.approx(rows * cols * std**2, rel=0.01)
    np.testing.assert_array_equal(found, initial_spectrum(cols, rows, std))


def test_initial_std_is_that_of_the_initialisers() -> None:
    assert initial_std("pytorch", fan_in=12) == pytest.approx(1 / 6)
    assert initial_std("lecun", fan_in=16) == 0.25
    assert initial_std("he", fan_in=8) == 0.5
    assert initial_std("xavier", fan_in=3, fan_out=5) == 0.5
    with pytest.raises(ValueError, match="fan_out"):
        initial_std("xavier", fan_in=3)
    with pytest.raises(ValueError, match="init must be"):
        initial_std("orthogonal", fan_in=3)  # type: ignore[arg-type]


def test_survivors_of_pure_decay_are_the_threshold_rank_of_the_matrix() -> None:
    """Nothing learned but a rank-one spike: W_T = f W_0 + spike counts f s_i(W_0) up to one."""
    generator = np.random.default_rng(1)
    start = generator.normal(size=(80, 60)) / 8
    spike = 30 * np.outer(np.eye(80)[0], np.eye(60)[0])
    values = np.linalg.svd(start, compute_uv=False)
    for steps in (0, 1000, 3000, 5000, 20_000):
        factor = decay_factor(0.1, 1e-2, steps)
        end = factor * start + spike
        norm = np.linalg.norm(end)
        measured = (np.linalg.svd(end, compute_uv=False) > 1e-3 * norm).sum()
        survivors = surviving_rank(values, decay_factor=factor, final_norm=norm)
        assert abs(forecast_rank(survivors, 1) - measured) <= 1
        exponent = decay_exponent(0.1, 1e-2, steps)
        assert surviving_rank(values, exponent, final_norm=norm) == pytest.approx(survivors, abs=1)


@given(st.floats(0, 20), st.floats(0, 5), st.floats(1e-2, 100))
def test_survivors_fall_with_the_exponent_and_the_norm(
    exponent: float, more: float, norm: float
) -> None:
    spectrum = initial_spectrum(40, 60, 0.1)
    count = surviving_rank(spectrum, exponent, final_norm=norm)
    assert 0 <= surviving_rank(spectrum, exponent + more, final_norm=norm) <= count <= 40
    assert surviving_rank(spectrum, exponent, final_norm=(1 + more) * norm) <= count
    # Only f s / ||W_T|| matters.
    shifted = surviving_rank(math.e * spectrum, exponent, final_norm=math.e * norm)
    assert abs(shifted - count) <= 1


def test_members_are_counted_at_once() -> None:
    spectrum = initial_spectrum(20, 30, 0.2)
    exponents, norms = np.linspace(0, 8, 5), np.array([[0.5], [3.0]])
    found = surviving_rank(spectrum, exponents, final_norm=norms)
    assert found.shape == (2, 5)
    for i in range(2):
        for j in range(5):
            alone = surviving_rank(spectrum, exponents[j], final_norm=norms[i, 0])
            assert found[i, j] == alone
    each = surviving_rank(np.stack([spectrum, 2 * spectrum]), 3.0, final_norm=np.array([1.0, 2.0]))
    assert each[0] == each[1]
    np.testing.assert_array_equal(forecast_rank(found, 3), np.maximum(found, 3))


def test_bad_survivor_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="either decay_exponent or decay_factor"):
        surviving_rank(np.ones(3), final_norm=1.0)
    with pytest.raises(ValueError, match="either decay_exponent or decay_factor"):
        surviving_rank(np.ones(3), 1.0, decay_factor=0.5, final_norm=1.0)
    with pytest.raises(ValueError, match="final_norm"):
        surviving_rank(np.ones(3), 1.0, final_norm=-1.0)
    with pytest.raises(ValueError, match="last axis"):
        surviving_rank(np.float64(1.0), 1.0, final_norm=1.0)
    with pytest.raises(TypeError, match="rows must be"):
        initial_spectrum(2.5, 3, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="std"):
        initial_spectrum(2, 3, 0.0)
