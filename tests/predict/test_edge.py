"""The edge of each update rule against the spectral radius of the rule on a quadratic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow.predict import Edge, edge, momentum_equivalent


def sgd(x: float, m: float, a: float, h: dict[str, Any]) -> tuple[float, float]:
    """One step of torch.optim.SGD on a x^2 / 2, after the first."""
    g = a * x + h.get("weight_decay", 0.0) * x
    if not h.get("momentum"):
        return x - h["lr"] * g, 0.0
    m = h["momentum"] * m + (1 - h.get("dampening", 0.0)) * g
    return x - h["lr"] * (g + h["momentum"] * m if h.get("nesterov") else m), m


def adam(x: float, m: float, a: float, h: dict[str, Any]) -> tuple[float, float]:
    """One step of torch.optim.AdamW where what it divides by is 1."""
    m = h["betas"][0] * m + (1 - h["betas"][0]) * a * x
    x *= 1 - h["lr"] * h.get("weight_decay", 0.0)
    return x - h["lr"] * m, m


def nadam(x: float, m: float, a: float, h: dict[str, Any]) -> tuple[float, float]:
    """One step of torch.optim.NAdam, the step with the coefficients of the step given."""
    b, t = h["betas"][0], h["step"]
    mus = [b * (1 - 0.5 * 0.96 ** (s * h["momentum_decay"])) for s in range(1, t + 2)]
    past = float(np.prod(mus[:t]))
    g = a * x
    m = b * m + (1 - b) * g
    return (
        x - h["lr"] * ((1 - mus[t - 1]) / (1 - past) * g + mus[t] / (1 - past * mus[t]) * m),
        m,
    )


def radius(step: Any, a: float, h: dict[str, Any]) -> float:
    columns = [step(1.0, 0.0, a, h), step(0.0, 1.0, a, h)]
    return float(np.abs(np.linalg.eigvals(np.array(columns).T)).max())


RATES = st.floats(1e-4, 10)
KEPT = st.floats(0.0, 0.98)


def check(step: Any, hyper: dict[str, Any], optimizer: str, decay: float = 0.0) -> None:
    """Just below all contracts, just above not; and nothing below is unstable."""
    found = edge(hyper, optimizer).value - decay
    if found > 0:
        for share in (0.05, 0.5, 0.9, 1 - 1e-4):
            assert radius(step, found * share, hyper) < 1
        assert radius(step, found * (1 + 1e-4), hyper) > 1


@given(RATES, KEPT, st.floats(0, 0.95), st.floats(0, 0.05))
def test_heavy_ball_with_dampening_and_decay(
    lr: float, momentum: float, dampening: float, decay: float
) -> None:
    hyper = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": decay / lr}
    # Coupled decay is a part of the matrix: H + weight_decay I.
    check(sgd, hyper, "sgd", decay / lr)


@given(RATES, st.floats(0.01, 0.98))
def test_nesterov(lr: float, momentum: float) -> None:
    check(sgd, {"lr": lr, "momentum": momentum, "nesterov": True}, "sgd")


@given(RATES, KEPT, st.floats(0, 0.9))
def test_adam_with_decoupled_decay(lr: float, beta1: float, decay: float) -> None:
    check(adam, {"lr": lr, "betas": (beta1, 0.999), "weight_decay": decay / lr}, "adamw")


@given(RATES, st.floats(0.01, 0.98), st.integers(1, 3000))
def test_nadam_at_a_step(lr: float, beta1: float, step: int) -> None:
    hyper = {"lr": lr, "betas": (beta1, 0.999), "momentum_decay": 4e-3, "step": step}
    check(nadam, hyper, "nadam")


def test_the_numbers_that_are_known() -> None:
    assert edge({"lr": 0.1}).value == pytest.approx(20)
    assert edge({"lr": 0.1, "momentum": 0.9}).value == pytest.approx(38)
    assert edge({"lr": 0.1}, "rmsprop").value == pytest.approx(20)
    assert edge({"lr": 0.1, "momentum": 0.9, "eps": 1e-6}, "rmsprop").value == pytest.approx(38)
    assert edge({"lr": 1e-3, "betas": (0.9, 0.999)}, "adam").value == pytest.approx(38_000)
    assert edge({"lr": 1e-3, "beta1": 0.9}, "adam").value == pytest.approx(38_000)
    assert edge({"lr": 1e-3, "momentum": 0.9}, "ema_momentum").value == pytest.approx(38_000)
    nesterov = edge({"lr": 0.1, "momentum": 0.9, "nesterov": True}).value
    assert nesterov == pytest.approx(2 * 1.9 / (2.8 * 0.1))
    late = edge({"lr": 1e-3, "step": 10**6}, "nadam").value
    assert late == pytest.approx(edge({"lr": 1e-3}, "nadam").value)


@given(RATES, KEPT)
def test_it_is_the_limit_that_momentum_has_elsewhere(lr: float, momentum: float) -> None:
    limit = momentum_equivalent(lr, momentum).stability_limit
    assert edge({"lr": lr, "momentum": momentum}).value * lr / (1 - momentum) == pytest.approx(
        limit
    )


def test_a_parameter_group_may_be_given_as_it_is() -> None:
    group = {"params": [], "lr": 0.1, "foreach": None, "momentum": 0.5, "initial_lr": 0.2}
    assert edge(group).value == pytest.approx(30)


def test_it_reads_like_a_sentence_and_says_of_which_matrix() -> None:
    found = edge({"lr": 0.1, "weight_decay": 0.01}, "adam")
    assert isinstance(found, Edge)
    assert repr(found) == (
        "Edge 380 for the largest eigenvalue of P^-1 (H + weight_decay I): "
        "2 (1 + beta1) / ((1 - beta1) lr)."
    )
    assert edge({"lr": 0.1, "weight_decay": 0.5}, "adamw").equation.startswith("(2 - lr weight_d")
    assert edge({"lr": 0.1, "weight_decay": 0.5}).matrix == "H + weight_decay I"
    assert found.as_dict()["value"] == pytest.approx(380)


@pytest.mark.parametrize(
    ("hyper", "optimizer", "message"),
    [
        ({}, "sgd", "hyper must hold lr, got nothing"),
        ({"lr": 0.0}, "sgd", "lr must be a finite number above 0"),
        ({"lr": 0.1, "momentum": 1.0}, "sgd", r"momentum must lie in \[0, 1\)"),
        ({"lr": 0.1, "nesterov": True}, "sgd", "nesterov must come with a momentum above 0"),
        ({"lr": 0.1, "beta": 0.9}, "adam", "adam reads lr.*got 'beta'"),
        ({"lr": 0.1, "betas": 0.9}, "adam", "betas must be two numbers"),
        ({"lr": 0.1, "maximize": True}, "adam", "maximize must be False"),
        ({"lr": 2.0, "weight_decay": 0.5}, "adamw", "lr x weight_decay is 1"),
        ({"lr": 0.1}, "adma", "no edge is known for it; did you mean adam"),
        ({"lr": 0.1}, "lbfgs", "no edge is known for it; there are sgd"),
    ],
)
def test_bad_input_is_named(hyper: dict[str, Any], optimizer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edge(hyper, optimizer)


def test_what_is_no_mapping_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"such as one of optimizer\.param_groups"):
        edge(0.1)  # type: ignore[arg-type]
