"""Every execution path against plain autograd with `torch.optim`, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_runs import (
    BATCH,
    CLASSES,
    FEATURES,
    SAMPLES,
    STEPS,
    Build,
    assert_tensors_equal,
    draw,
    inputs,
    labels,
    members,
    numbers,
    plain_loop,
)

from undertow.models import conv_net
from undertow.train import Ensemble, Member, rules
from undertow.train.rules import Rule
from undertow.train.schedules import Constant, Cosine

PATHS = ("fused", "vmap", "loop")
RULES = (rules.sgd, rules.momentum, rules.rmsprop, rules.adam, rules.adamw)


def sequential(*make: Callable[[], nn.Module]) -> Build:
    """A maker of a `Sequential` of fresh layers; their weights come from the global generator."""
    return lambda generator: nn.Sequential(*(part() for part in make))


def linear(fan_in: int, fan_out: int, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(fan_in, fan_out, **options)


def deep(*between: Callable[[], nn.Module], outputs: int = CLASSES, bias: bool = True) -> Build:
    """Two hidden layers, each followed by `between`."""
    return sequential(
        linear(FEATURES, 6, bias=bias),
        *between,
        linear(6, 4, bias=bias),
        *between,
        linear(4, outputs, bias=bias),
    )


def norm(**options: Any) -> Callable[[], nn.Module]:
    """Batch norm for both hidden layers, which are equally wide."""
    return lambda: nn.BatchNorm1d(6, **options)


def normed(*between: Callable[[], nn.Module], bias: bool = False) -> Build:
    """Two hidden layers, each followed by `between`.

    A bias before batch norm has no effect; Adam would blow its rounding errors up to steps.
    """
    return sequential(
        linear(FEATURES, 6, bias=bias),
        *between,
        linear(6, 6, bias=bias),
        *between,
        linear(6, CLASSES),
    )


def check(
    build: Build,
    loss: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor],
    *,
    rule: Rule = rules.sgd,
    own_members: list[Member] | None = None,
    paths: tuple[str, ...] = PATHS,
    steps: int = 40,
    batch_size: int = BATCH,
) -> None:
    own = own_members or members()
    expected = plain_loop(build, loss, data, own, rule=rule, steps=steps, batch_size=batch_size)
    for path in paths:
        ensemble = Ensemble(
            build,
            loss,
            data,
            own,
            batch_size=batch_size,
            rule=rule,
            path=path,
            dtype=torch.float64,
        ).train(steps)
        assert_tensors_equal(ensemble.parameters() | ensemble.buffers(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize(
    "build",
    [
        deep(nn.ReLU),
        deep(nn.Tanh, bias=False),
        normed(norm(), nn.ReLU),
        sequential(linear(FEATURES, CLASSES)),
    ],
    ids=["relu", "tanh without bias", "batch norm", "one layer"],
)
def test_paths_agree_for_every_rule(build: Build, rule: Rule) -> None:
    # Batch norm over two samples, the rest of batches of five, is chaotic; so are the first steps
    # of RMSprop at a large rate, which are 1 / sqrt(1 - beta2) times as long.
    data = (inputs(), labels())
    slow = 0.1 if rule is rules.rmsprop else 1.0
    own = [replace(member, lr=slow * member.lr) for member in members()]
    loss = functional.cross_entropy
    check(build, loss, data, rule=rule, own_members=own, batch_size=8, steps=STEPS)


ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], ...]] = {
    "leaky": (lambda: nn.LeakyReLU(0.2),),
    "gelu": (nn.GELU,),
    "gelu of tanh": (lambda: nn.GELU("tanh"),),
    "silu": (nn.SiLU,),
    "sigmoid": (nn.Sigmoid,),
    "softplus": (lambda: nn.Softplus(beta=2.0, threshold=1.0),),
    "linear": (),
    "relu in place": (lambda: nn.ReLU(inplace=True),),
    "tanh of sigmoid": (nn.Sigmoid, nn.Tanh),
    "sigmoid of tanh of gelu": (nn.GELU, nn.Tanh, nn.Sigmoid),
    "silu of relu": (nn.ReLU, nn.SiLU),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_paths_agree_for_every_activation(name: str) -> None:
    build = deep(*ACTIVATIONS[name])
    check(build, functional.cross_entropy, (inputs(), labels()), paths=("fused", "vmap"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        normed(nn.ReLU, norm()),
        normed(nn.Sigmoid, norm(), nn.Tanh),
        normed(norm(affine=False), nn.GELU),
        normed(norm(track_running_stats=False), nn.ReLU),
        normed(norm(momentum=0.7, eps=0.1), nn.ReLU, bias=True),
        normed(norm(), norm()),
    ],
    ids=["after relu", "between", "plain", "without statistics", "momentum and eps", "twice"],
)
def test_batch_norm_and_its_running_statistics(build: Build) -> None:
    check(build, functional.cross_entropy, (inputs(), labels()), batch_size=8)


def test_batch_norm_that_averages_all_batches() -> None:
    build = normed(norm(momentum=None), nn.ReLU)
    data = (inputs(), labels())
    # Under vmap, PyTorch reads its counter of batches as a number, which it cannot.
    check(build, functional.cross_entropy, data, batch_size=8, paths=("fused", "loop"))
    ensemble = Ensemble(build, nn.CrossEntropyLoss(), data, members(), batch_size=8, path="vmap")
    with pytest.raises(RuntimeError, match=r"path='vmap' cannot run this module.*'auto' or 'loop'"):
        ensemble.train(1)


def per_sample_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum(1)


LOSSES: dict[str, tuple[Any, int, Callable[[], Tensor]]] = {
    "mean squared error": (nn.MSELoss(), 2, lambda: numbers(2)),
    "mean squared error of one output": (functional.mse_loss, 1, lambda: numbers(1)),
    "whole numbers as targets": (nn.MSELoss(), 1, lambda: labels()[:, None]),
    "huber": (nn.HuberLoss(delta=0.3), 2, lambda: numbers(2)),
    "a value per sample": (per_sample_error, 2, lambda: numbers(2)),
    "two classes": (nn.CrossEntropyLoss(), 2, lambda: labels(2)),
    "cross-entropy per sample": (nn.CrossEntropyLoss(reduction="none"), CLASSES, labels),
    "class probabilities": (nn.CrossEntropyLoss(), CLASSES, lambda: numbers().softmax(1)),
    "weights that sum to other than one": (nn.CrossEntropyLoss(), CLASSES, lambda: numbers().abs()),
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), CLASSES, labels),
    "class weights": (
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)),
        CLASSES,
        labels,
    ),
    "an ignored class": (nn.CrossEntropyLoss(ignore_index=1), CLASSES, labels),
    "labels in one byte": (nn.CrossEntropyLoss(), CLASSES, lambda: labels().to(torch.uint8)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_paths_agree_for_every_loss(name: str) -> None:
    loss, outputs, targets = LOSSES[name]
    build, own = deep(nn.ReLU, outputs=outputs), targets()
    if name == "whole numbers as targets":  # which autograd itself wants as numbers
        expected = own.double()
    else:
        expected = own.long() if own.dtype == torch.uint8 else own
    modules = plain_loop(build, loss, (inputs(), expected), members(), batch_size=11, steps=40)
    for path in PATHS:
        ensemble = Ensemble(
            build, loss, (inputs(), own), members(), batch_size=11, path=path, dtype=torch.float64
        ).train(40)
        assert_tensors_equal(ensemble.parameters(), modules)


@pytest.mark.parametrize("order", ["epochs", "replacement", "cyclic", "full"])
def test_paths_agree_for_every_order(order: str) -> None:
    build, data = deep(nn.ReLU), (inputs(), labels())
    check(build, functional.cross_entropy, data, own_members=members(order), steps=30)


def test_members_may_go_through_the_data_in_different_orders() -> None:
    own = [
        Member(seed, 0.1, order=order)
        for seed, order in enumerate(("epochs", "cyclic", "replacement"))
    ]
    data = (inputs(), labels())
    check(deep(nn.ReLU), functional.cross_entropy, data, own_members=own, batch_size=11, steps=30)


@pytest.mark.slow
@pytest.mark.parametrize("between", [nn.ReLU, nn.Tanh], ids=["relu", "tanh"])
@pytest.mark.parametrize("shrink", [0.5, 0.999999], ids=["half", "nearly all"])
def test_a_large_decay_stays_exact_over_long_blocks(
    between: type[nn.Module], shrink: float
) -> None:
    """With lr x weight_decay = 0.5 a product of scales leaves float64 within a thousand steps."""
    own = [
        Member(1, 0.5, shrink / 0.5),
        Member(2, 0.1, 0.01),
        Member(3, 0.5, shrink / 0.5, schedule=Cosine(200)),
    ]
    data = (inputs(), numbers())
    check(deep(between), nn.MSELoss(), data, own_members=own, steps=300, paths=("fused",))


def test_decay_alone_is_a_power_of_one_minus_lr_weight_decay() -> None:
    """The loss reaches no weight, so that each member's weights shrink by a closed form."""
    build = sequential(linear(FEATURES, CLASSES))
    own = [Member(1, 0.1, 0.2), Member(2, 0.5, 1.0), Member(3, 1e-3, 1e-2)]
    for path in PATHS:
        ensemble = Ensemble(
            build,
            lambda outputs, targets: 0 * outputs.sum(1),
            (inputs(), labels()),
            own,
            batch_size=BATCH,
            path=path,
            dtype=torch.float64,
        )
        before = ensemble.parameters()
        after = ensemble.train(150).parameters()
        for e, member in enumerate(own):
            kept = (1 - member.lr * member.weight_decay) ** 150
            for name in before:
                torch.testing.assert_close(
                    after[name][e], before[name][e] * kept, rtol=1e-12, atol=0
                )


