"""The round map of Local SGD against models that are linear in their parameters, and its kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from undertow.predict import KernelRounds, arc_cosine_kernel, local_sgd_rounds

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.standard_normal((12, 5))  # fewer than samples: the kernel is singular
KERNEL = FEATURES @ FEATURES.T
START = RANDOM.standard_normal(5)
TARGETS = RANDOM.standard_normal(12)
CLIENTS = np.arange(12).reshape(3, 4)
RESIDUAL = FEATURES @ START - TARGETS
LR = 0.1


def course(**changes: Any) -> KernelRounds:
    given: dict[str, Any] = {"clients": CLIENTS, "period": 6, "lr": LR, "rounds": 5}
    given |= {"residual": RESIDUAL} | changes
    return local_sgd_rounds(given.pop("kernel", KERNEL), **given)


def gradient(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    own = FEATURES[rows]
    return np.asarray(own.T @ (own @ weights - TARGETS[rows]) / len(rows))


def locally(
    weights: np.ndarray, period: int, shown: Callable[[int, int], np.ndarray]
) -> list[np.ndarray]:
    """Each client's parameters after its local steps on linear least squares."""
    ends = []
    for client in range(len(CLIENTS)):
        own = weights.copy()
        for step in range(period):
            own -= LR * gradient(own, shown(client, step))
        ends.append(own)
    return ends


def test_it_is_local_sgd_of_a_model_that_is_linear_in_its_parameters() -> None:
    found, weights = course(), START
    for turn in range(5):
        ends = locally(weights, 6, lambda client, step: CLIENTS[client])
        weights = np.mean(ends, axis=0)
        for client, own in enumerate(ends):
            drift = gradient(own, CLIENTS[client]) - gradient(weights, CLIENTS[client])
            share = np.linalg.norm(drift) / np.linalg.norm(gradient(weights, CLIENTS[client]))
            assert found.distances[turn, client] == pytest.approx(np.linalg.norm(own - weights))
            assert found.gradient_drifts[turn, client] == pytest.approx(share)
        residual = FEATURES @ weights - TARGETS
        np.testing.assert_allclose(found.residuals[turn + 1], residual, atol=1e-12)
        assert found.losses[turn + 1] == pytest.approx((residual**2).mean() / 2)


def test_batches_are_the_product_of_their_own_maps_repeated_rows_counted() -> None:
    chosen = RANDOM.integers(4, size=(2, 3, 6, 3))
    batches = CLIENTS[np.arange(3)[:, None, None], chosen]
    found, weights = course(batches=batches, rounds=2), START
    for turn in range(2):
        own = batches[turn]
        weights = np.mean(locally(weights, 6, lambda k, step, own=own: own[k, step]), axis=0)
    np.testing.assert_allclose(found.residuals[-1], FEATURES @ weights - TARGETS, atol=1e-12)


def test_batches_of_all_samples_are_full_batches() -> None:
    whole = np.broadcast_to(CLIENTS[None, :, None], (5, 3, 6, 4))
    np.testing.assert_allclose(course(batches=whole).residuals, course().residuals, atol=1e-12)


def test_averaging_at_every_step_is_descent_on_all_samples_and_so_is_one_client() -> None:
    every = course(period=1, rounds=30).residuals
    alone = course(clients=[np.arange(12)], period=30, rounds=1)
    np.testing.assert_allclose(every[-1], alone.residuals[-1], atol=1e-12)
    step = np.eye(12) - LR / 12 * KERNEL
    np.testing.assert_allclose(every[-1], np.linalg.matrix_power(step, 30) @ RESIDUAL, atol=1e-12)
    assert alone.distances == pytest.approx(0, abs=1e-7)


def test_it_is_the_inverse_form_where_there_is_an_inverse() -> None:
    kernel = KERNEL + np.eye(12)
    moved = np.zeros(12)
    for rows in CLIENTS:
        inner = kernel[np.ix_(rows, rows)]
        power = np.linalg.matrix_power(np.eye(4) - LR * inner / 4, 6)
        moved += kernel[:, rows] @ np.linalg.solve(inner, (np.eye(4) - power) @ RESIDUAL[rows]) / 3
    found = course(kernel=kernel, rounds=1).residuals[-1]
    np.testing.assert_allclose(found, RESIDUAL - moved, atol=1e-10)


