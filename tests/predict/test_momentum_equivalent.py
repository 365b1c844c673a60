"""Momentum's equivalent rate and variance against the moment recursion and the update itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from undertow.predict import averaged_lr, momentum_equivalent


def _stationary_variance(lr: float, momentum: float, eigenvalue: float) -> float:
    """E x^2 of PyTorch's heavy ball with unit noise, by the Lyapunov equation of (x, m)."""
    step = np.array([[1 - lr * eigenvalue, -lr * momentum], [eigenvalue, momentum]])
    push = np.array([-lr, 1.0])
    system = np.eye(4) - np.kron(step, step)
    return float(np.linalg.solve(system, np.outer(push, push).ravel())[0])


@given(st.floats(0.01, 1.9), st.floats(0, 0.99), st.floats(0, 0.99), st.floats(0.1, 10))
def test_variance_ratio_solves_the_moment_recursion(
    curvature: float, momentum: float, to: float, eigenvalue: float
) -> None:
    lr = curvature / eigenvalue * (1 - momentum)
    found = momentum_equivalent(lr, momentum, to=to, sharpness=eigenvalue)
    own = _stationary_variance(lr, momentum, eigenvalue)
    its = _stationary_variance(found.lr, to, eigenvalue)
    assert found.curvature == pytest.approx(curvature)
    assert found.variance_ratio == pytest.approx(own / its, rel=1e-6)


def test_the_ratios_that_the_docstring_states() -> None:
    for curvature, ratio in ((0.01, 0.995), (0.1, 0.953), (0.5, 0.760), (1, 0.514)):
        found = momentum_equivalent(0.1 * curvature, 0.9, sharpness=1.0)
        assert found.variance_ratio == pytest.approx(ratio, abs=6e-4)


@given(st.floats(1e-4, 1), st.floats(0, 0.99), st.floats(0, 0.99))
def test_there_and_back_is_the_identity(lr: float, momentum: float, to: float) -> None:
    there = momentum_equivalent(lr, momentum, to=to)
    back = momentum_equivalent(there.lr, to, to=momentum)
    assert back.lr == pytest.approx(lr)
    assert there.effective_lr == pytest.approx(there.lr / (1 - to))
    averaged = momentum_equivalent(lr, momentum, to=to, form="ema")
    assert averaged.lr == averaged.effective_lr == lr


def test_small_steps_and_no_momentum_leave_no_difference() -> None:
    assert momentum_equivalent(0.3, 0.0, sharpness=1.0).variance_ratio == 1
    tiny = momentum_equivalent(1e-8, 0.9, sharpness=1.0)
    assert tiny.variance_ratio == pytest.approx(1, abs=1e-7)


@given(st.floats(0, 0.95), st.floats(0.5, 1.5))
def test_the_limit_is_where_the_iteration_stops_contracting(momentum: float, share: float) -> None:
    assume(abs(share - 1) > 1e-3)
    limit = momentum_equivalent(1.0, momentum).stability_limit
    lr = share * limit * (1 - momentum)
    step = np.array([[1 - lr, -lr * momentum], [1.0, momentum]])
    assert (np.abs(np.linalg.eigvals(step)).max() < 1) == (share < 1)


def test_where_plain_sgd_is_unstable_the_ratio_is_zero() -> None:
    assert momentum_equivalent(0.3, 0.9, sharpness=1.0).variance_ratio == 0
    assert momentum_equivalent(3.0, 0.0, to=0.9, sharpness=1.0).variance_ratio == math.inf
    with pytest.raises(ValueError, match="neither run is stable"):
        momentum_equivalent(5.0, 0.9, sharpness=1.0)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.99)), min_size=1, max_size=20),
    st.integers(0, 2**32 - 1),
)
def test_averaged_rate_is_what_each_gradient_moves(
    schedule: list[tuple[float, float]], seed: int
) -> None:
    """Heavy ball, run with given gradients, ends at minus the sum of averaged rate x gradient."""
    lr, momentum = np.array(schedule).T
    gradients = np.random.default_rng(seed).standard_normal(len(lr))
    place = buffer = 0.0
    averaged_place = averaged_buffer = 0.0
    for rate, kept, gradient in zip(lr, momentum, gradients, strict=True):
        buffer = kept * buffer + gradient
        place -= rate * buffer
        averaged_buffer = kept * averaged_buffer + (1 - kept) * gradient
        averaged_place -= rate * averaged_buffer
    assert place == pytest.approx(-averaged_lr(lr, momentum) @ gradients, abs=1e-9)
    found = averaged_lr(lr, momentum, form="ema")
    assert averaged_place == pytest.approx(-found @ gradients, abs=1e-9)


def test_constant_schedule_gives_the_effective_rate_until_near_the_end() -> None:
    found = averaged_lr(np.full(400, 0.1), 0.9)
    np.testing.assert_allclose(found[:200], 1.0, rtol=1e-8)
    assert found[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: momentum_equivalent(0.1, 1.0), "momentum must lie"),
        (lambda: momentum_equivalent(0.1, 0.9, to=-0.1), "to must lie"),
        (lambda: momentum_equivalent(-0.1, 0.9), "lr must be"),
        (lambda: momentum_equivalent(0.1, 0.9, form="nesterov"), "form must be"),
        (lambda: momentum_equivalent(0.1, 0.9, sharpness=0), "sharpness must be"),
        (lambda: averaged_lr([0.1], 0.9, form="nesterov"), "form must be"),
        (lambda: averaged_lr([[0.1]], 0.9), "lr must hold"),
        (lambda: averaged_lr([0.1, math.nan], 0.9), "lr must hold"),
        (lambda: averaged_lr([0.1], [0.9, 0.9]), "one per step"),
        (lambda: averaged_lr([0.1], 1.0), "momentum must lie"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_it_reads_like_a_sentence() -> None:
    assert repr(momentum_equivalent(0.01, 0.9)).startswith("Equivalent lr 0.1 (effective 0.1)")
    assert "not alike" in repr(momentum_equivalent(0.1, 0.9, sharpness=1.0))
