"""Wrappers of update rules: what SVAG does to noise and time, label noise, and how they compose."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_runs import draw, scale_invariant_gradient

from undertow.train import rules
from undertow.train.rules import Hyper, Rule

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

LINEAR = (rules.sgd, rules.momentum, rules.ema_momentum)
INSIDE = rules.adaptive(eps="inside")
ADAPTIVE = (rules.rmsprop, rules.adam, rules.adamw, INSIDE)
EVERY = LINEAR + ADAPTIVE
every = pytest.mark.parametrize("rule", EVERY, ids=repr)
factors = st.floats(1, 1e4)


def walk(rule: Rule, hyper: Hyper, start: Tensor, gradient: Any, steps: int) -> Tensor:
    """Steps along `gradient(params)`, the same for every batch."""
    params, state = [start], rule.init([start])
    for _ in range(steps):
        grads = [[gradient(params[0])] for _ in rule.batch_weights]
        params, state = rule.update(params, rule.combine(grads), state, hyper)
    return params[0]


# ---- SVAG


@every
def test_at_one_svag_is_the_rule(rule: Rule) -> None:
    assert rules.svag(rule, 1) is rule
    assert rules.svag(rule, 1.0) is rule


@pytest.mark.slow
@every
@given(finer=factors)
def test_weights_keep_the_mean_and_amplify_the_covariance(rule: Rule, finer: float) -> None:
    """Over all outcomes of two independent noises of +-1 on a gradient of 0.7."""
    fine = rules.svag(rule, finer)
    outcomes = [
        float(
            fine.combine([[torch.tensor([0.7 + sign], dtype=torch.float64)] for sign in signs])[0]
        )
        for signs in itertools.product((-1, 1), repeat=len(fine.batch_weights))
    ]
    mean = sum(outcomes) / len(outcomes)
    variance = sum((value - mean) ** 2 for value in outcomes) / len(outcomes)
    assert mean == pytest.approx(0.7, abs=1e-9 * max(outcomes))
    assert variance == pytest.approx(finer if rule in LINEAR else finer**2, rel=1e-9)
    assert fine.steps_per_step == pytest.approx(finer if rule in LINEAR else finer**2)


@every
@pytest.mark.parametrize("variance", [0.5, 1.0, 3.0])
def test_another_variance_changes_the_weights_and_nothing_else(rule: Rule, variance: float) -> None:
    own, other = rules.svag(rule, 3), rules.svag(rule, 3, variance=variance)
    assert sum(other.batch_weights) == pytest.approx(1)
    assert sum(weight**2 for weight in other.batch_weights) == pytest.approx(variance)
    assert other.steps_per_step == own.steps_per_step
    assert repr(replace(other, batch_weights=own.batch_weights)) == repr(own)


def test_a_variance_that_no_weights_give_is_refused() -> None:
    for variance in (0.4, math.nan, math.inf):
        with pytest.raises(ValueError, match="variance must be finite and at least 1/2"):
            rules.svag(rules.sgd, 2, variance=variance)


@every
@given(finer=factors)
@settings(max_examples=20)
def test_hyperparameters_go_with_the_powers_of_the_paper(rule: Rule, finer: float) -> None:
    scaled = rule.scaling.apply(Hyper(0.1, 0.2, 0.7, beta1=0.8, beta2=0.9, eps=1e-3), finer)
    assert scaled.lr == pytest.approx(0.1 / finer)
    assert scaled.momentum == 0.7
    steps = finer if rule in LINEAR else finer**2
    if rule is rules.adamw:  # the weights shrink by lr x weight_decay a step
        assert scaled.lr * scaled.weight_decay * steps == pytest.approx(0.02)
    else:
        assert scaled.weight_decay == 0.2
    if rule in ADAPTIVE:
        assert 1 - scaled.beta1 == pytest.approx(0.2 / finer**2, rel=1e-6)
        assert 1 - scaled.beta2 == pytest.approx(0.1 / finer**2, rel=1e-6)
        assert scaled.eps == pytest.approx(1e-3 * (finer**2 if rule is INSIDE else finer))
    else:
        assert (scaled.beta1, scaled.beta2, scaled.eps) == (0.8, 0.9, 1e-3)


def second_moment(rule: Rule, hyper: Hyper, steps: int, *, sigma: float) -> float:
    """E x^2 after `steps` of the rule inside, on L = x^2 / 2 with noise sigma, from x = 1. Exact.

    The update is linear: one replica carries the start, each other the response to one noise.
    """
    count = round(steps * rule.steps_per_step)
    batches = len(rule.batch_weights)
    x = torch.zeros(1 + count * batches, dtype=torch.float64)
    x[0] = 1
    params, state = [x], rule.init([x])
    for step in range(count):
        grads = [params[0].clone() for _ in range(batches)]
        for batch, grad in enumerate(grads):
            grad[1 + step * batches + batch] += sigma
        params, state = rule.update(params, rule.combine([[g] for g in grads]), state, hyper)
    return float(params[0].square().sum())


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The slope of log y against log x by least squares."""
    x, y = (torch.tensor(values).double().log() for values in (xs, ys))
    return float(((x - x.mean()) * y).sum() / (x - x.mean()).square().sum())


