"""The equilibrium of norm and direction against the update, run step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow.predict import equilibrium, equilibrium_steps


def _norm_steps(lr: float, decay: float, square: float, norm: float, steps: int) -> list[float]:
    """||w|| under the update, with gradients orthogonal to w and of norm sqrt(square) / ||w||."""
    norms = [norm]
    for _ in range(steps):
        norms.append(math.hypot((1 - lr * decay) * norms[-1], lr * math.sqrt(square) / norms[-1]))
    return norms


@given(st.floats(1e-3, 1), st.floats(1e-3, 0.25), st.floats(1e-2, 1e3))
def test_norm_and_angle_are_those_that_the_update_keeps(
    lr: float, decay: float, square: float
) -> None:
    found = equilibrium(lr, decay, gradient_sqnorm=square)
    step = _norm_steps(lr, decay, square, found.norm, 1)
    assert step[1] == pytest.approx(found.norm)
    turned = math.atan2(lr * math.sqrt(square) / found.norm, (1 - lr * decay) * found.norm)
    assert found.angular_update == pytest.approx(turned)
    assert found.effective_lr == pytest.approx(lr / found.norm**2)


def test_small_decay_gives_the_first_order_forms() -> None:
    lr, decay, square = 0.2, 5e-4, 3.0
    found = equilibrium(lr, decay, gradient_sqnorm=square)
    assert found.norm**4 == pytest.approx(lr * square / (2 * decay), rel=1e-4)
    assert found.effective_lr == pytest.approx(math.sqrt(2 * lr * decay / square), rel=1e-4)
    assert found.angular_update == pytest.approx(math.sqrt(2 * lr * decay), rel=1e-4)
    assert found.relaxation_steps == pytest.approx(1 / (4 * lr * decay), rel=1e-3)
    assert found.mixing_steps == pytest.approx(1 / (lr * decay))


@pytest.mark.parametrize("decay", [1e-6, 1e-12, 1e-17, 1e-30])
def test_a_tiny_decay_keeps_its_digits(decay: float) -> None:
    found = equilibrium(decay, 1.0)
    assert found.angular_update == pytest.approx(math.sqrt(2 * decay), rel=1e-6)
    assert found.relaxation_steps == pytest.approx(1 / (4 * decay), rel=1e-5)


def test_same_intrinsic_rate_has_the_same_effective_rate_and_angle() -> None:
    one = equilibrium(0.1, 4e-3, gradient_sqnorm=2.0)
    other = equilibrium(0.4, 1e-3, gradient_sqnorm=2.0)
    assert one.effective_lr == pytest.approx(other.effective_lr)
    assert one.angular_update == pytest.approx(other.angular_update)
    assert one.norm != pytest.approx(other.norm)


def test_deviations_relax_by_the_stated_factor() -> None:
    lr, decay, square = 0.5, 0.02, 1.0
    found = equilibrium(lr, decay, gradient_sqnorm=square)
    norms = np.array(_norm_steps(lr, decay, square, 1.001 * found.norm, 40))
    deviations = norms**4 - found.norm**4
    rate = -np.polyfit(np.arange(len(norms)), np.log(deviations), 1)[0]
    assert 1 / rate == pytest.approx(found.relaxation_steps, rel=2e-3)


@pytest.mark.parametrize("ratio", [100.0, 3.0, 1.05, 0.9, 0.3])
def test_steps_to_equilibrium_match_the_update(ratio: float) -> None:
    lr, decay, square = 0.05, 0.02, 1.0
    goal = equilibrium(lr, decay, gradient_sqnorm=square).norm
    predicted = equilibrium_steps(lr, decay, initial_norm=ratio * goal, equilibrium_norm=goal)
    norms = np.array(_norm_steps(lr, decay, square, ratio * goal, 10_000)) / goal
    outside = np.abs(norms - 1) > 0.01
    assert predicted == pytest.approx(int(np.argmin(outside)), rel=0.01, abs=2)


def test_a_norm_that_is_much_too_large_is_pure_decay() -> None:
    steps = equilibrium_steps(0.1, 1e-3, initial_norm=1e6, equilibrium_norm=1.0)
    assert steps == pytest.approx((math.log(1e6) + math.log(1 / 0.04) / 4) / 1e-4, rel=0.01)
    assert equilibrium_steps(0.1, 1e-3, initial_norm=1.005, equilibrium_norm=1.0) == 0


def test_momentum_against_a_walk_in_many_dimensions() -> None:
    """Unit-norm gradients that are independent from step to step, with coupled decay."""
    lr, decay, kept, dims, walks = 0.05, 0.02, 0.8, 60, 40
    generator = np.random.default_rng(0)
    found = equilibrium(lr, decay, momentum=kept, gradient_sqnorm=1.0)
    weights = generator.standard_normal((walks, dims))
    weights *= found.norm / np.linalg.norm(weights, axis=1, keepdims=True)
    velocity = np.zeros_like(weights)
    fourth, angles = [], []
    for step in range(1500):
        draw = generator.standard_normal((walks, dims))
        norm = np.linalg.norm(weights, axis=1, keepdims=True)
        unit = weights / norm
        draw -= (draw * unit).sum(1, keepdims=True) * unit
        gradient = draw / np.linalg.norm(draw, axis=1, keepdims=True) / norm
        velocity = kept * velocity + gradient + decay * weights
        weights = weights - lr * velocity
        after = np.linalg.norm(weights, axis=1, keepdims=True)
        if step >= 300:
            fourth.append(float((after**4).mean()))
            angles.append(float(np.arccos((unit * weights / after).sum(1)).mean()))
    assert np.mean(fourth) == pytest.approx(found.norm**4, rel=0.03)
    assert np.mean(angles) == pytest.approx(found.angular_update, rel=0.03)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("lost", [1e-4, 1e-3, 2e-2])
def test_second_moments_rest_there_and_relax_so(kept: float, lost: float) -> None:
    """E ||w||^2, E <w, v> and E ||v||^2 under heavy ball, as one recursion."""
    lr, decay, square = 0.1, lost / 0.1, 3.0
    found = equilibrium(lr, decay, momentum=kept, gradient_sqnorm=square)
    rest = np.array([1, -decay / (1 + kept), 2 * decay / (lr * (1 + kept))]) * found.norm**2

    def step(moments: np.ndarray) -> np.ndarray:
        own, both, moved = moments
        along = kept * both + decay * own
        moved = kept**2 * moved + square / own + decay**2 * own + 2 * decay * kept * both
        return np.array([own - 2 * lr * along + lr**2 * moved, along - lr * moved, moved])

    assert step(rest) == pytest.approx(rest)
    own, both, _ = rest
    assert 1 - lr * (kept * both + decay * own) / own == pytest.approx(
        math.cos(found.angular_update)
    )
    steps = math.ceil(3 * found.relaxation_steps)
    here = [rest * [1 + 1e-6, 1, 1]]
    for _ in range(3 * steps):
        here.append(step(here[-1]))
    # Where it oscillates, only the envelope falls so.
    far = np.abs(np.array(here) - rest)[:, 0] / rest[0]
    early, late = far[:steps].max(), far[2 * steps :].max()
    assert math.log(early / late) == pytest.approx(2 * steps / found.relaxation_steps, rel=0.25)


def test_momentum_overshoots_from_a_sixteenth_on() -> None:
    slow, fast = (equilibrium(0.1 * (1 - 0.9), share / 16, momentum=0.9) for share in (0.5, 2.0))
    assert slow.relaxation_steps > 1 / (4 * slow.intrinsic_lr) * 0.5
    assert fast.relaxation_steps == pytest.approx(-1 / math.log(math.sqrt(0.9)))


@pytest.mark.parametrize(
    ("lr", "decay", "beta1", "beta2"), [(0.01, 1.0, 0.9, 0.999), (0.02, 1.0, 0.0, 0.999)]
)
def test_adamw_against_a_walk_in_many_dimensions(
    lr: float, decay: float, beta1: float, beta2: float
) -> None:
    generator, shape = np.random.default_rng(0), (4, 200)
    found = equilibrium(lr, decay, optimizer="adamw", beta1=beta1, num_weights=shape[1])
    weights = generator.standard_normal(shape)
    weights *= found.norm / np.linalg.norm(weights, axis=1, keepdims=True)
    mean, square = np.zeros(shape), np.full(shape, 1 / (found.norm**2 * shape[1]))
    sizes, angles = [], []
    for step in range(3000):
        norm = np.linalg.norm(weights, axis=1, keepdims=True)
        unit, draw = weights / norm, generator.standard_normal(shape)
        draw -= (draw * unit).sum(1, keepdims=True) * unit
        draw /= np.linalg.norm(draw, axis=1, keepdims=True) * norm
        mean = beta1 * mean + (1 - beta1) * draw
        square = beta2 * square + (1 - beta2) * draw**2
        weights = (1 - lr * decay) * weights - lr * mean / np.sqrt(square)
        after = np.linalg.norm(weights, axis=1, keepdims=True)
        if step >= 1000:
            sizes.append(float((after**2).mean()))
            angles.append(float(np.arccos((unit * weights / after).sum(1)).mean()))
    assert np.mean(sizes) == pytest.approx(found.norm**2, rel=0.02)
    assert np.mean(angles) == pytest.approx(found.angular_update, rel=0.01)


def test_adamw_to_first_order_as_published() -> None:
    lr, decay, beta1, size = 1e-3, 0.1, 0.9, 512
    found = equilibrium(lr, decay, optimizer="adamw", beta1=beta1, num_weights=size)
    turned = math.sqrt(2 * lr * decay * (1 - beta1) / (1 + beta1))
    assert found.angular_update == pytest.approx(turned, rel=1e-3)
    assert found.norm == pytest.approx(math.sqrt(lr * size / (2 * decay)), rel=1e-3)
    assert found.relaxation_steps == pytest.approx(1 / (2 * lr * decay), rel=1e-3)
    steps = equilibrium_steps(
        lr, decay, initial_norm=3 * found.norm, equilibrium_norm=found.norm, optimizer="adamw"
    )
    # ||w||^2 relaxes linearly: the ninefold square is within (1.01)^2 of its rest.
    assert 1 + 8 * math.exp(-steps / found.relaxation_steps) == pytest.approx(1.01**2, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, "lr must be"),
        ({"weight_decay": 0.0}, "weight_decay must be"),
        ({"momentum": 1.0}, "momentum must lie"),
        ({"weight_decay": 10.0}, "lr x weight_decay"),
        ({"gradient_sqnorm": math.inf}, "gradient_sqnorm"),
        ({"optimizer": "adam"}, "optimizer must be sgd or adamw .* coupled decay"),
        ({"num_weights": 10}, "num_weights and beta1 are read by"),
        ({"beta1": 0.9}, "num_weights and beta1 are read by"),
        ({"optimizer": "adamw", "momentum": 0.9}, "momentum and gradient_sqnorm are SGD's"),
        ({"optimizer": "adamw", "beta1": 1.0}, "beta1 must lie"),
        ({"optimizer": "adamw", "num_weights": 0}, "num_weights must be at least 1"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        equilibrium(**({"lr": 0.1, "weight_decay": 1e-3} | arguments))


def test_bad_norms_and_tolerances_are_named() -> None:
    with pytest.raises(ValueError, match="tolerance"):
        equilibrium_steps(0.1, 1e-3, initial_norm=2, equilibrium_norm=1, tolerance=0)
    with pytest.raises(ValueError, match="initial_norm"):
        equilibrium_steps(0.1, 1e-3, initial_norm=0, equilibrium_norm=1)


def test_it_reads_like_a_sentence() -> None:
    assert "Equilibrium in about 1e+04 steps" in repr(equilibrium(0.1, 1e-3))
    assert "||w||" in repr(equilibrium(0.1, 1e-3, gradient_sqnorm=1.0))
