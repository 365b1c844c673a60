"""The rule of every family, by trajectory: the same path at k times the batch, and no other."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from matched_samples import path
from torch import Tensor

from undertow import predict

ADAM: dict[str, Any] = {"lr": 3e-3, "betas": (0.95, 0.99)}
JOBS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 1e-3},
    "momentum": {"lr": 1e-4, "momentum": 0.9, "weight_decay": 0.5},
    "rmsprop": {"lr": 3e-3, "alpha": 0.99},
    "adam": ADAM,
    "adamw": ADAM | {"weight_decay": 0.5},
    "nadam": ADAM | {"momentum_decay": 0.02},
    "radam": ADAM,
    "adamax": ADAM | {"lr": 8e-3},
    "adafactor": {"lr": 4e-3, "weight_decay": 0.5},
    "lamb": {"lr": 1e-2, "betas": (0.9, 0.98), "weight_decay": 0.02},
    "lion": {"lr": 2e-3, "betas": (0.9, 0.98), "weight_decay": 0.5},
    "muon": {"lr": 1e-2, "momentum": 0.95, "weight_decay": 0.5},
    "sign": {"lr": 2e-3, "momentum": 0.9, "weight_decay": 0.5},
    "schedulefree-sgd": {"lr": 2e-3, "momentum": 0.9},
    "schedulefree-adamw": ADAM | {"lr": 8e-3, "weight_decay": 0.2},
}


def test_every_family_with_a_rule_is_tried() -> None:
    assert set(JOBS) == {name for name, own in predict.FAMILIES.items() if own.rule is not None}


@cache
def base(family: str) -> Tensor:
    hyper = predict.rescale(JOBS[family], from_batch=1, to_batch=1, optimizer=family).hyper
    return path(family, hyper, 1, seed=1)


def off(family: str, hyper: Any, k: int) -> float:
    """How far the path lies from that at the small batch, in mean and mean square."""
    return float((path(family, hyper, k, seed=2) - base(family)).abs().mean())


@pytest.mark.parametrize("family", JOBS)
def test_the_rule_keeps_the_path_and_its_neighbours_do_not(family: str) -> None:
    """At 4 times the batch; the rate as it was, and twice and half the rule's, are farther off."""
    k = 4
    found = predict.rescale(JOBS[family], from_batch=1, to_batch=k, optimizer=family)
    kept = off(family, found.hyper, k)
    assert kept < 0.02
    for rate in (JOBS[family]["lr"], found.hyper["lr"] / 2, found.hyper["lr"] * 2):
        assert off(family, {**found.hyper, "lr": rate}, k) > 4 * kept


@pytest.mark.parametrize("family", ["lion", "sign", "lamb", "muon"])
@pytest.mark.parametrize("betas", ["sde", "keep"])
def test_the_rate_of_an_update_of_one_size_goes_with_its_averages(family: str, betas: Any) -> None:
    """Whatever becomes of the averages, its own rate is nearer than that of the other choice."""
    k = 4
    own, other = (
        predict.rescale(
            JOBS[family],
            from_batch=1,
            to_batch=k,
            optimizer=family,
            betas=mode,
        ).hyper
        for mode in (betas, "keep" if betas == "sde" else "sde")
    )
    wrong = {**own, "lr": other["lr"]}
    assert off(family, own, k) < off(family, wrong, k) / 2


@pytest.mark.parametrize("family", ["lion", "sign", "muon", "adamw", "adafactor", "lamb"])
def test_decoupled_decay_forgets_as_much_over_the_same_samples(family: str) -> None:
    job = JOBS[family]
    for k in (2, 8):
        new = predict.rescale(job, from_batch=1, to_batch=k, optimizer=family).hyper
        kept = new["lr"] * new["weight_decay"] / (k * job["lr"] * job["weight_decay"])
        if family == "lamb":  # whose decay is divided by the size of its direction
            noise = [math.sqrt((1 - b) / (1 + b)) for b in (job["betas"][0], new["betas"][0])]
            kept *= noise[0] / noise[1]
        assert kept == pytest.approx(1)


def test_the_noise_that_averages_leave_is_that_of_simulated_ones() -> None:
    from undertow.predict._averages import largest_gradient, noise_left

    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(4_000, 256, generator=generator, dtype=torch.float64)
    for b in (0.0, 0.5, 0.9):
        mean = torch.zeros(256, dtype=torch.float64)
        largest, kept = torch.zeros_like(mean), {"lion": [], "muon": [], "sign": [], "max": []}
        for gradient in gradients:
            kept["lion"].append(0.8 * mean + 0.2 * gradient)
            mean = b * mean + (1 - b) * gradient
            kept["muon"].append(b * mean + (1 - b) * gradient)
            kept["sign"].append(mean)
            largest = torch.maximum(b * largest, gradient.abs())
            kept["max"].append(largest)
        settled = {name: torch.stack(values[100:]) for name, values in kept.items()}
        hyper = {
            "lion": {"betas": (0.8, b)},
            "muon": {"momentum": b, "nesterov": True},
            "sign": {"momentum": b},
        }
        for name, own in hyper.items():
            assert noise_left(name, own) == pytest.approx(float(settled[name].std()), rel=0.01)
        assert largest_gradient(b) == pytest.approx(float(settled["max"].mean()), rel=0.01)


def test_the_largest_gradient_of_a_long_memory_is_found_in_blocks() -> None:
    """E max grows like sqrt(2 log n): slowly, and by nothing at the border to blocks."""
    from undertow.predict._averages import largest_gradient

    values = [largest_gradient(1 - 10**-power) for power in (1, 2, 3, 4, 6)]
    assert values == sorted(values)
    assert largest_gradient(0.99255) == pytest.approx(largest_gradient(0.99251), rel=1e-3)
    assert largest_gradient(0.0) == pytest.approx(math.sqrt(2 / math.pi), rel=1e-4)


def test_for_an_unknown_optimizer_the_rate_is_open_and_its_product_known() -> None:
    hyper = {"lr": 1e-3, "weight_decay": 0.1, "steps": 800, "warmup_steps": 80}
    found = predict.rescale(hyper, from_batch=8, to_batch=32, optimizer="unknown")
    assert found.hyper == {"lr": None, "weight_decay": None, "steps": 200, "warmup_steps": 20}
    assert "no rule is known for the rate" in repr(found.changes[0])
    assert found.changes[1].equation == "weight_decay' = k weight_decay lr / lr'"
    for rule in ("linear", "sqrt", "fixed rate", "surge"):
        with pytest.raises(ValueError, match="no rule is known for the rate"):
            predict.rescale(hyper, from_batch=8, to_batch=32, optimizer="unknown", rule=rule)


def test_a_decay_that_is_said_to_be_decoupled_is() -> None:
    for family in ("adam", "nadam", "radam"):
        hyper = {"lr": 1e-3, "weight_decay": 0.1, "decoupled_weight_decay": True}
        found = predict.rescale(hyper, from_batch=8, to_batch=32, optimizer=family)
        assert found.hyper["weight_decay"] == pytest.approx(0.2)
        assert found.hyper["decoupled_weight_decay"] is True
