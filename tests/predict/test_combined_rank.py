"""The rank of a random matrix plus a given one, against draws and at its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.predict import combined_rank, initial_spectrum, initial_std, surviving_rank

SPECTRA = {
    "few": np.concatenate([np.full(10, 3.0), np.zeros(22)]),
    "falling": 3 * np.arange(1.0, 33) ** -1.5,
    "flat": np.full(32, 0.3),
}


@pytest.mark.parametrize("shape", [(32, 32), (32, 288), (40, 32)])
@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("exponent", [0.0, 1.5, 3.0])
def test_it_is_the_mean_of_draws(shape: tuple[int, int], kind: str, exponent: float) -> None:
    generator, learned = np.random.default_rng(0), SPECTRA[kind]
    std = initial_std("pytorch", fan_in=shape[1])
    factor = math.exp(-exponent)
    threshold, counts = 0.08, []
    for _ in range(30):
        # Singular values of a sum depend on those of the fixed part alone: the draw is isotropic.
        sum_ = factor * generator.normal(scale=std, size=shape)
        sum_[:32, :32] += np.diag(learned)
        values = np.linalg.svd(sum_, compute_uv=False)
        counts.append((values > threshold * np.linalg.norm(values)).sum())
    found = combined_rank(learned, exponent, shape=shape, initial_std=std, threshold=threshold)
    assert found == pytest.approx(np.mean(counts), abs=0.6)


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(20, 80), more=st.integers(0, 200), threshold=st.floats(1e-3, 0.2))
def test_of_nothing_learned_it_is_the_surviving_rank(
    rows: int, more: int, threshold: float
) -> None:
    spectrum, norm = initial_spectrum(rows, rows + more, 0.3), 0.3 * math.sqrt(rows * (rows + more))
    found = combined_rank(
        np.zeros(rows), 2.0, shape=(rows, rows + more), initial_std=0.3, threshold=threshold
    )
    alone = surviving_rank(spectrum, 2.0, final_norm=norm * math.exp(-2.0), threshold=threshold)
    assert found == pytest.approx(alone, abs=0.51 + 0.005 * rows)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=20), st.floats(1e-3, 0.5))
def test_of_nothing_left_it_is_the_learned_rank(values: list[float], threshold: float) -> None:
    learned = np.array(values) + 0.1
    ratios = learned / np.linalg.norm(learned)
    if (np.abs(np.log(ratios / threshold)) < 0.01).any():
        return
    found = combined_rank(learned, 40.0, shape=(20, 30), initial_std=1.0, threshold=threshold)
    assert found == pytest.approx((ratios > threshold).sum(), abs=0.1)


@settings(max_examples=10, deadline=None)
@given(scale=st.floats(1e-3, 1e3), exponent=st.floats(0, 6), threshold=st.floats(1e-3, 0.3))
def test_scale_and_transposition_change_nothing(
    scale: float, exponent: float, threshold: float
) -> None:
    learned = SPECTRA["falling"]
    given_ = {"threshold": threshold, "final_norm": 5.0, "initial_std": 0.1}
    found = combined_rank(learned, exponent, shape=(32, 50), **given_)
    assert 0 <= found <= 32
    assert combined_rank(learned, exponent, shape=(50, 32), **given_) == found
    given_ |= {"final_norm": 5.0 * scale, "initial_std": 0.1 * scale}
    scaled = combined_rank(learned * scale, exponent, shape=(32, 50), **given_)
    assert scaled == pytest.approx(found, abs=1e-6)


def test_batches_broadcast_and_a_factor_is_its_exponent() -> None:
    exponents = np.array([0.0, 1.0, 5.0])
    options = {"shape": (32, 288), "initial_std": 0.05, "threshold": 0.1}
    found = combined_rank(SPECTRA["falling"], exponents, **options)
    assert found.shape == (3,)
    for exponent, count in zip(exponents, found, strict=True):
        factor = math.exp(-exponent)
        alone = combined_rank(SPECTRA["falling"], decay_factor=factor, **options)
        assert isinstance(alone, float)
        assert alone == pytest.approx(count)
    many = combined_rank(np.tile(SPECTRA["falling"], (2, 3, 1)), exponents, **options)
    np.testing.assert_allclose(many, np.tile(found, (2, 1)))
    larger = combined_rank(SPECTRA["falling"], exponents, final_norm=np.full(3, 9.0), **options)
    assert (larger <= found).all()


def test_out_of_range() -> None:
    fits = {"shape": (4, 6), "initial_std": 0.1}
    with pytest.raises(ValueError, match="at most 4 singular values"):
        combined_rank(np.ones(5), 1.0, **fits)
    with pytest.raises(ValueError, match="give either decay_exponent or decay_factor"):
        combined_rank(np.ones(4), **fits)
    with pytest.raises(ValueError, match="learned_spectrum must be finite"):
        combined_rank(np.array([-1.0]), 1.0, **fits)
    with pytest.raises(ValueError, match="threshold must be a finite number above 0"):
        combined_rank(np.ones(4), 1.0, threshold=0.0, **fits)
    with pytest.raises(TypeError, match="shape must be a whole number"):
        combined_rank(np.ones(4), 1.0, shape=(4.5, 6), initial_std=0.1)
