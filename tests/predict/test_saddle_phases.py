"""Phases from saddle to saddle: closed forms where every entry is measured, units, and bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow.predict import greedy_exponents, saddle_phases

spectra = st.lists(st.floats(0.1, 1), min_size=1, max_size=4).map(
    lambda steps: np.cumsum(steps)[::-1].tolist()
)


def isotropic(spectrum: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """The spectra at the saddles of ||W - X||^2 / 2, X of these eigenvalues in one dimension more.

    Errors at Z_s mix with the next direction at x_s - x_(s+1), and within at 2 x_s or more.
    """
    following = [*spectrum[1:], 0.0]
    rates = [spectrum[s:] + [0.0] * (s + 1) for s in range(len(spectrum) + 1)]
    return np.array(rates), np.subtract(spectrum, following)


@given(spectra)
def test_with_every_entry_measured_the_eigenvalues_say_it(spectrum: list[float]) -> None:
    phases = saddle_phases(*isotropic(spectrum))
    x = np.array(spectrum)
    y = np.array([*spectrum[1:], 0.0])
    np.testing.assert_allclose([phase.arrival for phase in phases], 1 / x)
    early = [phase.early_exponent for phase in phases]
    np.testing.assert_allclose(early, 2 * (x - y) / (x + y))
    assert early[-1] == pytest.approx(2)


@given(spectra, st.floats(0.1, 10))
def test_exponents_have_no_unit_and_times_have(spectrum: list[float], unit: float) -> None:
    rates, relaxations = isotropic(spectrum)
    one = saddle_phases(rates, relaxations)
    other = saddle_phases(unit * rates, unit * relaxations)
    for first, second in zip(one, other, strict=True):
        assert second.arrival * unit == pytest.approx(first.arrival)
        assert second.exponent == pytest.approx(first.exponent)
        assert second.early_exponent == pytest.approx(first.early_exponent)


@given(spectra, st.floats(0.1, 0.9))
def test_an_approach_bends_to_a_smaller_power_and_slow_errors_cost(
    spectrum: list[float], slower: float
) -> None:
    rates, relaxations = isotropic(spectrum)
    for phase, slow in zip(
        saddle_phases(rates, relaxations), saddle_phases(rates, slower * relaxations), strict=True
    ):
        assert phase.exponent <= phase.early_exponent * (1 + 1e-12)
        assert slow.exponent <= phase.exponent * (1 + 1e-12)
        assert slow.arrival == phase.arrival


def test_the_exponents_are_where_two_parts_of_the_distance_meet() -> None:
    # g = 1/3, k = 1, v = 2; then g = 1/2, k = 1, v = 1; then g = 1, v = 0.
    rates = [[3.0, 2.0, 1.0, 0.0], [2.0, 1.0, 0.0, 0.0], [1.0, 0, 0, 0], [0.0, 0, 0, 0]]
    phases = saddle_phases(np.array(rates), np.ones(3))
    assert [phase.exponent for phase in phases] == pytest.approx([2 / 15, 1 / 3, 2.0])


def test_greedy_learning_is_kept_to_by_the_gap_and_then_by_the_slower_of_two() -> None:
    rates = [[4.0, 3.0, 1.0], [2.0, 1.5, 0.0]]
    assert greedy_exponents(rates, [0.1]) == pytest.approx((0.25, 0.25 * 0.1 / 2))
    assert greedy_exponents(rates, [5.0]) == pytest.approx((0.25, 0.25 * 0.5 / 2))
    assert greedy_exponents([[4.0, 4.0], [2.0, 1.0]], [1.0]) == (0.0, 0.0)


@pytest.mark.parametrize("predicted", [saddle_phases, greedy_exponents])
@pytest.mark.parametrize(
    ("rates", "relaxations", "message"),
    [
        ([3.0, 2.0], [1.0], "rates must be .saddles, directions."),
        ([[3.0, 2.0]], [1.0], "one saddle more than the 1 phases"),
        ([[3.0], [1.0]], [1.0], "more directions than phases"),
        ([[0.0, 0.0], [0.0, 0.0]], [1.0], "rates must be above 0"),
    ],
)
def test_what_does_not_fit_is_named(predicted, rates, relaxations, message) -> None:
    with pytest.raises(ValueError, match=message):
        predicted(rates, relaxations)


@given(spectra, st.floats(0.01, 0.3))
def test_finite_steps_multiply_and_small_ones_are_the_flow(
    spectrum: list[float], lr: float
) -> None:
    rates, relaxations = isotropic(spectrum)
    largest = max(spectrum)
    stepped = saddle_phases(rates, relaxations, lr=lr / largest)
    flow = saddle_phases(rates, relaxations)
    near = saddle_phases(rates, relaxations, lr=1e-9 / largest)
    for one, other, limit in zip(stepped, flow, near, strict=True):
        assert limit.arrival == pytest.approx(other.arrival)
        assert limit.exponent == pytest.approx(other.exponent)
        assert one.arrival > other.arrival  # log(1 + x) < x
    # The first direction is learned after log(1 / scale) / log(1 + lr x) steps.
    assert stepped[0].arrival == pytest.approx(lr / largest / np.log1p(lr))


def test_finite_steps_close_a_gap() -> None:
    rates, relaxations = [[4.0, 2.0, 1.0], [2.0, 1.0, 0.0]], [1.0]
    first, _ = greedy_exponents(rates, relaxations, lr=0.1)
    assert first == pytest.approx(1 - np.log(1.2) / np.log(1.4))
    assert first < greedy_exponents(rates, relaxations)[0]


@pytest.mark.parametrize("lr", [0.0, -1.0, np.nan, 1.0])
def test_a_step_that_oversteps_is_named(lr: float) -> None:
    with pytest.raises(ValueError, match="lr must be"):
        saddle_phases([[3.0, 2.0], [2.0, 0.0]], [1.0], lr=lr)