def test_units_and_the_order_of_clients_do_not_matter() -> None:
    scaled = course(kernel=100 * KERNEL, lr=LR / 100)
    np.testing.assert_allclose(scaled.residuals, course().residuals, atol=1e-12)
    turned = course(clients=CLIENTS[::-1])
    np.testing.assert_allclose(turned.distances[:, ::-1], course().distances, atol=1e-12)
    np.testing.assert_allclose(course(residual=3 * RESIDUAL).losses, 9 * course().losses)


def test_clients_of_several_sizes_count_alike() -> None:
    found = course(clients=[[0], range(1, 12)], rounds=0)
    expected = (RESIDUAL[0] ** 2 + (RESIDUAL[1:] ** 2).mean()) / 4
    assert found.losses.tolist() == pytest.approx([expected])
    assert "loss" in repr(course(rounds=1))


def test_the_kernel_is_that_of_many_units() -> None:
    inputs = np.random.default_rng(1).standard_normal((6, 4))
    seen = np.random.default_rng(2).standard_normal((200_000, 4)) @ inputs.T > 0
    empirical = (seen.T @ seen.astype(float)) / len(seen) * (inputs @ inputs.T)
    np.testing.assert_allclose(arc_cosine_kernel(inputs), empirical, atol=0.03)


@pytest.mark.parametrize("angle", [1e-2, 1e-5, 1e-8])
def test_near_duplicates_have_an_eigenvalue_of_their_angle_over_two_pi(angle: float) -> None:
    kernel = arc_cosine_kernel(np.array([[1.0, 0.0], [math.cos(angle), math.sin(angle)]]))
    least = (kernel[0, 0] + kernel[1, 1]) / 2 - kernel[0, 1]
    assert least == pytest.approx(angle / (2 * math.pi), rel=max(2 * angle, 1e-6))


def test_opposite_inputs_share_no_unit_and_equal_ones_all() -> None:
    kernel = arc_cosine_kernel(np.array([[1.0, 2.0], [-1.0, -2.0], [2.0, 4.0]]))
    np.testing.assert_allclose(kernel, [[2.5, 0, 5], [0, 2.5, 0], [5, 0, 10]], atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kernel": KERNEL[:, :4]}, ValueError, "kernel must be a finite square matrix"),
        ({"kernel": KERNEL + np.arange(12.0)}, ValueError, "kernel must be symmetric"),
        ({"residual": RESIDUAL[:5]}, ValueError, "residual must be 12 finite numbers"),
        ({"residual": RESIDUAL * np.nan}, ValueError, "residual must be 12 finite numbers"),
        ({"clients": [[0, 1], [1, 2]]}, ValueError, "each of the rows 0 to 11 once"),
        ({"clients": []}, ValueError, "each of the rows 0 to 11 once"),
        ({"clients": [np.arange(12), []]}, ValueError, r"clients\[1\] must be at least one row"),
        ({"period": 0}, ValueError, "period must be at least 1"),
        ({"period": 1.5}, TypeError, "period must be a whole number"),
        ({"lr": 0.0}, ValueError, "lr must be a finite number above 0"),
        ({"rounds": -1}, ValueError, "rounds must be at least 0"),
        ({"batches": np.zeros((5, 3, 6), int)}, ValueError, "batches must be row numbers"),
        ({"batches": np.zeros((5, 3, 6, 1), int)}, ValueError, "its own rows alone"),
    ],
)
def test_what_cannot_be_forecast_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        course(**changes)


@pytest.mark.parametrize("inputs", [np.zeros((2, 2)), np.ones(3), np.full((2, 2), np.nan)])
def test_inputs_that_no_unit_sees_are_refused(inputs: np.ndarray) -> None:
    with pytest.raises(ValueError, match="inputs must"):
        arc_cosine_kernel(inputs)