def test_in_float32_the_paths_agree_to_rounding() -> None:
    data = (inputs(), labels())
    results = [
        Ensemble(deep(nn.Tanh), nn.CrossEntropyLoss(), data, members(), batch_size=BATCH, path=path)
        .train(STEPS)
        .parameters()
        for path in PATHS
    ]
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-4, atol=1e-5)


def test_a_convolutional_network_by_vmap_and_by_loop() -> None:
    images = draw(5, SAMPLES, 1, 6, 6)

    def build(generator: torch.Generator) -> nn.Module:
        return conv_net((1, 6, 6), (3, 4), CLASSES, batch_norm=True, generator=generator)

    check(build, functional.cross_entropy, (images, labels()), paths=("vmap", "loop"), steps=40)


def test_images_need_a_flatten_before_the_first_layer() -> None:
    images = draw(5, SAMPLES, FEATURES, 2)
    flat = sequential(nn.Flatten, linear(2 * FEATURES, 6), nn.ReLU, linear(6, CLASSES))
    check(flat, functional.cross_entropy, (images, labels()), steps=20)
    unflat = sequential(linear(2, 6), nn.ReLU, linear(6, 1), nn.Flatten)
    check(
        unflat, functional.mse_loss, (images, numbers(FEATURES)), steps=20, paths=("vmap", "loop")
    )
    with pytest.raises(ValueError, match="Flatten"):
        check(unflat, functional.mse_loss, (images, numbers(FEATURES)), paths=("fused",))


