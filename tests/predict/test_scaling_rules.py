"""Scaling rules as laws: what they keep, that they invert, and where they must refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from undertow.predict import largest_batch, rescale

batches = st.integers(1, 4096)
ADAMW = {
    "lr": 3e-4,
    "betas": (0.95, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.1,
    "steps": 4_000,
    "warmup_steps": 400,
    "milestones": (2_000, 3_000),
}


@given(batches, batches, st.floats(1e-5, 1e-2), st.floats(0, 0.99))
def test_linear_rule_keeps_noise_and_decay_per_sample(
    old: int, new: int, lr: float, momentum: float
) -> None:
    hyper = {"lr": lr, "momentum": momentum, "weight_decay": 1e-4}
    found = rescale(hyper, from_batch=old, to_batch=new, optimizer="sgd").hyper
    assert found["lr"] / new == pytest.approx(lr / old)
    assert found["momentum"] == momentum
    assert found["weight_decay"] == 1e-4


@given(batches, batches, st.floats(0.01, 1), st.floats(1e-3, 1))
def test_square_root_rule_keeps_the_terms_of_the_equation(
    old: int, new: int, slowness: float, scale: float
) -> None:
    """Time lr^2 steps, c = (1 - beta) / lr^2, sigma lr, eps lr and decay x lr x steps stay."""
    gap = 0.9 * slowness * min(1, old / new)
    hyper = {"lr": 1e-3, "beta1": 1 - gap, "beta2": 1 - gap / 10, "eps": 1e-6 * scale}
    hyper["weight_decay"] = 1e-2
    found = rescale(hyper, from_batch=old, to_batch=new, optimizer="adamw", betas="sde").hyper
    k = new / old
    ratio = {name: found[name] / hyper[name] for name in ("lr", "eps", "weight_decay")}
    assert ratio["lr"] ** 2 / k == pytest.approx(1)
    assert ratio["lr"] * ratio["weight_decay"] / k == pytest.approx(1)
    sigma = 1 / math.sqrt(k)
    assert ratio["lr"] * sigma == pytest.approx(1)
    assert ratio["eps"] * ratio["lr"] == pytest.approx(1)
    assert ratio["eps"] / sigma == pytest.approx(1)
    for name in ("beta1", "beta2"):
        assert (1 - found[name]) / ratio["lr"] ** 2 == pytest.approx(1 - hyper[name])


@given(batches, batches, st.floats(1e-6, 1 - 1e-6))
def test_half_lives_keep_the_memory_in_samples_and_stay_in_range(
    old: int, new: int, beta: float
) -> None:
    """As beta^k it halves after the same samples, and is to first order what the equation has."""
    hyper = {"lr": 1e-3, "betas": (beta, beta)}
    found, other = (
        rescale(hyper, from_batch=old, to_batch=new, optimizer="adam").averages["betas"][mode]
        for mode in ("half-life", "sde")
    )
    for kept in found:
        assert 0 <= kept <= 1
        if 1e-12 < kept < 1 - 1e-12:
            assert math.log(kept) / new == pytest.approx(math.log(beta) / old)
    k = new / old
    gap = k * (1 - beta)
    assert (other is None) == (gap >= 1 - 1e-12)
    if other is not None:
        # Taylor's remainder of x^k about 1, between beta and 1.
        most = abs(k * (k - 1)) / 2 * (1 - beta) ** 2 * max(1.0, beta ** (k - 2))
        assert abs(found[0] - other[0]) <= most * (1 + 1e-9) + 1e-12


def test_each_choice_of_averages_stands_beside_the_one_that_was_taken() -> None:
    for betas in ("half-life", "sde", "keep"):
        found = rescale(ADAMW, from_batch=16, to_batch=64, optimizer="adamw", betas=betas)
        assert found.betas == betas
        assert found.hyper["betas"] == found.averages["betas"][betas]
        assert set(found.averages["betas"]) == {"half-life", "sde", "keep"}
        assert found.averages["betas"]["keep"] == ADAMW["betas"]
    beyond = rescale(ADAMW, from_batch=16, to_batch=16 * 64, optimizer="adamw")
    assert beyond.averages["betas"]["sde"] is None
    assert "betas[0] 0.95 -> 0.0375 remembers 1.0 steps: near k = 20" in " ".join(beyond.warnings)
    assert not rescale(ADAMW, from_batch=16, to_batch=64, optimizer="adamw").warnings
    with pytest.raises(ValueError, match="betas must be one of half-life, sde, keep, got 'half'"):
        rescale(ADAMW, from_batch=16, to_batch=64, optimizer="adamw", betas="half")


@given(st.integers(1, 64), st.integers(1, 19), st.sampled_from(["rmsprop", "adam", "adamw"]))
def test_there_and_back_is_the_identity(batch: int, k: int, optimizer: str) -> None:
    hyper = dict(ADAMW)
    if optimizer == "rmsprop":
        hyper["alpha"] = hyper.pop("betas")[1]
    whole = {name: np.multiply(hyper[name], k) for name in ("steps", "warmup_steps")}
    hyper |= {name: int(value) for name, value in whole.items()}
    hyper["milestones"] = tuple(k * step for step in ADAMW["milestones"])
    there = rescale(hyper, from_batch=batch, to_batch=k * batch, optimizer=optimizer).hyper
    back = rescale(there, from_batch=k * batch, to_batch=batch, optimizer=optimizer).hyper
    assert back.keys() == hyper.keys()
    for name, value in hyper.items():
        np.testing.assert_allclose(back[name], value, rtol=1e-12)


def test_same_batch_changes_nothing_and_workers_only_split_it() -> None:
    same = rescale(ADAMW, from_batch=64, to_batch=16, to_workers=4, optimizer="adamw")
    assert same.factor == 1
    for name, value in ADAMW.items():
        np.testing.assert_allclose(same.hyper[name], value, rtol=1e-15)
    one = rescale(ADAMW, from_batch=64, to_batch=256, optimizer="adamw")
    split = rescale(
        ADAMW, from_batch=32, from_workers=2, to_batch=64, to_workers=4, optimizer="adamw"
    )
    assert one == split


def test_defaults_of_pytorch_are_scaled_too() -> None:
    import inspect

    import torch

    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(torch.optim.AdamW).parameters.items()
    }
    found = rescale({"lr": 1e-3}, from_batch=64, to_batch=64, optimizer="adamw").hyper
    assert set(found) == {"lr", "betas", "eps", "weight_decay"}
    for name, value in found.items():
        np.testing.assert_allclose(value, defaults[name], rtol=1e-12)
    assert rescale({"lr": 1e-3}, from_batch=64, to_batch=64, optimizer="rmsprop").hyper[
        "alpha"
    ] == pytest.approx(inspect.signature(torch.optim.RMSprop).parameters["alpha"].default)


def test_no_first_average_stays_none() -> None:
    hyper = {"lr": 1e-3, "betas": (0.0, 0.99)}
    found = rescale(hyper, from_batch=1, to_batch=50, optimizer="adam", betas="sde").hyper
    assert found["betas"] == (0.0, pytest.approx(0.5))
    found = rescale(hyper, from_batch=1, to_batch=50, optimizer="adam").hyper
    assert found["betas"] == (0.0, pytest.approx(0.99**50))


def test_coupled_decay_stays_and_decoupled_follows_the_root() -> None:
    for optimizer, factor in (("sgd", 1), ("adam", 1), ("rmsprop", 1), ("adamw", 2)):
        hyper = {"lr": 1e-3, "weight_decay": 1e-2}
        found = rescale(hyper, from_batch=16, to_batch=64, optimizer=optimizer).hyper
        assert found["weight_decay"] == pytest.approx(factor * 1e-2)


def _second_moments(lr: float, batch: int, steps: int, decay: float) -> float:
    """E x^2 at the end of SGD on x^2 / 2 with noise 1 / batch and coupled decay, exactly."""
    square = 1.0
    for _ in range(steps):
        square = (1 - lr * (1 + decay)) ** 2 * square + lr**2 / batch
    return square


def test_linear_rule_leaves_an_ornstein_uhlenbeck_process_in_place() -> None:
    """The error falls with lr; keeping lr instead leaves an error that does not."""
    errors, unscaled = [], []
    for lr in (4e-3, 2e-3, 1e-3):
        hyper = {"lr": lr, "weight_decay": 0.1, "steps": round(1.6 / lr)}
        new = rescale(hyper, from_batch=1, to_batch=8, optimizer="sgd").hyper
        base = _second_moments(lr, 1, round(1.6 / lr), 0.1)
        scaled = _second_moments(new["lr"], 8, new["steps"], new["weight_decay"])
        errors.append(abs(scaled - base))
        unscaled.append(abs(_second_moments(lr, 8, new["steps"], 0.1) - base))
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.1)
    assert min(unscaled) > 10 * max(errors)


@pytest.mark.parametrize(
    ("optimizer", "hyper", "limit"),
    [
        ("adam", {"lr": 1e-3, "betas": (0.9, 0.999)}, 10),
        ("rmsprop", {"lr": 1e-3, "alpha": 0.75}, 4),
        ("schedulefree-adamw", {"lr": 1e-3, "betas": (0.9, 0.99)}, 100),
        ("lion", {"lr": 1e-3, "betas": (0.9, 0.95)}, 10),
        ("sgd", {"lr": 0.25, "weight_decay": 0.5}, 8),
        ("adamw", {"lr": 0.25, "weight_decay": 0.5, "betas": (0.99, 0.999)}, 8),
    ],
)
def test_beyond_the_range_the_largest_batch_is_named_and_works(
    optimizer: str, hyper: dict[str, float], limit: int
) -> None:
    with pytest.raises(ValueError, match=f"total batch of {16 * limit - 1}"):
        rescale(hyper, from_batch=16, to_batch=16 * limit, optimizer=optimizer, betas="sde")
    rescale(hyper, from_batch=16, to_batch=16 * limit - 1, optimizer=optimizer, betas="sde")


@given(st.integers(1, 500), st.floats(1, 1e5), st.floats(1.05, 3))
def test_largest_batch_is_where_signal_and_noise_have_grown_by_the_square(
    batch: int, noise_scale: float, closeness: float
) -> None:
    most = largest_batch(batch, noise_scale, closeness=closeness)
    ratio = noise_scale / batch
    assert most / batch == pytest.approx(closeness**2 * (1 + ratio) - ratio)
    signal, noise, k = 1.0, ratio, most / batch
    assert (k * signal + noise) / (signal + noise) == pytest.approx(closeness**2)


def test_warnings_come_where_signal_or_curvature_dominates() -> None:
    hyper = {"lr": 0.1, "momentum": 0.9}

    def warned(to_batch: int, **facts: float) -> str:
        found = rescale(hyper, from_batch=32, to_batch=to_batch, optimizer="momentum", **facts)
        return " ".join(found.warnings)

    assert warned(256, noise_scale=1e4, sharpness=1.0) == ""
    assert "signal-dominated" in warned(256, noise_scale=100)
    assert "N/G" in warned(256, noise_scale=200)
    assert "signal-dominated" not in warned(128, noise_scale=100)
    assert "edge of stability at 3.8" in warned(256, sharpness=4.76)
    assert "0.8 * 3 = 2.4" not in warned(256, sharpness=3.0)
    assert "curvature-dominated" in warned(256, sharpness=3.0)
    assert warned(256, sharpness=2.0) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adagrad"}, "optimizer must be one of"),
        ({"from_batch": 0}, "from_batch must be at least 1"),
        ({"hyper": {"lr": 1e-3, "beta": (0.9, 0.99)}}, "did you mean beta"),
        ({"hyper": {"betas": (0.9, 0.99)}}, "hyper must hold lr"),
        ({"hyper": {"lr": math.nan}}, "lr must be a finite number above 0"),
        ({"hyper": {"lr": "3e-4"}}, "lr must be a number, got the text '3e-4'"),
        ({"hyper": {"lr": 1e-3, "weight_decay": None}}, "weight_decay must be a number, got None"),
        ({"hyper": {"lr": 1e-3, "eps": "1e-8"}}, "eps must be a number, got the text"),
        ({"hyper": {"lr": 1e-3, "betas": ("0.9", 0.9)}}, r"betas\[0\] must be a number"),
        ({"hyper": {"lr": 1e-3, "milestones": 30}}, "milestones must be a sequence"),
        ({"hyper": {"lr": 1e-3, "betas": (0.9,)}}, "betas must be two numbers"),
        ({"hyper": {"lr": 1e-3, "betas": (0.9, 1.0)}}, r"betas\[1\] must lie in \[0, 1\)"),
        ({"hyper": {"lr": 1e-3, "betas": (0.9, 0.9), "beta1": 0.9}}, "both betas and beta1"),
        ({"hyper": {"lr": 1e-3, "weight_decay": -1.0}}, "weight_decay must be"),
        ({"hyper": {"lr": 1e-3, "eps": -1.0}}, "eps must be"),
        ({"hyper": {"lr": 1e-3, "momentum": 0.9}}, "adam reads"),
        ({"noise_scale": 0.0}, "noise_scale"),
        ({"sharpness": -1.0}, "sharpness"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    usual = {"hyper": {"lr": 1e-3}, "from_batch": 8, "to_batch": 16, "optimizer": "adam"} | change
    with pytest.raises(ValueError, match=message):
        rescale(usual.pop("hyper"), **usual)


def test_counts_are_whole_numbers() -> None:
    usual = {"from_batch": 8, "to_batch": 16, "optimizer": "adam"}
    with pytest.raises(TypeError, match=r"to_workers must be a whole number, got 1\.5"):
        rescale({"lr": 1e-3}, **usual, to_workers=1.5)
    with pytest.raises(TypeError, match=r"steps must be a whole number, got 2\.5"):
        rescale({"lr": 1e-3, "steps": 2.5}, **usual)


def test_it_reads_like_a_sentence_and_says_which_equation() -> None:
    found = rescale(ADAMW, from_batch=16, to_batch=64, optimizer="adamw", noise_scale=8)
    assert "Batch x 4 by the square root rule: lr 0.0006" in repr(found)
    assert "2 warnings" in repr(found)
    assert {change.name for change in found.changes} == set(ADAMW)
    assert "lr 0.0003 -> 0.0006 (lr' = sqrt(k) lr)" in repr(found.changes[0])
    with pytest.raises(ValueError, match="closeness must be above 1"):
        largest_batch(8, 10.0, closeness=1.0)


@pytest.mark.parametrize(("steps", "factor", "said"), [(1000, 4, "same"), (10, 32, "3.2 times")])
def test_steps_that_do_not_divide_say_how_many_samples_are_seen(
    steps: int, factor: int, said: str
) -> None:
    hyper = {"lr": 0.1, "steps": steps}
    found = rescale(hyper, from_batch=1, to_batch=factor, optimizer="sgd")
    assert said in next(change.reason for change in found.changes if change.name == "steps")
