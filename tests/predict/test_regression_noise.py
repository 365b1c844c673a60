"""SGD's periodic orbit and its noise, beside SGD itself, step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from undertow.predict import fixed_order_orbit, ridge_noise

GENERATOR = np.random.default_rng(0)
INPUTS = GENERATOR.normal(size=(12, 30))
INPUTS /= np.linalg.norm(INPUTS, axis=1, keepdims=True)
TARGETS = GENERATOR.normal(size=(12, 3))


def epoch(
    weights: np.ndarray, order: np.ndarray, *, lr: float, weight_decay: float, batch_size: int
) -> list[np.ndarray]:
    """The weights after each step of plain SGD on the mean squared error."""
    path = []
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        errors = INPUTS[rows] @ weights.T - TARGETS[rows]
        gradient = 2 * errors.T @ INPUTS[rows] / errors.size
        weights = weights - lr * (gradient + weight_decay * weights)
        path.append(weights)
    return path


@pytest.mark.parametrize("batch_size", [1, 3, 5, 12])
def test_sgd_in_a_fixed_order_stays_on_its_orbit_and_comes_to_it(batch_size: int) -> None:
    options = {"lr": 0.5, "weight_decay": 1e-2, "batch_size": batch_size}
    orbit = fixed_order_orbit(INPUTS, TARGETS, **options)
    order = np.arange(12)
    assert len(orbit) == -(-12 // batch_size) + 1
    np.testing.assert_allclose(orbit[-1], orbit[0], atol=1e-12)
    np.testing.assert_allclose(epoch(orbit[0], order, **options), orbit[1:], atol=1e-12)
    weights = GENERATOR.normal(size=(3, 30))
    for _ in range(6000):
        weights = epoch(weights, order, **options)[-1]
    np.testing.assert_allclose(weights, orbit[0], atol=1e-9)


def test_the_orbit_of_a_full_batch_is_the_ridge_solution_and_has_no_noise() -> None:
    options = {"lr": 0.5, "weight_decay": 1e-2, "batch_size": 12}
    before, after = fixed_order_orbit(INPUTS, TARGETS, **options)
    np.testing.assert_allclose(after, before, atol=1e-12)
    penalty = 1e-2 * TARGETS.size / 2 * np.eye(30)
    ridge = np.linalg.solve(INPUTS.T @ INPUTS + penalty, INPUTS.T @ TARGETS).T
    np.testing.assert_allclose(before, ridge, atol=1e-12)
    assert ridge_noise(INPUTS, TARGETS, **options) == 0


@pytest.mark.parametrize("batch_size", [1, 4])
def test_noise_is_that_of_sgd_to_first_order_in_the_decay(batch_size: int) -> None:
    options = {"lr": 0.5, "weight_decay": 1e-4, "batch_size": batch_size}
    weights, steps = fixed_order_orbit(INPUTS, TARGETS, **options)[0], []
    for _ in range(2000):
        path = epoch(weights, GENERATOR.permutation(12), **options)
        steps += list(np.diff([weights, *path], axis=0))
        weights = path[-1]
    spread = np.array(steps) - np.mean(steps, axis=0)
    moved = np.sqrt((spread**2).sum((1, 2)).mean()) / np.linalg.norm(weights)
    assert ridge_noise(INPUTS, TARGETS, **options) == pytest.approx(moved, rel=0.03)


def test_noise_goes_as_the_decay_and_one_over_the_root_of_the_batch() -> None:
    def noise(weight_decay: float, batch_size: int) -> float:
        options = {"weight_decay": weight_decay, "batch_size": batch_size}
        return ridge_noise(INPUTS, TARGETS, lr=0.1, **options)

    assert noise(2e-6, 1) / noise(1e-6, 1) == pytest.approx(2, rel=1e-3)
    assert noise(1e-2, 1) / noise(1e-2, 4) == pytest.approx((4 * 11 / 8) ** 0.5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 13}, "batch_size must be from 1 to 12, got 13"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"weight_decay": 0.0}, "weight_decay must be above 0"),
        ({"targets": TARGETS[:3]}, "inputs and targets must be matrices of as many rows"),
    ],
)
def test_bad_input_is_named(changed: dict[str, Any], message: str) -> None:
    given = {"targets": TARGETS, "lr": 0.5, "weight_decay": 1e-2, "batch_size": 4} | changed
    for function in (fixed_order_orbit, ridge_noise):
        with pytest.raises(ValueError, match=message):
            function(INPUTS, **given)


def test_steps_that_no_orbit_attracts_are_refused() -> None:
    with pytest.raises(ValueError, match="lr must be so small that an epoch contracts"):
        fixed_order_orbit(INPUTS, TARGETS, lr=40.0, weight_decay=1e-3, batch_size=3)
