"""The pace of flattening: closed forms, descent itself, and what several eigenvalues do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.predict import sharpness_speed_limit

SLOPES = st.floats(0, 1e3)


@given(SLOPES)
def test_one_eigenvalue_has_the_formula_either_way(slope: float) -> None:
    pace = sharpness_speed_limit(slope)
    assert -2 < pace <= 0
    assert pace == pytest.approx(-2 * slope**2 / (4 + slope**2), abs=1e-12)
    assert sharpness_speed_limit(gram=np.array([[slope**2]])) == pytest.approx(pace, abs=1e-6)
    np.testing.assert_allclose(sharpness_speed_limit(np.array([slope, 0.0])), [pace, 0], atol=1e-12)


def test_slopes_as_large_as_numbers_are() -> None:
    assert sharpness_speed_limit(1e300) == -2.0
    assert sharpness_speed_limit(1e-200) == 0.0


def separate(squares: list[float]) -> np.ndarray:
    """The Gram matrix of eigenvalues whose gradients are at right angles, others' being zero."""
    rows, columns = np.triu_indices(len(squares))
    return np.diag(np.where(rows == columns, np.array(squares)[rows], 0.0))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.5, 300), min_size=1, max_size=4))
def test_inverse_squares_of_separate_eigenvalues_add_up(squares: list[float]) -> None:
    together = 1 / sum(1 / square for square in squares)
    expected = -2 * together / (4 + together)
    assert sharpness_speed_limit(gram=separate(squares)) == pytest.approx(expected, abs=1e-5)
    alone = sharpness_speed_limit(math.sqrt(min(squares)))
    assert sharpness_speed_limit(gram=separate(squares)) >= alone - 1e-6


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_the_pace_does_not_depend_on_the_basis_of_the_eigenvectors(seed: int) -> None:
    drawn = np.random.default_rng(seed)
    halves = drawn.normal(size=(2, 2, 9))
    gradients = (halves + halves.transpose(1, 0, 2)) / 2
    turn = np.linalg.qr(drawn.normal(size=(2, 2)))[0]
    turned = np.einsum("ia,jb,abp->ijp", turn, turn, gradients)

    def gram(changes: np.ndarray) -> np.ndarray:
        rows = np.stack([changes[0, 0], math.sqrt(2) * changes[0, 1], changes[1, 1]])
        return rows @ rows.T

    paces = [sharpness_speed_limit(gram=gram(changes)) for changes in (gradients, turned)]
    assert paces[0] == pytest.approx(paces[1], abs=1e-6)


def test_opposed_eigenvalues_hold_each_other_up() -> None:
    gram = separate([9.0, 9.0])
    gram[0, 2] = gram[2, 0] = -9.0
    assert sharpness_speed_limit(gram=gram) == pytest.approx(0, abs=1e-5)


def test_descent_with_two_eigenvalues_at_the_edge_keeps_the_pace() -> None:
    """L = (a w3^2 + b w4^2) / (2 ||w||^2), log a and log b two axes times the direction of w0..w2.

    The minimisers are a sphere, on which both are at the edge where the two products are equal.
    """
    first, second = np.array([2.0, 1.5, 0.0]), np.array([2.0, 0.0, 2.25])
    point = np.array([0.6, 0.9, 0.6])
    weights = np.concatenate([point / np.linalg.norm(point), [0.01, 0.013]])
    clock, steps = 2e-5, 40_000
    weights *= math.sqrt(math.exp(first @ point / np.linalg.norm(point)) / 2)
    logs = []
    for step in range(steps + 1):
        if step in (steps // 4, steps):
            plane = weights[:3] / np.linalg.norm(weights[:3])
            logs.append((plane, first @ plane, second @ plane))
        square, flat = weights @ weights, np.linalg.norm(weights[:3])
        heights = np.exp([first @ weights[:3] / flat, second @ weights[:3] / flat])
        shares = weights[3:] ** 2 / square
        gradient = -(heights @ shares) * weights / square
        gradient[3:] += heights * weights[3:] / square
        plane = weights[:3] / flat
        for axis, height, share in zip((first, second), heights, shares, strict=True):
            gradient[:3] += height * share / 2 * (axis - plane * (plane @ axis)) / flat
        weights = (1 - clock) * weights - gradient
    measured = [(logs[1][place] - logs[0][place]) / (0.75 * clock * steps) for place in (1, 2)]
    plane = (logs[0][0] + logs[1][0]) / 2
    plane /= np.linalg.norm(plane)
    changes = [axis - plane * (plane @ axis) for axis in (first, second)]
    rows = np.stack([changes[0], 0 * plane, changes[1]])  # the two never mix
    foreseen = sharpness_speed_limit(gram=rows @ rows.T)
    assert measured == pytest.approx([foreseen, foreseen], rel=0.02)
    alone = [sharpness_speed_limit(float(np.linalg.norm(change))) for change in changes]
    assert max(alone) < 1.1 * foreseen  # alone, either would have been faster


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give slope, or gram"),
        ({"slope": 1.0, "gram": np.eye(1)}, "give slope, or gram"),
        ({"slope": -1.0}, "slope must be finite and at least 0"),
        ({"slope": [1.0, math.nan]}, "slope must be finite and at least 0"),
        ({"slope": "steep"}, "slope must be numbers, got 'steep'"),
        ({"gram": np.eye(2)}, "one for each pair of k eigenvalues"),
        ({"gram": np.zeros((0, 0))}, "one for each pair of k eigenvalues"),
        ({"gram": np.ones(3)}, "one for each pair of k eigenvalues"),
        ({"gram": np.triu(np.ones((3, 3)))}, "symmetric"),
        ({"gram": np.full((1, 1), math.inf)}, "finite and symmetric"),
        ({"gram": -np.eye(1)}, "no eigenvalue below 0"),
    ],
)
def test_what_is_no_gradient_is_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sharpness_speed_limit(**given)
