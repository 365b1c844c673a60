"""The rate at which label noise draws neurons together, against derivatives and simulated steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from undertow.predict import activation_derivatives, rank_one_modes, rank_one_rate

REFERENCES = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "cubic": lambda z: z + z**3 / 6,
    "quadratic": lambda z: z + z**2 / 4,
}


@pytest.mark.parametrize("activation", REFERENCES)
def test_named_derivatives_are_those_of_autograd(activation: str) -> None:
    z = torch.linspace(-3, 3, 24, dtype=torch.float64, requires_grad=True)
    found, derivatives = REFERENCES[activation](z).sum(), []
    for _ in range(3):
        if not found.requires_grad:  # the third derivative of a quadratic
            derivatives.append(torch.zeros_like(z))
            continue
        (derivative,) = torch.autograd.grad(found.sum(), z, create_graph=True)
        derivatives.append(derivative)
        found = derivative
    expected = 2 * 0.01**2 * 0.5**2 * derivatives[0] * derivatives[2]
    rates = rank_one_rate(0.01, 0.5, activation=activation, preactivation=z.detach().numpy())
    np.testing.assert_allclose(rates, expected.detach().numpy(), rtol=1e-9, atol=1e-16)


def simulated_rate(
    lr: float,
    noise_std: float,
    steps: int,
    *,
    z: float,
    neurons: int = 6,
    replicas: int = 200,
    loss_scale: float = 1.0,
    input_norm: float = 1.0,
    output_weight: float = 1.0,
    batch_fraction: float = 1.0,
    activation: str = "cubic",
) -> float:
    """Mean log decay per step of the spread in u, du = dz / phi'(z), over independent networks."""
    sign = {"cubic": 1.0, "tanh-like": -1.0}[activation]
    generator = np.random.default_rng(0)
    theta = (z + 1e-3 * generator.normal(size=(replicas, neurons))) / input_norm
    target = output_weight * neurons * (z + sign * z**3 / 6)

    def log_spread() -> float:
        slope = 1 + sign * (theta * input_norm) ** 2 / 2
        u = (theta - theta.mean(1, keepdims=True)) / slope.mean(1, keepdims=True)
        return float(np.log(u.std(1)).mean())

    before = log_spread()
    for _ in range(steps):
        pre = theta * input_norm
        residual = output_weight * (pre + sign * pre**3 / 6).sum(1) - target
        residual -= noise_std * generator.normal(size=replicas)
        residual *= generator.random(replicas) < batch_fraction
        slope = 1 + sign * pre**2 / 2
        theta -= lr * loss_scale * 2 * output_weight * input_norm * residual[:, None] * slope
    return (before - log_spread()) / steps


@pytest.mark.parametrize(
    ("activation", "scales"),
    [
        ("cubic", {}),
        ("tanh-like", {}),
        ("cubic", {"loss_scale": 0.5, "input_norm": 1.3, "output_weight": 0.8}),
        ("cubic", {"batch_fraction": 0.5, "loss_scale": 1.5}),
        ("cubic", {"output_weight": -1.2}),
    ],
)
def test_simulated_steps_decay_at_the_rate(activation: str, scales: dict[str, float]) -> None:
    lr, noise_std, neurons, z = 0.02, 0.5, 6, 0.5
    sign = 1 if activation == "cubic" else -1
    measured = simulated_rate(lr, noise_std, 3000, z=z, activation=activation, **scales)
    derivatives = (1 + sign * z**2 / 2, sign)
    predicted = rank_one_rate(lr, noise_std, derivatives=derivatives, neurons=neurons, **scales)
    assert measured == pytest.approx(predicted, rel=0.03)


@given(st.floats(1e-5, 1e-2), st.floats(0.01, 3), st.floats(0.1, 10), st.floats(-0.7, 3))
def test_only_the_product_of_lr_and_the_losss_scale_matters(
    lr: float, noise_std: float, scale: float, z: float
) -> None:
    scaled = rank_one_rate(lr, noise_std, activation="gelu", preactivation=z, loss_scale=scale)
    moved = rank_one_rate(lr * scale, noise_std, activation="gelu", preactivation=z)
    assert scaled == pytest.approx(moved, rel=1e-12, abs=0)


