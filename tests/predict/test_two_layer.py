"""The margins of two-layer networks: held to optimality, to networks that attain and to draws."""

from __future__ import annotations

import numpy as np
import pytest

from undertow import predict

SLOPES = (0.1, 0.5, 1.0)


def separable(
    seed: int, points: int = 12, features: int = 4
) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Samples that a plane through 0 separates, with a margin."""
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=features)
    teacher /= np.linalg.norm(teacher)
    drawn = rng.normal(size=(points, features))
    labels = np.where(rng.random(points) < 0.5, 1.0, -1.0)
    rows = drawn * np.sign(drawn @ teacher)[:, None] + 0.2 * teacher
    return labels[:, None] * rows, labels, rng


def mirrored(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([x, -x]), np.concatenate([y, -y])


def margin(x: np.ndarray, y: np.ndarray, w: np.ndarray, a: np.ndarray, slope: float) -> float:
    """min_n y_n f(x_n) / ||theta||^2, written out."""
    hidden = x @ w.T
    outputs = np.where(hidden > 0, hidden, slope * hidden) @ a
    return float((y * outputs).min() / (np.square(w).sum() + np.square(a).sum()))


# ---- the support vector machine


@pytest.mark.parametrize(("points", "features"), [(5, 2), (12, 4), (60, 10), (5, 30), (200, 40)])
def test_the_support_vector_machine_is_optimal(points: int, features: int) -> None:
    x, y, _ = separable(points, points, features)
    found = predict.two_layer_margin(x, y, slope=0.5)
    rows, multipliers = y[:, None] * x, found.multipliers
    w = found.direction / found.svm_margin
    assert np.linalg.norm(found.direction) == pytest.approx(1, abs=1e-12)
    # Primal and dual feasible, stationary, and without a gap: a proof of optimality.
    assert (rows @ w).min() >= 1 - 1e-10
    assert multipliers.min() >= -1e-10 * multipliers.max()
    np.testing.assert_allclose(rows.T @ multipliers, w, atol=1e-10 / found.svm_margin)
    assert multipliers.sum() == pytest.approx(w @ w, rel=1e-10)


def test_units_and_rotations_of_the_inputs_pass_through() -> None:
    x, y, rng = separable(3)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    one, other = (predict.two_layer_margin(own, y, slope=0.3) for own in (x, 1e6 * x @ turn))
    assert other.svm_margin == pytest.approx(1e6 * one.svm_margin, rel=1e-9)
    assert other.positive.margin == pytest.approx(1e6 * one.positive.margin, rel=1e-9)
    np.testing.assert_allclose(other.direction, one.direction @ turn, atol=1e-8)


def test_what_cannot_be_separated_is_refused_with_the_samples_that_prove_it() -> None:
    x = np.array([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.2], [-1.0, -0.2]])
    with pytest.raises(ValueError, match=r"samples (0, 1|1, 2), 3 is 0: take one"):
        predict.two_layer_margin(x, [1, 1, 1, 1], slope=0.5)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="labels must be separable by a plane through 0") as error:
        predict.two_layer_margin(rng.normal(size=(80, 5)), rng.choice([-1, 1], 80), slope=0.5)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="samples 0 is 0"):
        predict.two_layer_margin(np.zeros((1, 3)), [1], slope=0.5)


# ---- margins


@pytest.mark.parametrize("slope", SLOPES)
def test_two_neurons_attain_the_ceiling_and_no_network_exceeds_it(slope: float) -> None:
    x, y = mirrored(*separable(1)[:2])
    found = predict.two_layer_margin(x, y, slope=slope)
    assert found.ceiling == found.linear
    along = np.stack([found.direction, -found.direction])
    assert margin(x, y, along, np.array([1.0, -1.0]), slope) == pytest.approx(found.ceiling)
    rng = np.random.default_rng(7)
    for near in (0.03, 0.3, 3.0):  # networks near to it, and any
        for _ in range(200):
            w = along + near * rng.normal(size=along.shape)
            a = np.array([1.0, -1.0]) + near * rng.normal(size=2)
            assert margin(x, y, w, a, slope) <= found.ceiling + 1e-12


@pytest.mark.parametrize("slope", SLOPES)
def test_no_network_of_one_sign_exceeds_its_share_and_one_neuron_attains_it(slope: float) -> None:
    x, y = mirrored(*separable(2)[:2])
    found = predict.two_layer_margin(x, y, slope=slope)
    assert found.ceiling is not None
    stuck = found.stuck_share * found.ceiling
    for one in (found.positive, found.negative):
        w = one.sign * one.direction[None]
        assert margin(x, y, w, np.array([float(one.sign)]), slope) == pytest.approx(stuck)
        assert one.margin == pytest.approx(stuck)
    rng = np.random.default_rng(8)
    for _ in range(300):
        w = found.direction + 0.3 * rng.normal(size=(5, 4))
        assert margin(x, y, w, np.abs(rng.normal(size=5)), slope) <= stuck + 1e-12


@pytest.mark.parametrize("sign", [1, -1])
def test_of_any_data_one_neuron_attains_its_margin_and_none_exceeds_it(sign: int) -> None:
    x, y, rng = separable(4)
    found = predict.two_layer_margin(x, y, slope=0.5)
    assert found.ceiling is None
    one = found.positive if sign > 0 else found.negative
    a = np.array([float(sign)])
    assert margin(x, y, sign * one.direction[None], a, 0.5) == pytest.approx(one.margin)
    for _ in range(500):
        w = sign * one.direction + 0.3 * rng.normal(size=(1, 4))
        assert margin(x, y, w, a, 0.5) <= one.margin + 1e-12


def test_a_linear_network_has_its_margin_on_data_that_are_not_symmetric() -> None:
    x, y, _ = separable(5)
    found = predict.two_layer_margin(x, y, slope=0.5)
    along = np.stack([found.direction, -found.direction])
    assert margin(x, y, along, np.array([1.0, -1.0]), 0.5) == pytest.approx(found.linear)


# ---- the start


def test_on_symmetric_data_the_first_force_is_linear_with_slope_mu() -> None:
    x, y = mirrored(*separable(6)[:2])
    found = predict.two_layer_margin(x, y, slope=0.3)
    assert found.mean is not None
    assert found.growth is not None
    for w in np.random.default_rng(0).normal(size=(5, 4)):
        hidden = x @ w
        force = (y * np.where(hidden > 0, hidden, 0.3 * hidden)).mean() / 2
        assert force == pytest.approx(found.growth * found.mean @ w)
    assert found.positive.growth == pytest.approx(found.growth)
    assert found.negative.growth == pytest.approx(found.growth)


def test_one_more_sample_makes_the_signs_grow_at_different_rates() -> None:
    x, y = mirrored(*separable(6)[:2])
    hint = 3.0 * predict.two_layer_margin(x, y, slope=0.5).direction
    more = np.concatenate([x, hint[None]])
    found = predict.two_layer_margin(more, [*y, 1], slope=0.5)
    mu = 1.5 / 4 * (y[:, None] * x).sum(0) / len(more)
    own, other = (float(np.linalg.norm(mu + c * hint / (2 * len(more)))) for c in (1, 0.5))
    assert found.positive.growth == pytest.approx(own)
    assert found.negative.growth == pytest.approx(other)
    assert own > other
    # Beyond the others it supports nothing: one neuron is the symmetric data's.
    assert found.positive.margin / found.linear == pytest.approx(2 / 3)


def test_no_rate_is_given_where_no_neuron_that_is_right_attracts() -> None:
    x = np.array([[1.0, 0.1], [-0.9, 0.1], [1.0, 0.1], [1.0, 0.1]])
    assert predict.two_layer_margin(x, [1, 1, 1, 1], slope=0.5).positive.growth is None


@pytest.mark.parametrize("neurons", [1, 2, 3, 5])
def test_stuck_starts_are_as_many_as_coins_that_fall_alike(neurons: int) -> None:
    x, y = mirrored(*separable(9)[:2])
    found = predict.two_layer_margin(x, y, slope=0.5)
    rng = np.random.default_rng(neurons)
    w, a = rng.normal(size=(4_000, neurons, 4)), rng.normal(size=(4_000, neurons))
    stuck = found.gets_stuck(w, a)
    expected = found.failure_probability(neurons)
    assert expected == 2.0 ** (1 - neurons)
    assert stuck.mean() == pytest.approx(expected, abs=0.03)
    assert (found.gets_stuck(1e-30 * w, 1e-30 * a) == stuck).all()
    assert found.gets_stuck(w, np.abs(a) + np.linalg.norm(w, axis=2)).all()


def test_a_neuron_that_is_zero_has_no_say() -> None:
    found = predict.two_layer_margin(*mirrored(*separable(1)[:2]), slope=0.5)
    signs = np.array([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
    stuck = found.gets_stuck(np.zeros((3, 3, 4)), signs)
    assert stuck.tolist() == [True, False, True]


# ---- what it says


def test_it_reads_like_a_sentence_and_has_numbers() -> None:
    x, y, _ = separable(1)
    for own in ((x, y), mirrored(x, y)):
        found = predict.two_layer_margin(*own, slope=0.5)
        assert f"{found.linear:.4g}" in repr(found)
        assert found.as_dict()["linear"] == found.linear
    assert "0.667" in repr(found)
    assert repr(found.positive).startswith("One neuron, a > 0: margin")
    assert "growing at" in repr(found.negative)


def test_what_holds_for_symmetric_data_only_is_refused_for_others() -> None:
    x, y, _ = separable(1)
    found = predict.two_layer_margin(x, y, slope=0.5)
    for ask in (
        lambda: found.stuck_share,
        lambda: found.failure_probability(2),
        lambda: found.gets_stuck(np.ones((1, 4)), np.ones(1)),
    ):
        with pytest.raises(ValueError, match="is known for symmetric data"):
            ask()
    assert predict.two_layer_margin(*mirrored(x, y), slope=0.5).mean is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slope": 0.0}, "slope must be above 0 and at most 1, got 0"),
        ({"slope": 1.1}, "slope must be above 0 and at most 1, got 1.1"),
        ({"labels": [1, 0]}, "labels must be 1 or -1, got"),
        ({"labels": [1]}, "inputs must be .samples, features. and labels .samples."),
        ({"inputs": [[np.nan, 1.0], [1.0, 1.0]]}, "inputs must be finite"),
        ({"inputs": [1.0, 2.0]}, "inputs must be .samples, features."),
        ({"inputs": [[1e-200, 0.0], [0.0, 1e-200]]}, "largest entry between 1e-100 and 1e.100"),
        ({"inputs": [[1e200, 0.0], [0.0, 1e200]]}, "largest entry between 1e-100 and 1e.100"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    given = {"inputs": [[1.0, 0.0], [0.0, 1.0]], "labels": [1, 1], "slope": 0.5} | change
    with pytest.raises(ValueError, match=message):
        predict.two_layer_margin(given.pop("inputs"), given.pop("labels"), **given)  # type: ignore[arg-type]


def test_starts_of_another_shape_are_named() -> None:
    found = predict.two_layer_margin(*mirrored(*separable(1)[:2]), slope=0.5)
    with pytest.raises(ValueError, match="weights must be outputs' shape and 4 features"):
        found.gets_stuck(np.ones((3, 2, 5)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="weights and outputs must be finite"):
        found.gets_stuck(np.full((2, 4), np.nan), np.ones(2))
    with pytest.raises(ValueError, match="such a run never leaves zero"):
        found.gets_stuck(np.zeros((3, 2, 4)), np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(TypeError, match="neurons must be a whole number"):
        found.failure_probability(2.0)  # type: ignore[arg-type]
