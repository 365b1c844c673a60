"""Wrapped rules in an ensemble: their batches, their targets, and what members still promise."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_runs import (
    CLASSES,
    FEATURES,
    SAMPLES,
    assert_tensors_equal,
    inputs,
    labels,
    members,
    numbers,
)

from undertow.models import mlp
from undertow.train import Ensemble, Member, rules
from undertow.train.ensemble._sampling import BatchStream, batch_sizes, spawn_generators
from undertow.train.rules import Hyper, Rule, Scaling

PATHS = ("fused", "vmap", "loop")
BATCH = 8  # leaves a rest of 6
pytestmark = pytest.mark.usefixtures("global_rng_untouched")
paths = pytest.mark.parametrize("path", PATHS)


def flips(rule: Rule, probability: float = 0.3) -> Rule:
    return rules.label_noise(rule, flip_probability=probability, num_classes=CLASSES)


def small(generator: torch.Generator) -> nn.Sequential:
    return mlp((FEATURES, 6, 4, CLASSES), activation="tanh", generator=generator)


def rectified(generator: torch.Generator) -> nn.Sequential:
    return mlp((FEATURES, 6, 4, CLASSES), generator=generator)


def normed(generator: torch.Generator) -> nn.Sequential:
    return mlp((FEATURES, 6, CLASSES), batch_norm=True, bias=False, generator=generator)


def make(
    rule: Rule,
    path: str,
    *,
    build: Any = small,
    loss: Any = functional.cross_entropy,
    targets: Tensor | None = None,
    own_members: list[Member] | None = None,
) -> Ensemble:
    return Ensemble(
        build,
        loss,
        (inputs(), labels() if targets is None else targets),
        own_members or members(),
        batch_size=BATCH,
        rule=rule,
        path=path,
        dtype=torch.float64,
    )


def by_hand(rule: Rule, build: Any, own_members: list[Member], steps: int) -> list[nn.Module]:
    """Each member on its own by autograd, two batches a step, without label noise."""
    trained = []
    for member in own_members:
        first, order, _, _, second, _ = spawn_generators(member.seed, 6)
        module = build(first).double().train()
        streams = [BatchStream(member.order, SAMPLES, BATCH, own) for own in (order, second)]
        params = list(module.parameters())
        state = rule.init(params)
        for step, size in enumerate(batch_sizes(member.order, SAMPLES, BATCH, 0, steps)):
            grads = []
            for stream in streams:
                index = stream.take(size)
                loss = functional.cross_entropy(module(inputs()[index]), labels()[index])
                grads.append(torch.autograd.grad(loss, params))
            factor = 1.0
            if member.schedule is not None:
                at = np.array([int(step / rule.steps_per_step)])
                factor = float(member.schedule(at)[0])
            names = ("weight_decay", "momentum", "beta1", "beta2", "eps")
            values = {name: getattr(member, name) for name in names}
            hyper = Hyper(factor * member.lr, **values)
            with torch.no_grad():
                _, state = rule.update(params, rule.combine(grads), state, hyper, inplace=True)
        trained.append(module)
    return trained


@pytest.mark.slow
@pytest.mark.parametrize("build", [small, rectified, normed])
@pytest.mark.parametrize("base", [rules.sgd, rules.momentum, rules.adam], ids=repr)
def test_svag_is_two_batches_of_streams_of_their_own(base: Rule, build: Any) -> None:
    """On every path; batch norm sees them one by one, and schedules the steps of the rule."""
    rule = rules.svag(base, 2)
    steps = 140 if base is rules.sgd and build is rectified else 40  # 128 until scales are folded
    expected = by_hand(rule, build, members(), steps)
    for path in PATHS:
        ensemble = make(rule, path, build=build).train(steps)
        assert_tensors_equal(ensemble.parameters() | ensemble.buffers(), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [
        rules.ema_momentum,
        flips(rules.sgd),
        rules.svag(flips(rules.momentum), 2.5),
        rules.unit_norm(rules.svag(rules.sgd, 2)),
        rules.svag(rules.unit_norm(flips(rules.adamw), method="lagrange"), 2),
    ],
    ids=repr,
)
@pytest.mark.parametrize("build", [small, normed])
def test_paths_agree_for_wrapped_rules(rule: Rule, build: Any) -> None:
    results = [make(rule, path, build=build).train(60) for path in PATHS]
    first = results[0].parameters() | results[0].buffers()
    for other in results[1:]:
        found = other.parameters() | other.buffers()
        torch.testing.assert_close(first, found, rtol=1e-8, atol=1e-9)


def ascent(base: Rule) -> Rule:
    def update(params: Any, grads: Any, *rest: Any, **options: Any) -> Any:
        return base.update(params, [-grad for grad in grads], *rest, **options)

    return replace(base, name="ascent", update=update)


@pytest.mark.parametrize(
    "rule",
    [
        ascent(rules.sgd),
        ascent(rules.momentum),
        rules.svag(ascent(rules.sgd), 2),
        replace(rules.sgd, batch_weights=(0.5,)),
        replace(rules.adam, batch_weights=(0.5,)),
        rules.svag(replace(rules.sgd, scaling=Scaling(steps=1, weight_decay=1)), 2),
    ],
    ids=repr,
)
def test_a_rule_made_of_another_is_followed_on_every_path(rule: Rule) -> None:
    loop = make(rule, "loop", build=small).train(12)
    expected = [loop.module(e) for e in range(len(loop.members))]
    for path in ("fused", "vmap"):
        assert_tensors_equal(make(rule, path, build=small).train(12).parameters(), expected)


@pytest.mark.parametrize("base", [rules.sgd, rules.momentum], ids=repr)
def test_a_pickled_rule_is_the_same_to_the_last_bit(base: Rule) -> None:
    found = [
        make(rule, "fused", build=small).train(12).parameters()
        for rule in (base, pickle.loads(pickle.dumps(base)))
    ]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_auto_takes_one_of_the_paths_and_its_result() -> None:
    rule = rules.svag(flips(rules.momentum), 2)
    auto = make(rule, "auto").train(20)
    expected = make(rule, auto.path).train(20).parameters()
    for name, value in auto.parameters().items():
        assert torch.equal(value, expected[name])


def half_absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().sum(1) / 2


@pytest.mark.parametrize("loss", [nn.MSELoss(), half_absolute, nn.CrossEntropyLoss()])
def test_paths_agree_for_noisy_numbers(loss: Any) -> None:
    """For closed forms and others; noisy class probabilities no longer sum to one."""
    targets = numbers().softmax(1) if isinstance(loss, nn.CrossEntropyLoss) else numbers()
    rule = rules.svag(rules.label_noise(rules.sgd, std=0.3), 2)
    first, *others = (
        make(rule, path, loss=loss, targets=targets).train(40).parameters() for path in PATHS
    )
    for other in others:
        torch.testing.assert_close(first, other, rtol=1e-9, atol=1e-10)


def test_class_weights_under_svag() -> None:
    """Each batch is averaged by its own weights before the two are combined."""
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
    rule = rules.svag(rules.sgd, 3)
    first, *others = (make(rule, path, loss=loss).train(40).parameters() for path in PATHS)
    for other in others:
        torch.testing.assert_close(first, other, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
@paths
@pytest.mark.parametrize("order", ["epochs", "replacement", "cyclic", "full"])
def test_the_first_batch_is_that_of_the_bare_rule(path: str, order: str) -> None:
    """With all weight on it, and with noise of size zero, nothing changes."""
    rule = replace(flips(rules.momentum, 0.0), batch_weights=(1.0, 0.0))
    own = members(order)
    expected = make(rules.momentum, path, own_members=own).train(40).parameters()
    found = make(rule, path, own_members=own).train(40).parameters()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@paths
def test_the_noise_of_the_first_batch_is_that_of_the_rule_with_one(path: str) -> None:
    one = flips(rules.sgd)
    two = replace(rules.svag(one, 2), update=one.update, batch_weights=(1.0, 0.0), steps_per_step=1)
    first, second = (make(rule, path).train(40).parameters() for rule in (one, two))
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)


@paths
def test_a_member_alone_is_the_member_among_others(path: str) -> None:
    rule = rules.unit_norm(rules.svag(flips(rules.momentum), 2))
    together = make(rule, path).train(30).parameters()
    for e, member in enumerate(members()):
        alone = make(rule, path, own_members=[member]).train(30).parameters()
        for name, value in alone.items():
            torch.testing.assert_close(value[0], together[name][e], rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@paths
@pytest.mark.parametrize("base", [rules.sgd, rules.adam], ids=repr)
def test_training_in_pieces_is_training_at_once(path: str, base: Rule) -> None:
    rule = rules.svag(flips(base), 2)
    pieces = make(rule, path)
    for count in (0, 1, 6, 30):
        pieces.train(count)
    whole = make(rule, path).train(37)
    for name, value in whole.parameters().items():
        assert torch.equal(value, pieces.parameters()[name]), name


def test_large_targets_are_perturbed_a_few_steps_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from undertow.train.ensemble import _feeds

    rule = rules.svag(flips(rules.sgd), 2)
    expected = make(rule, "fused").train(20).parameters()
    monkeypatch.setattr(_feeds, "_MAX_PERTURBED", 100)
    for name, value in make(rule, "fused").train(20).parameters().items():
        assert torch.equal(value, expected[name])


@pytest.mark.slow
def test_a_member_that_diverges_never_touches_the_others() -> None:
    rule = rules.unit_norm(rules.svag(rules.label_noise(rules.momentum, std=0.1), 2))
    calm = [Member(1, 0.05, 0.01, 0.5), Member(3, 0.02, 0.0, 0.9)]
    wild = Member(2, 1e250, 0.0, 0.9)
    for path in PATHS:
        options: dict[str, Any] = {"loss": nn.MSELoss(), "targets": 1e100 * numbers()}
        ensemble = make(rule, path, own_members=[wild, *calm], **options).train(140)
        without = make(rule, path, own_members=calm, **options).train(140)
        assert ensemble.diverged_at == [128, None, None]
        for name, value in ensemble.parameters().items():
            torch.testing.assert_close(value[1:], without.parameters()[name])


def seen_targets(rule: Rule, targets: Tensor, steps: int) -> Tensor:
    """The targets that the loss sees, in the order of the samples, `[visits, samples]`."""
    seen: list[Tensor] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets.detach().clone())
        return 0 * outputs.sum(1)

    full = [Member(1, 0.1, order="full")]
    ensemble = make(rule, "loop", loss=loss, targets=targets, own_members=full)
    seen.clear()  # of what tried the loss
    ensemble.train(steps)
    return torch.stack(seen)


def test_targets_are_perturbed_afresh_at_every_visit_and_in_both_batches() -> None:
    targets = numbers(1)
    rule = rules.svag(rules.label_noise(rules.sgd, std=0.5), 2)
    noise = (seen_targets(rule, targets, 400) - targets)[:, :, 0]
    assert noise.shape == (800, SAMPLES)
    assert float(noise.mean()) == pytest.approx(0, abs=4 * 0.5 / noise.numel() ** 0.5)
    assert float(noise.var()) == pytest.approx(0.25, rel=4 * (2 / noise.numel()) ** 0.5)
    correlation = torch.corrcoef(noise.T).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 5 / 800**0.5
    both = (noise[::2] * noise[1::2]).mean() / 0.25
    assert abs(float(both)) < 4 / (noise.numel() / 2) ** 0.5


def test_evaluation_and_data_are_without_noise() -> None:
    targets = labels()
    ensemble = make(flips(rules.sgd, 1.0), "fused", targets=targets).train(20)
    assert torch.equal(targets, labels())
    bare = functional.cross_entropy(ensemble.module(0).eval()(inputs()), targets)
    found = ensemble.evaluate(inputs(), targets).loss[0]
    torch.testing.assert_close(found, bare.detach())


def test_schedules_are_given_the_steps_of_the_rule_inside() -> None:
    seen: list[int] = []

    def schedule(steps: np.ndarray) -> np.ndarray:
        seen.extend(steps.tolist())
        return np.ones(len(steps))

    own = [Member(1, 0.1, schedule=schedule)]
    make(rules.svag(rules.adam, 2), "fused", own_members=own).train(5).train(7)
    assert seen == [0] * 4 + [1] * 4 + [2] * 4


def test_weights_of_norm_one() -> None:
    for path in PATHS:
        params = make(rules.unit_norm(rules.sgd), path).train(20).parameters()
        for value in params.values():
            norms = value.flatten(1).norm(dim=1)
            if value.ndim > 2:
                torch.testing.assert_close(norms, torch.ones(3).double(), rtol=0, atol=1e-12)
            else:
                assert float((norms - 1).abs().min()) > 1e-3


def test_an_ensemble_says_which_rule_it_follows() -> None:
    text = repr(make(rules.svag(rules.sgd, 4), "fused").train(3))
    assert "after 3 steps of svag(sgd, 4) at batch size 8" in text


# ---- what is refused


def refused(words: str, error: type[Exception], rule: Rule, **options: Any) -> None:
    with pytest.raises(error, match=words):
        make(rule, "fused", **options).train(1)


def test_label_noise_that_the_targets_cannot_have() -> None:
    noisy = rules.label_noise(rules.sgd, std=1.0)
    refused("for class labels use flip_probability", TypeError, noisy)
    refused(
        "for numbers use std", TypeError, flips(rules.sgd), loss=nn.MSELoss(), targets=numbers()
    )
    many = rules.label_noise(rules.sgd, flip_probability=1.0, num_classes=9)
    refused("but the model has 3 outputs", ValueError, many)


@pytest.mark.parametrize(
    "perturb", [lambda targets, generator: targets[:0], lambda targets, generator: targets.double()]
)
def test_a_perturbation_that_changes_shape_or_type(perturb: Callable[..., Tensor]) -> None:
    own = replace(rules.sgd, perturb=perturb)
    refused("perturb must return targets of the shape and type", ValueError, own)


def test_a_flip_to_an_ignored_class_is_ignored() -> None:
    """On every path, although no label of the data is of that class."""
    two = labels(2)
    loss = nn.CrossEntropyLoss(ignore_index=2)
    first, *others = (
        make(flips(rules.sgd), path, loss=loss, targets=two).train(40).parameters()
        for path in PATHS
    )
    for other in others:
        torch.testing.assert_close(first, other, rtol=1e-9, atol=1e-10)
