"""The noisy oscillator: its SDEs' moments, its linear paths, and how SVAG brings rules to them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from undertow.train import NoisyOscillator, rules
from undertow.train.rules import Hyper, Rule

HYPER = Hyper(0.5, beta1=0.5, beta2=0.5, eps=0.2)
SGD = NoisyOscillator(rules.sgd, Hyper(0.5), end=2.0)
RMSPROP = NoisyOscillator(rules.rmsprop, HYPER, noise=2.0, start=0.5, end=2.0)
ADAM = NoisyOscillator(rules.adam, HYPER, noise=2.0, start=0.5, end=2.0)
EACH = pytest.mark.parametrize(
    "oscillator", [SGD, RMSPROP, ADAM, replace(ADAM, warm=False)], ids=lambda o: o.rule.name
)


def simulated(oscillator: NoisyOscillator, rule: Rule | None = None, paths: int = 2**15) -> float:
    generator = torch.Generator().manual_seed(5)
    return oscillator.simulated_moment(rule, paths=paths, generator=generator)


@pytest.mark.parametrize("l", [1, 4])
def test_the_moment_of_sgd_is_that_of_its_recursion(l: int) -> None:  # noqa: E741
    rate, moment = 0.5 / l, 1.0
    for _ in range(4 * l):
        moment = (1 - rate) ** 2 * moment + rate**2 * l
    rule = rules.svag(rules.sgd, l)
    assert SGD.linear_moment(rule) == pytest.approx(moment)
    assert simulated(SGD, rule) == pytest.approx(moment, abs=0.01)


@pytest.mark.parametrize(("oscillator", "order"), [(SGD, 1), (RMSPROP, 2), (ADAM, 2)])
def test_the_order_of_svag_is_one_for_sgd_and_two_for_the_others(
    oscillator: NoisyOscillator, order: int
) -> None:
    levels = (4, 8, 16)
    errors = [
        oscillator.linear_moment(rules.svag(oscillator.rule, level)) - oscillator.sde_moment()
        for level in levels
    ]
    # In whole powers of the step of time, 1 / l^order: without the second, that of the first.
    first, second = (4**order * fine - coarse for coarse, fine in pairwise(errors))
    assert math.log2(first / second) == pytest.approx(order, abs=0.01)


@EACH
def test_the_sde_is_the_limit_of_the_linear_paths(oscillator: NoisyOscillator) -> None:
    errors = [
        oscillator.linear_moment(rules.svag(oscillator.rule, l)) - oscillator.sde_moment()
        for l in (50, 200)  # noqa: E741
    ]
    assert abs(errors[1]) < 2e-3 * oscillator.sde_moment()
    assert abs(errors[1]) < abs(errors[0]) / 3.5


@pytest.mark.parametrize("warm", [True, False])
def test_the_linear_moment_is_that_of_linear_paths(warm: bool) -> None:
    hyper = Hyper(0.2, beta1=0.7, eps=0.3)
    oscillator = NoisyOscillator(rules.adam, hyper, noise=1.2, end=5 * 0.2**2, warm=warm)
    generator = torch.Generator().manual_seed(1)
    x = torch.ones(200_000, dtype=torch.float64)
    mean = torch.zeros_like(x)
    for step in range(1, 6):
        noise = 1.2 * torch.randn(len(x), dtype=torch.float64, generator=generator)
        mean = 0.7 * mean + 0.3 * (x + noise)
        x = x - 0.2 / 1.5 * mean / (1 if warm else 1 - 0.7**step)
    assert oscillator.linear_moment() == pytest.approx(float(x.square().mean()), rel=0.01)


@pytest.mark.parametrize("warm", [True, False])
def test_a_bias_correction_from_step_0_adds_a_logarithm_to_the_weak_error(warm: bool) -> None:
    hyper = Hyper(0.25, beta1=0.75, beta2=0.75, eps=0.4)
    oscillator = NoisyOscillator(rules.adam, hyper, noise=4.0, warm=warm)

    def moment(l: int) -> float:  # noqa: E741
        return oscillator.linear_moment(rules.svag(rules.adam, l))

    # Of order 1/l^2 these would be equal; with log(l) / l^2 they go on in equal steps.
    scaled = [(moment(l) - moment(2 * l)) * l**2 for l in (8, 16, 32)]  # noqa: E741
    steps = np.abs(np.diff(scaled))
    if warm:
        assert steps.max() < 0.01 * abs(scaled[0])
    else:
        assert steps[1] == pytest.approx(steps[0], rel=0.1)
        assert steps[1] > 0.05 * abs(scaled[0])


@pytest.mark.parametrize("oscillator", [RMSPROP, ADAM], ids=["rmsprop", "adam"])
def test_svag_brings_an_adaptive_rule_to_its_sde_and_weaker_noise_does_not(
    oscillator: NoisyOscillator,
) -> None:
    fine = rules.svag(oscillator.rule, 4)
    spread = math.sqrt(7)  # a variance of l = 4 where SVAG has l^2
    weak = replace(fine, batch_weights=((1 + spread) / 2, (1 - spread) / 2))
    bare, near, far = (
        abs(simulated(oscillator, rule) - oscillator.sde_moment()) for rule in (None, fine, weak)
    )
    assert near < bare / 10
    assert far > bare / 2


def test_the_difference_from_linear_paths_takes_the_spread_away() -> None:
    fine = rules.svag(rules.adam, 4)
    moments = [
        ADAM.simulated_moment(fine, paths=500, generator=torch.Generator().manual_seed(seed))
        for seed in range(8)
    ]
    # Of 500 plain paths the standard error of E x^2 is about E x^2 (2 / 500)^(1/2).
    assert np.std(moments) < ADAM.sde_moment() * math.sqrt(2 / 500) / 5


def test_paths_are_cut_into_pieces_of_which_none_is_lost() -> None:
    still = NoisyOscillator(rules.sgd, Hyper(0.5), noise=1e-12, end=1.0)
    # Two halvings of x = 1, whatever the number of paths.
    for paths in (1, 2**14, 2**14 + 3):
        assert simulated(still, paths=paths) == pytest.approx(1 / 16)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rule": rules.momentum}, "rule must be one of rules.sgd"),
        ({"rule": rules.svag(rules.sgd, 2)}, "rule must be one of rules.sgd"),
        ({"noise": 0.0}, "noise must be above 0, got 0"),
        ({"end": math.inf}, "end must be above 0, got inf"),
        ({"hyper": Hyper(0.5, weight_decay=0.1)}, "hyper must be plain numbers without weight"),
        ({"hyper": Hyper(torch.tensor([0.1, 0.2]))}, "hyper must be plain numbers"),
        ({"rule": rules.rmsprop, "warm": False}, "warm must be True for rmsprop"),
    ],
)
def test_what_has_no_equation_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SGD, **changed)


def test_a_rule_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rule must be rules.sgd or this in rules.svag"):
        SGD.linear_moment(rules.adam)
    with pytest.raises(ValueError, match="paths must be at least 1, got 0"):
        simulated(SGD, paths=0)
