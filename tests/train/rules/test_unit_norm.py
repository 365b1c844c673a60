"""Weights kept on the unit sphere: the constraint, and the learning rates that it amounts to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_runs import draw, scale_invariant_gradient

from undertow.train import rules
from undertow.train.rules import Hyper, Rule

RULES = (
    rules.sgd,
    rules.momentum,
    rules.ema_momentum,
    rules.rmsprop,
    rules.adam,
    rules.adamw,
    rules.adaptive(eps="inside"),
)
HYPER = Hyper(0.05, 0.1, 0.9, beta1=0.8, beta2=0.95)
every = pytest.mark.parametrize("rule", RULES, ids=repr)
methods = pytest.mark.parametrize("method", ["projection", "lagrange"])


@every
@methods
@pytest.mark.parametrize("members", [(), (3,)])
def test_weights_stay_on_the_sphere(rule: Rule, method: Any, members: tuple[int, ...]) -> None:
    wrapped = rules.unit_norm(rule, method=method)
    hyper = HYPER
    if members:
        hyper = replace(HYPER, lr=torch.tensor([0.05, 0.5, 0.0], dtype=torch.float64))
    shapes = ((4, 3), (2, 3, 2, 2), (5,), ())
    params = [draw(i, *members, *shape) for i, shape in enumerate(shapes)]
    plain, plain_state = params[2:], rule.init(params[2:])
    state = wrapped.init(params)
    for step in range(30):
        grads = [draw(100 + 10 * step + i, *own.shape) for i, own in enumerate(params)]
        params, state = wrapped.update(params, grads, state, hyper)
        plain, plain_state = rule.update(plain, grads[2:], plain_state, hyper)
        for weight in params[:2]:
            norms = weight.flatten(len(members)).norm(dim=-1)
            torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-12)
    for vector, expected in zip(params[2:], plain, strict=True):
        torch.testing.assert_close(vector, expected)


@every
def test_unit_norm_in_place_is_the_same(rule: Rule) -> None:
    wrapped = rules.unit_norm(rules.svag(rule, 2), method="lagrange")
    start, grad = draw(0, 4, 3), draw(1, 4, 3)
    expected, _ = wrapped.update([start], [grad], wrapped.init([start]), HYPER)
    own = start.clone()
    found, _ = wrapped.update([own], [grad.clone()], wrapped.init([own]), HYPER, inplace=True)
    assert found[0].data_ptr() == own.data_ptr()
    assert torch.equal(found[0], expected[0])


@methods
@given(scale=st.floats(0.2, 5))
@settings(max_examples=20, deadline=None)
def test_decay_of_a_free_norm_is_a_learning_rate_on_the_sphere(method: Any, scale: float) -> None:
    """The direction under SGD with weight decay is `unit_norm(sgd)` at `effective_lr`."""
    lr, weight_decay = 0.3, 0.2
    weight = scale * draw(0, 4, 3)
    sphere = rules.unit_norm(rules.sgd, method=method)
    for _ in range(10):
        theta = weight / weight.norm()
        rate = float(rules.effective_lr(weight, lr, weight_decay=weight_decay))
        grad = scale_invariant_gradient(theta)
        (turned,), _ = sphere.update([theta], [grad], {}, Hyper(rate))
        grad = scale_invariant_gradient(weight)
        (weight,), _ = rules.sgd.update([weight], [grad], {}, Hyper(lr, weight_decay))
        torch.testing.assert_close(turned, weight / weight.norm(), rtol=1e-10, atol=1e-12)


@methods
def test_the_effective_learning_rates_on_the_sphere(method: Any) -> None:
    """V moves to V - rate (g - (g . V) V), up to its norm."""
    lr, weight_decay = 0.2, 0.3
    weight, grad = draw(0, 4, 3), draw(1, 4, 3)
    weight /= weight.norm()
    radial = (grad * weight).sum()
    (found,), _ = rules.unit_norm(rules.sgd, method=method).update(
        [weight], [grad], {}, Hyper(lr, weight_decay)
    )
    shrinking = lr * weight_decay + (lr * radial if method == "projection" else 0)
    moved = weight - lr / (1 - shrinking) * (grad - radial * weight)
    torch.testing.assert_close(found, moved / moved.norm(), rtol=1e-12, atol=1e-13)


def test_effective_learning_rates_of_members_are_their_own() -> None:
    weights, lr = draw(3, 3, 4, 2), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    found = rules.effective_lr(weights, lr, weight_decay=0.5)
    alone = [rules.effective_lr(weights[e], float(lr[e]), weight_decay=0.5) for e in range(3)]
    torch.testing.assert_close(found, torch.stack(alone))


def test_a_diverged_member_that_was_set_to_zero_stays_zero() -> None:
    rule = rules.unit_norm(rules.sgd)
    params = [torch.stack([draw(0, 2, 2), torch.zeros(2, 2).double()])]
    grads, lr = [torch.zeros_like(params[0])], torch.tensor([0.1, 0.0]).double()
    (found,), _ = rule.update(params, grads, {}, Hyper(lr))
    assert torch.equal(found[1], torch.zeros_like(found[1]))