FINER = (1, 2, 4, 8, 16, 32)


def ou_errors(rule: Callable[[int], Rule], hyper: Hyper, *, sigma: float) -> list[float]:
    """|E x^2 - that of dX = -X dt + sqrt(rate) sigma dW| at time 2, for each of FINER.

    The rate is the learning rate, under heavy ball lr / (1 - momentum).
    """
    rate = hyper.lr / (1 - hyper.momentum)
    steps = round(2 / rate)
    kept = math.exp(-2 * steps * rate)
    limit = kept + rate * sigma**2 / 2 * (1 - kept)
    return [abs(second_moment(rule(own), hyper, steps, sigma=sigma) - limit) for own in FINER]


@pytest.mark.parametrize("rule", [rules.sgd, rules.momentum], ids=repr)
def test_the_weak_error_of_svag_falls_like_one_over_l(rule: Rule) -> None:
    hyper = Hyper(0.5) if rule is rules.sgd else Hyper(0.1, momentum=0.5)
    errors = ou_errors(partial(rules.svag, rule), hyper, sigma=1.5)
    assert -1.25 < slope(FINER[1:], errors[1:]) < -0.85
    assert errors == sorted(errors, reverse=True)


def test_with_too_little_noise_the_weak_error_stays() -> None:
    """The control: weights (1 +- sqrt(l)) / 2 make the covariance grow by (1 + l) / 2 only."""

    def weak(finer: int) -> Rule:
        return rules.svag(rules.sgd, finer, variance=(1 + finer) / 2)

    errors = ou_errors(weak, Hyper(0.5), sigma=1.5)
    assert slope(FINER[1:], errors[1:]) > -0.25
    assert errors[-1] > 0.1


def rmsprop_moment(rule: Rule, finer: float, seed: int) -> float:
    """E x^2 at time 8 lr^2 on L = x^2 / 2 with noise +-2, from x = 1, over 60,000 replicas.

    The mean squared gradient starts from that of the noise of the rule given.
    """
    sigma, hyper = 2.0, Hyper(0.5, beta2=0.75, eps=0.1)
    generator = torch.Generator().manual_seed(seed)
    params = [torch.ones(60_000, dtype=torch.float64)]
    state = {"square": [torch.full_like(params[0], (sigma * finer) ** 2)]}
    for _ in range(round(8 * finer**2)):
        shape = (len(rule.batch_weights), len(params[0]))
        signs = 2 * torch.randint(2, shape, generator=generator).double() - 1
        grads = [[params[0] + sigma * own] for own in signs]
        params, state = rule.update(params, rule.combine(grads), state, hyper, inplace=True)
    return float(params[0].square().mean())


def test_the_weak_error_of_svag_for_rmsprop_falls_at_least_like_one_over_l_squared() -> None:
    """Against l = 5; noise that grows like that of SGD, the control, tends to something else."""
    limit = rmsprop_moment(rules.svag(rules.rmsprop, 5), 5, seed=0)
    finer = (1, math.sqrt(2), 2)
    errors = [
        abs(rmsprop_moment(rules.svag(rules.rmsprop, own), own, seed=k) - limit)
        for k, own in enumerate(finer, 1)
    ]
    assert errors[0] > 0.05
    assert slope(finer, errors) < -1.5
    weak = rules.svag(rules.rmsprop, 4, variance=4)
    assert abs(rmsprop_moment(weak, 4, seed=4) - limit) > 2 * errors[2]