def test_a_module_that_appears_twice() -> None:
    """One activation object may serve all layers; one `Linear` makes it no plain MLP."""

    def build(generator: torch.Generator) -> nn.Module:
        between = nn.Tanh()
        return nn.Sequential(
            nn.Linear(FEATURES, 6), between, nn.Linear(6, 6), between, nn.Linear(6, CLASSES)
        )

    def tied(generator: torch.Generator) -> nn.Module:
        own = nn.Linear(6, 6)
        return nn.Sequential(nn.Linear(FEATURES, 6), own, nn.Tanh(), own, nn.Linear(6, CLASSES))

    data = (inputs(), labels())
    check(build, functional.cross_entropy, data, steps=20)
    check(tied, functional.cross_entropy, data, steps=20, paths=("vmap", "loop", "auto"))
    with pytest.raises(ValueError, match="plain MLP"):
        check(tied, functional.cross_entropy, data, paths=("fused",))


class Scaled(nn.Module):
    """A parameter without axes, one that the loss does not reach, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(FEATURES, CLASSES)
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.idle = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.full((CLASSES,), 2.0), requires_grad=False)
        self.register_buffer("offset", torch.arange(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.gain * self.frozen + self.offset


def test_frozen_parameters_stay_and_idle_ones_only_decay() -> None:
    data = (inputs(), labels())
    results = []
    for path in ("vmap", "loop"):
        ensemble = Ensemble(
            lambda generator: Scaled(),
            functional.cross_entropy,
            data,
            members(),
            batch_size=BATCH,
            path=path,
            dtype=torch.float64,
        ).train(20)
        results.append(ensemble.parameters())
        assert set(ensemble.buffers()) == {"offset"}
        assert not ensemble.module(1).frozen.requires_grad
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)
    assert torch.equal(results[0]["frozen"], torch.full((3, CLASSES), 2.0, dtype=torch.float64))
    assert torch.equal(results[0]["idle"][1], torch.ones(2, dtype=torch.float64))
    assert (results[0]["idle"][2] < 1).all()
    assert (results[0]["gain"] != 1.5).all()


def test_token_numbers_as_inputs() -> None:
    tokens = torch.randint(7, (SAMPLES, 4), generator=torch.Generator().manual_seed(0))
    build = sequential(lambda: nn.Embedding(7, 2), nn.Flatten, linear(8, CLASSES))
    check(build, functional.cross_entropy, (tokens, labels()), paths=("vmap", "loop"), steps=20)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("between", [nn.ReLU, nn.Tanh], ids=["relu", "tanh"])
def test_training_in_pieces_is_training_at_once(
    path: str, rule: Rule, between: type[nn.Module]
) -> None:
    """To the last bit, wherever the pieces end, and whether or not they are looked at."""
    own = [Member(seed, 0.1, 0.02 + 0.1 * seed, 0.5, schedule=Constant()) for seed in range(5)]

    def make() -> Ensemble:
        data = (inputs(), labels())
        return Ensemble(
            deep(between), nn.CrossEntropyLoss(), data, own, batch_size=4, rule=rule, path=path
        )

    steps = 300 if path == "fused" else 20
    pieces = make()
    for count in (0, 1, 6, 121 if path == "fused" else 1):
        pieces.train(count)
        pieces.parameters()
        pieces.evaluate(inputs(), labels())
    pieces.train(steps - pieces.steps_taken)
    whole = make().train(steps)
    assert pieces.steps_taken == whole.steps_taken == steps
    for name, value in whole.parameters().items():
        assert torch.equal(value, pieces.parameters()[name]), name


def test_auto_takes_one_of_the_paths_and_its_result() -> None:
    build, data = deep(nn.ReLU), (inputs(), labels())
    auto = Ensemble(build, nn.CrossEntropyLoss(), data, members(), batch_size=BATCH)
    assert auto.path == "auto"
    auto.train(50)
    assert auto.path in PATHS
    assert set(auto.path_seconds) == {"fused", "loop"}
    fixed = Ensemble(
        build, nn.CrossEntropyLoss(), data, members(), batch_size=BATCH, path=auto.path
    ).train(50)
    for name, value in fixed.parameters().items():
        assert torch.equal(value, auto.parameters()[name])