def test_the_small_lr_limit_is_the_parameter_free_rate() -> None:
    def ratio(lr: float) -> float:
        given_z = {"activation": "softplus", "preactivation": -1.0}
        return rank_one_rate(lr, 1.0, neurons=20, **given_z) / rank_one_rate(lr, 1.0, **given_z)

    curvature = 2 * 20 / (1 + math.e) ** 2
    assert ratio(1e-6) == pytest.approx(1, abs=1e-5)
    assert ratio(0.1) == pytest.approx(1 / (1 - 0.1 * curvature / 2))


def test_the_sign_follows_the_third_derivative() -> None:
    flip = math.atanh(1 / math.sqrt(3))
    inside, outside = rank_one_rate(
        0.01, 1.0, activation="tanh", preactivation=np.array([flip - 0.1, flip + 0.1])
    )
    assert inside < 0 < outside
    assert rank_one_rate(0.01, 1.0, activation="quadratic", preactivation=0.3) == 0
    assert rank_one_rate(0.01, 0.0, activation="cubic", preactivation=0.3) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "give activation and preactivation"),
        ({"activation": "tanh"}, "give activation and preactivation"),
        ({"activation": "relu", "preactivation": 1.0}, "says nothing"),
        ({"activation": "exp", "preactivation": 1.0}, "must be one of tanh"),
        ({"activation": "tanh", "preactivation": 0.1, "derivatives": (1, 1)}, "take the place"),
        ({"activation": "tanh", "preactivation": math.nan}, "must be finite"),
        ({"derivatives": (1.0,)}, "derivatives must be"),
        ({"derivatives": (0.0, 1.0)}, "must not be 0"),
        ({"derivatives": (1.0, 1.0), "neurons": 0}, "neurons must be at least 1"),
        ({"derivatives": (1.0, 1.0), "neurons": 200}, "Lower lr below 0.005"),
        ({"derivatives": (1.0, 1.0), "batch_fraction": 0.0}, "batch_fraction"),
        ({"derivatives": (1.0, 1.0), "loss_scale": -1.0}, "loss_scale"),
        ({"derivatives": (1.0, 1.0), "output_weight": 0.0}, "output_weight"),
    ],
)
def test_bad_input_says_what_would_do(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rank_one_rate(0.01, 1.0, **arguments)


def test_bad_rates_are_named() -> None:
    with pytest.raises(ValueError, match="lr must be"):
        rank_one_rate(0.0, 1.0, derivatives=(1.0, 1.0))
    with pytest.raises(ValueError, match="noise_std must be"):
        rank_one_rate(0.1, -1.0, derivatives=(1.0, 1.0))


def test_named_derivatives_are_those_of_the_rate() -> None:
    z = np.linspace(-2, 2, 9)
    first, third = activation_derivatives("gelu", z)
    rates = rank_one_rate(0.01, 0.5, activation="gelu", preactivation=z)
    np.testing.assert_allclose(rates, 2 * (0.01 * 0.5) ** 2 * first * third)
    with pytest.raises(ValueError, match="activation must be one of"):
        activation_derivatives("sine", z)


def test_modes_of_correlated_inputs_are_left_eigenvectors_slowest_first() -> None:
    inputs = np.random.default_rng(0).normal(size=(4, 6))
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    own = np.array([1.0, -2.0, 3.0, 0.5])
    rates, modes = rank_one_modes(own, inputs @ inputs.T)
    matrix = inputs @ inputs.T @ np.diag(own)
    np.testing.assert_allclose(modes @ matrix, rates[:, None] * modes, atol=1e-12)
    assert (np.diff(np.abs(rates)) >= 0).all()
    assert rates.sum() == pytest.approx(own.sum())  # inputs of norm one


def test_orthonormal_inputs_have_each_its_own_rate() -> None:
    rates, modes = rank_one_modes(np.array([3.0, -1.0, 2.0]), np.eye(3))
    assert rates.tolist() == [-1.0, 2.0, 3.0]
    np.testing.assert_array_equal(np.abs(modes), np.eye(3)[[1, 2, 0]])


@pytest.mark.parametrize(
    ("gram", "message"), [(np.eye(3), "rates and gram must be"), ([[1, 2], [0, 1]], "symmetric")]
)
def test_a_gram_matrix_that_is_none_is_refused(gram: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_one_modes(np.ones(2), gram)