@given(finer=st.integers(1, 12), weight_decay=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_svag_forgets_at_the_rate_of_the_rule(finer: int, weight_decay: float) -> None:
    """Without gradients W shrinks by (1 - lr weight_decay / n)^n, n steps making one."""
    lr = 0.3
    for rule in (rules.sgd, rules.adamw):
        fine = rules.svag(rule, finer)
        n = round(fine.steps_per_step)
        end = walk(fine, Hyper(lr, weight_decay), draw(0, 4), torch.zeros_like, 3 * n)
        kept = (1 - lr * weight_decay / n) ** (3 * n)
        torch.testing.assert_close(end, draw(0, 4) * kept, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("words", "error", "finer"),
    [
        ("l must be finite and at least 1, got 0.5", ValueError, 0.5),
        ("l must be finite and at least 1, got -3", ValueError, -3),
        ("l must be finite", ValueError, math.inf),
        ("l must be finite", ValueError, math.nan),
        ("l must be a number", TypeError, "2"),
        ("l must be a number", TypeError, True),
    ],
)
def test_how_fine_svag_may_be(words: str, error: type[Exception], finer: Any) -> None:
    with pytest.raises(error, match=words):
        rules.svag(rules.sgd, finer)


# ---- label noise


def test_noise_on_numbers_has_mean_zero_and_the_variance_given() -> None:
    rule = rules.label_noise(rules.sgd, std=0.3)
    targets = draw(0, 200_000, 2)
    noise = rule.perturb(targets, torch.Generator().manual_seed(1)) - targets
    size = noise.numel()
    assert abs(float(noise.mean())) < 4 * 0.3 / math.sqrt(size)
    assert float(noise.var()) == pytest.approx(0.09, rel=4 * math.sqrt(2 / size))
    product = noise.prod(1)  # the two outputs are independent
    assert abs(float(product.mean())) < 4 * 0.09 / math.sqrt(len(product))


@pytest.mark.parametrize("classes", [2, 5])
def test_flips_are_uniform_over_all_classes(classes: int) -> None:
    probability, count = 0.4, 200_000
    rule = rules.label_noise(rules.sgd, flip_probability=probability, num_classes=classes)
    targets = torch.full((count,), 1)
    noisy = rule.perturb(targets, torch.Generator().manual_seed(1))
    assert noisy.dtype == targets.dtype
    share = torch.bincount(noisy, minlength=classes).double() / count
    for label, found in enumerate(share.tolist()):
        expected = probability / classes + (1 - probability) * (label == 1)
        assert found == pytest.approx(expected, abs=4 * math.sqrt(expected / count))


def test_ignored_labels_stay() -> None:
    rule = rules.label_noise(rules.sgd, flip_probability=1.0, num_classes=3)
    targets = torch.tensor([-100, 0, 1, 2, 7] * 50)
    noisy = rule.perturb(targets, torch.Generator().manual_seed(1))
    kept = (targets < 0) | (targets > 2)
    assert torch.equal(noisy[kept], targets[kept])
    assert not torch.equal(noisy[~kept], targets[~kept])


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("got neither", {}),
        ("got both", {"std": 1.0, "flip_probability": 0.1}),
        ("std must be finite and not negative, got -1", {"std": -1.0}),
        ("std must be finite", {"std": math.nan}),
        ("flip_probability must lie between 0 and 1, got 1.5", {"flip_probability": 1.5}),
        ("needs num_classes", {"flip_probability": 0.1}),
        ("at least 2, got 1", {"flip_probability": 0.1, "num_classes": 1}),
    ],
)
def test_label_noise_that_cannot_be_meant(words: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=words):
        rules.label_noise(rules.sgd, **options)


def test_label_noise_of_the_other_kind() -> None:
    generator = torch.Generator()
    with pytest.raises(TypeError, match="for class labels use flip_probability"):
        rules.label_noise(rules.sgd, std=1.0).perturb(torch.tensor([1, 2]), generator)
    flips = rules.label_noise(rules.sgd, flip_probability=0.1, num_classes=3)
    with pytest.raises(TypeError, match="for numbers use std"):
        flips.perturb(torch.tensor([1.0, 2.0]), generator)


