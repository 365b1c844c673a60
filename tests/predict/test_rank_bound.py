"""The rank bound's formula, patch counts against a sliding window, and the exact identity."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.predict import patch_count, rank_bound, rank_identity

FloatArray = np.ndarray


def run_sgd(
    *,
    steps: int,
    batch_size: int,
    lr: FloatArray,
    weight_decay: float,
    momentum: float = 0.0,
    seed: int = 0,
) -> tuple[FloatArray, FloatArray]:
    """SGD on a one-hidden-layer regression; returns the hidden weights before and after."""
    generator = np.random.default_rng(seed)
    inputs, targets = generator.normal(size=(60, 40)), generator.normal(size=(60, 3))
    hidden = generator.normal(size=(30, 40)) / 7
    readout = generator.normal(size=(3, 30)) / 6
    before, velocity = hidden.copy(), np.zeros_like(hidden)
    for step in range(steps):
        batch = generator.choice(60, size=batch_size, replace=False)
        x, y = inputs[batch], targets[batch]
        active = np.tanh(x @ hidden.T)
        errors = (active @ readout.T - y) / batch_size
        gradient = ((errors @ readout) * (1 - active**2)).T @ x + weight_decay * hidden
        velocity = momentum * velocity + gradient
        hidden = hidden - lr[step] * velocity
    return before, hidden


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.floats(0, 0.3),
    st.integers(0, 1000),
)
def test_identity_holds_for_sgd_with_any_rates(
    steps: int, batch_size: int, weight_decay: float, seed: int
) -> None:
    lr = np.random.default_rng(seed).uniform(0.01, 0.5, size=steps)
    before, after = run_sgd(
        steps=steps, batch_size=batch_size, lr=lr, weight_decay=weight_decay, seed=seed
    )
    found = rank_identity(
        after, before, lr=lr, weight_decay=weight_decay, steps=steps, batch_size=batch_size
    )
    assert found.holds
    assert found.bound == steps * batch_size
    assert not found.vacuous
    assert len(found.singular_values) == 30


def test_identity_breaks_for_momentum_and_for_the_wrong_decay() -> None:
    steps, lr, decay = 5, np.full(5, 0.1), 0.1
    arguments = {"lr": 0.1, "weight_decay": decay, "steps": steps, "batch_size": 2}
    before, after = run_sgd(steps=steps, batch_size=2, lr=lr, weight_decay=decay, momentum=0.9)
    broken = rank_identity(after, before, **arguments)  # type: ignore[arg-type]
    assert not broken.holds
    assert broken.rank == 30
    assert "is broken" in repr(broken)

    before, after = run_sgd(steps=steps, batch_size=2, lr=lr, weight_decay=decay)
    assert rank_identity(after, before, **arguments).holds  # type: ignore[arg-type]
    # The paper's lambda is half of PyTorch's weight_decay; mixing them up does not go unseen.
    mixed = rank_identity(after, before, **(arguments | {"weight_decay": decay / 2}))  # type: ignore[arg-type]
    assert not mixed.holds


def test_identity_of_weights_stored_in_single_precision() -> None:
    lr = np.full(5, 0.1)
    before, after = run_sgd(steps=5, batch_size=2, lr=lr, weight_decay=0.1)
    found = rank_identity(
        after.astype(np.float32),
        before.astype(np.float32),
        lr=0.1,
        weight_decay=0.1,
        steps=5,
        batch_size=2,
    )
    assert found.holds


def test_identity_takes_kernels_and_says_when_it_is_vacuous() -> None:
    generator = np.random.default_rng(0)
    before, after = generator.normal(size=(2, 4, 3, 3, 3))
    found = rank_identity(
        after, before, lr=0.1, weight_decay=1e-3, steps=1, batch_size=1, patches=16
    )
    assert found.holds
    assert found.vacuous
    assert len(found.singular_values) == 4
    assert "any matrix of this shape" in repr(found)


def test_unusable_weights_are_refused() -> None:
    square = np.eye(3)
    arguments = {"lr": 0.1, "weight_decay": 0.1, "steps": 1, "batch_size": 1}
    for later, earlier, message in (
        (square, np.eye(4), "one shape"),
        (np.ones(3), np.ones(3), "one shape"),
        (square * np.nan, square, "finite"),
        (square.astype(int), square, "real"),
    ):
        with pytest.raises(ValueError, match=message):
            rank_identity(later, earlier, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance"):
        rank_identity(square, square, tolerance=-1.0, **arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="batch_size must be a whole"):
        rank_identity(square, square, **(arguments | {"batch_size": 1.5}))  # type: ignore[arg-type]


def test_bound_is_the_formula_of_the_theorem() -> None:
    found = rank_bound(batch_size=16, lr=0.1, weight_decay=5e-4, shape=(512, 512))
    assert found.rank == pytest.approx(16 * math.log(2000) / 5e-5)
    assert found.limit == 512
    assert found.vacuous
    tight = rank_bound(batch_size=1, lr=0.5, weight_decay=0.5, shape=(100, 64), threshold=0.5)
    assert tight.rank == pytest.approx(4 * math.log(4))
    assert not tight.vacuous
    assert "says nothing" in repr(found)
    assert "is informative" in repr(tight)


@given(st.integers(1, 64), st.integers(1, 50), st.floats(1e-3, 1), st.floats(1e-6, 0.5))
def test_bound_is_linear_in_patches_and_batch_and_inverse_in_decay(
    batch_size: int, patches: int, lr: float, weight_decay: float
) -> None:
    one = rank_bound(batch_size=1, lr=lr, weight_decay=weight_decay, shape=(8, 9))
    many = rank_bound(
        batch_size=batch_size, lr=lr, weight_decay=weight_decay, shape=(8, 9), patches=patches
    )
    half = rank_bound(batch_size=1, lr=lr, weight_decay=weight_decay / 2, shape=(8, 9))
    assert many.rank == pytest.approx(batch_size * patches * one.rank)
    assert half.rank == pytest.approx(2 * one.rank)


def test_without_decay_there_is_no_bound() -> None:
    found = rank_bound(batch_size=1, lr=0.1, weight_decay=0.0, shape=(4, 4))
    assert found.rank == math.inf
    assert found.vacuous


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"lr": 0.0}, "lr"),
        ({"lr": 10.0}, "wipes the weights out"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"patches": 0}, "patches"),
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": 1.0}, "threshold"),
        ({"shape": (3,)}, "shape"),
        ({"shape": (3, 0)}, "shape"),
    ],
)
def test_bad_bound_arguments_are_named(change: dict[str, object], message: str) -> None:
    usual: dict[str, object] = {
        "batch_size": 4,
        "lr": 0.1,
        "weight_decay": 0.1,
        "shape": (4, 4),
    }
    with pytest.raises(ValueError, match=message):
        rank_bound(**(usual | change))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"batch_size must be a whole number, got 2\.0"):
        rank_bound(**(usual | {"batch_size": 2.0}))  # type: ignore[arg-type]


@given(
    st.integers(1, 12), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2), st.integers(1, 3)
)
def test_patches_are_the_places_where_the_kernel_fits(
    size: int, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    reach = dilation * (kernel - 1) + 1
    places = range(-padding, size + padding - reach + 1, stride)
    arguments = {"stride": stride, "padding": padding, "dilation": dilation}
    if not places:
        with pytest.raises(ValueError, match="does not fit"):
            patch_count(size, kernel, **arguments)
        return
    assert patch_count(size, kernel, **arguments) == len(places)
    grid = len(list(itertools.product(places, repeat=2)))
    assert patch_count((size, size), kernel, **arguments) == grid


def test_patch_axes_must_agree() -> None:
    assert patch_count((32, 16), (3, 1), stride=(1, 2), padding=(1, 0)) == 32 * 8
    with pytest.raises(ValueError, match="kernel needs one number per axis"):
        patch_count((8, 8), (3,))
    with pytest.raises(ValueError, match="input_size"):
        patch_count((), 3)
    with pytest.raises(TypeError, match="stride must be a whole"):
        patch_count(8, 3, stride=1.5)  # type: ignore[arg-type]
