"""Decay exponents and factors against products taken step by step."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow.predict import decay_exponent, decay_factor, null_space_decay

rates = st.lists(st.floats(0, 1), min_size=0, max_size=30)


@given(rates, st.floats(0, 0.5))
def test_factor_is_the_product_and_exponent_the_sum_over_steps(
    lr: list[float], weight_decay: float
) -> None:
    assert decay_factor(lr, weight_decay) == pytest.approx(
        math.prod(1 - rate * weight_decay for rate in lr)
    )
    exponent = decay_exponent(lr, weight_decay)
    assert exponent == pytest.approx(sum(lr) * weight_decay)
    assert decay_factor(lr, weight_decay) <= math.exp(-exponent) * (1 + 1e-12)


@given(st.floats(1e-4, 1), st.floats(0, 0.5), st.integers(0, 40))
def test_constant_rate_is_the_array_of_equal_rates(lr: float, decay: float, steps: int) -> None:
    per_step = np.full(steps, lr)
    assert decay_exponent(lr, decay, steps) == pytest.approx(decay_exponent(per_step, decay))
    assert decay_factor(lr, decay, steps) == pytest.approx(decay_factor(per_step, decay))
    assert null_space_decay(lr, decay, steps) == pytest.approx(decay_factor(lr, decay, steps))


def test_schedule_multiplies_the_rate_as_array_or_function() -> None:
    cosine = [0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    expected = decay_exponent([0.1 * factor for factor in cosine], 1e-3)
    assert decay_exponent(0.1, 1e-3, 10, schedule=cosine) == pytest.approx(expected)
    assert decay_exponent(0.1, 1e-3, 10, schedule=lambda t: cosine[t]) == pytest.approx(expected)


def test_momentum_multiplies_the_exponent_by_its_effective_rate() -> None:
    assert decay_exponent(0.1, 5e-4, 78_000, momentum=0.9) == pytest.approx(
        10 * decay_exponent(0.1, 5e-4, 78_000)
    )


def test_momentum_exponent_is_the_slow_decay_of_the_heavy_ball() -> None:
    """With v <- m v + wd w and w <- w - lr v, w shrinks at the rate lr wd / (1 - m)."""
    lr, decay, momentum, steps = 0.01, 1e-2, 0.9, 5000
    weight, velocity = 1.0, 0.0
    for _ in range(steps):
        velocity = momentum * velocity + decay * weight
        weight -= lr * velocity
    exponent = decay_exponent(lr, decay, steps, momentum=momentum)
    assert -math.log(weight) == pytest.approx(exponent, rel=0.02)
    assert decay_factor(lr, decay, steps, momentum=momentum) == math.exp(-exponent)


def test_no_decay_forgets_nothing() -> None:
    assert decay_exponent(0.1, 0, 10**9) == 0
    assert decay_factor(0.1, 0, 10**9) == 1


def test_step_counts_may_be_an_array() -> None:
    times = np.arange(6).reshape(2, 3)
    found = null_space_decay(0.1, 0.5, times)
    np.testing.assert_allclose(found, 0.95**times)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, "lr must be a finite number above 0"),
        ({"lr": -0.1}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"lr": [0.1, -0.1], "steps": None}, "lr must hold"),
        ({"lr": [0.1, 0.1], "steps": 3}, "2 values for steps=3"),
        ({"lr": [[0.1]], "steps": None}, "one value per step"),
        ({"lr": [0.1], "steps": None, "schedule": [1.0]}, "already given"),
        ({"schedule": [1.0]}, "1 values for steps=10"),
        ({"weight_decay": -1e-4}, "weight_decay must be a finite number >= 0"),
        ({"lr": 10.0, "weight_decay": 0.1}, "wipes the weights out"),
        ({"lr": [10.0], "steps": 1, "weight_decay": 0.1}, "wipes the weights out"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"steps": None}, "steps is needed"),
    ],
)
def test_values_out_of_range_are_named(arguments: dict[str, object], message: str) -> None:
    usual: dict[str, object] = {"lr": 0.1, "weight_decay": 1e-3, "steps": 10}
    for function in (decay_exponent, decay_factor):
        with pytest.raises(ValueError, match=message):
            function(**(usual | arguments))  # type: ignore[operator]


@pytest.mark.parametrize("steps", [1.5, 2.0, True, "10"])
def test_a_count_that_is_no_whole_number_is_a_type_error(steps: object) -> None:
    with pytest.raises(TypeError, match="steps must be a whole number, got"):
        decay_exponent(lr=0.1, weight_decay=1e-3, steps=steps)  # type: ignore[arg-type]


def test_momentum_and_step_arrays_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="momentum"):
        decay_exponent(0.1, 1e-3, 10, momentum=1.0)
    with pytest.raises(TypeError, match="steps must hold whole numbers, got float64"):
        null_space_decay(0.1, 1e-3, np.array([0.5]))
    with pytest.raises(ValueError, match="steps must hold numbers >= 0, got -1"):
        null_space_decay(0.1, 1e-3, np.array([2, -1]))
    with pytest.raises(ValueError, match="lr"):
        null_space_decay(0.0, 1e-3, 3)


def test_importing_predict_loads_numpy_and_nothing_heavier() -> None:
    code = (
        "import sys, undertow.predict\n"
        "heavy = {'torch', 'scipy', 'polars', 'jaxtyping', 'altair'} & set(sys.modules)\n"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