# ---- what holds for all of them

HYPER = Hyper(0.05, 0.1, 0.9, beta1=0.8, beta2=0.95)


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        *((rule, True) for rule in LINEAR),
        (rules.svag(rules.momentum, 3), True),
        (rules.unit_norm(rules.momentum), True),
        (rules.unit_norm(rules.sgd, method="lagrange"), True),
        *((rule, False) for rule in ADAPTIVE),
    ],
)
def test_a_rotation_of_the_weights_rotates_the_trajectory(rule: Rule, holds: bool) -> None:
    """The control are rules that divide coordinate by coordinate, for which it must fail."""
    rotation, _ = torch.linalg.qr(draw(5, 4, 4))

    def rotated(weight: Tensor) -> Tensor:
        return rotation @ scale_invariant_gradient(rotation.mT @ weight)

    plain = walk(rule, HYPER, draw(0, 4, 3), scale_invariant_gradient, 20)
    turned = walk(rule, HYPER, rotation @ draw(0, 4, 3), rotated, 20)
    error = float((turned - rotation @ plain).norm() / plain.norm())
    assert error < 1e-10 if holds else error > 1e-2


def test_wrappers_compose_in_any_order() -> None:
    makers = (
        lambda rule: rules.svag(rule, 3),
        lambda rule: rules.label_noise(rule, std=0.1),
        lambda rule: rules.unit_norm(rule, method="lagrange"),
    )
    ends = []
    for order in itertools.permutations(makers):
        rule = rules.momentum
        for make in order:
            rule = make(rule)
        assert rule.steps_per_step == 3
        assert len(rule.batch_weights) == 2
        assert rule.perturb is not None
        ends.append(walk(rule, HYPER, draw(0, 4, 3), scale_invariant_gradient, 5))
    assert all(torch.equal(ends[0], end) for end in ends)


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("svag", lambda rule: rules.svag(rule, 2)),
        ("label_noise", lambda rule: rules.label_noise(rule, std=1.0)),
        ("unit_norm", lambda rule: rules.unit_norm(rule)),
    ],
)
def test_what_wrappers_refuse(name: str, wrap: Callable[[Any], Rule]) -> None:
    between = rules.label_noise if name != "label_noise" else rules.svag
    options: dict[str, Any] = {"std": 1.0} if name != "label_noise" else {"l": 2}
    for twice in (wrap(rules.sgd), between(wrap(rules.sgd), **options)):
        with pytest.raises(ValueError, match=f"is wrapped in {name} already"):
            wrap(twice)
    for other in (torch.optim.SGD, "sgd", None):
        with pytest.raises(TypeError, match=f"{name} wraps one of train.rules"):
            wrap(other)


def test_a_rule_of_ones_own_needs_a_scaling_for_svag() -> None:
    own = replace(rules.sgd, name="own", scaling=None)
    with pytest.raises(ValueError, match="give the Rule a `scaling`"):
        rules.svag(own, 2)
    with pytest.raises(ValueError, match="method must be projection or lagrange, got 'both'"):
        rules.unit_norm(own, method="both")


def test_as_many_batches_as_weights() -> None:
    fine, grads = rules.svag(rules.sgd, 2), [draw(0, 3)]
    with pytest.raises(ValueError, match="gradients of 2 independent batches a step, got 1"):
        fine.combine([grads])
    before = grads[0].clone()
    half = Rule("half", rules.sgd.init, rules.sgd.update, batch_weights=(0.5,))
    assert torch.equal(half.combine([grads])[0], before / 2)
    fine.combine([grads, grads])
    assert torch.equal(grads[0], before)


@every
def test_a_wrapped_rule_says_its_name_and_can_be_pickled(rule: Rule) -> None:
    wrapped = rules.svag(rules.label_noise(rules.unit_norm(rule), std=0.5), 2.5)
    assert repr(wrapped) == f"rules.svag(label_noise(unit_norm({rule.name}), std=0.5), 2.5)"
    copied = pickle.loads(pickle.dumps(wrapped))
    ends = [
        walk(own, HYPER, draw(0, 4, 3), scale_invariant_gradient, 5) for own in (wrapped, copied)
    ]
    assert torch.equal(*ends)
