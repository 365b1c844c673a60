"""The optimizer front ends against `torch.optim`, on a network, and as `torch.optim` is used."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_runs import CLASSES, FEATURES, inputs, labels

from undertow.models import mlp
from undertow.train import optim, rules

Make = Callable[[Any], torch.optim.Optimizer]

PAIRS: dict[str, tuple[Make, Make]] = {
    "sgd": (
        lambda params: optim.SGD(params, 0.1, weight_decay=0.01),
        lambda params: torch.optim.SGD(params, 0.1, weight_decay=0.01),
    ),
    "momentum": (
        lambda params: optim.SGD(params, 0.05, momentum=0.9, weight_decay=0.01),
        lambda params: torch.optim.SGD(params, 0.05, momentum=0.9, weight_decay=0.01),
    ),
    "adamw": (
        lambda params: optim.AdamW(params, 0.01, betas=(0.8, 0.98), weight_decay=0.1),
        lambda params: torch.optim.AdamW(params, 0.01, betas=(0.8, 0.98), weight_decay=0.1),
    ),
    "defaults of adamw": (optim.AdamW, torch.optim.AdamW),
}
pairs = pytest.mark.parametrize("pair", PAIRS.values(), ids=list(PAIRS))


def network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(5)
    return mlp((FEATURES, 8, CLASSES), activation="tanh", generator=generator)


def train(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> None:
    x, y = inputs().to(next(net.parameters()).dtype), labels()
    for step in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(net(x[step % 3 :: 3]), y[step % 3 :: 3]).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def assert_equal(ours: nn.Module, theirs: nn.Module) -> None:
    double = next(ours.parameters()).dtype == torch.float64
    tolerances = {"rtol": 1e-10, "atol": 1e-12} if double else {"rtol": 2e-4, "atol": 2e-5}
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, other, **tolerances)


@pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_torch_over_two_hundred_steps(pair: tuple[Make, Make], dtype: torch.dtype) -> None:
    nets = [network().to(dtype) for _ in pair]
    for net, make in zip(nets, pair, strict=True):
        train(net, make(net.parameters()), 200)
    assert_equal(*nets)


@pairs
def test_as_torch_with_groups_and_a_scheduler(pair: tuple[Make, Make]) -> None:
    nets = [network().double() for _ in pair]
    for net, make in zip(nets, pair, strict=True):
        groups = [
            {"params": net[1].parameters(), "lr": 0.02, "weight_decay": 0.0},
            {"params": [net[3].weight]},
        ]
        optimizer = make(groups)
        optimizer.add_param_group({"params": [net[3].bias], "lr": 0.3})
        train(net, optimizer, 30, torch.optim.lr_scheduler.StepLR(optimizer, 7, gamma=0.5))
    assert_equal(*nets)


def test_groups_with_a_momentum_of_their_own() -> None:
    for outer, inner in ((0.0, 0.9), (0.9, 0.0)):
        nets = [network().double() for _ in range(2)]
        for net, make in zip(nets, (optim.SGD, torch.optim.SGD), strict=True):
            groups = [
                {"params": net[1].parameters(), "momentum": inner},
                {"params": net[3].parameters()},
            ]
            train(net, make(groups, 0.05, momentum=outer), 30)
        assert_equal(*nets)


def test_groups_with_betas_of_their_own() -> None:
    nets = [network().double() for _ in range(2)]
    for net, make in zip(nets, (optim.AdamW, torch.optim.AdamW), strict=True):
        groups = [
            {"params": net[1].parameters(), "betas": (0.5, 0.9)},
            {"params": net[3].parameters()},
        ]
        train(net, make(groups, 0.01), 30)
    assert_equal(*nets)


def test_a_scheduler_that_moves_the_momentum() -> None:
    nets = [network().double() for _ in range(2)]
    for net, make in zip(nets, (optim.SGD, torch.optim.SGD), strict=True):
        optimizer = make(net.parameters(), 0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=40)
        train(net, optimizer, 40, scheduler)
    assert_equal(*nets)


@pairs
@pytest.mark.parametrize("way", ["state_dict", "saved", "deepcopy", "pickle"])
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(
    pair: tuple[Make, Make], way: str
) -> None:
    whole = network()
    train(whole, pair[0](whole.parameters()), 20)
    net = network()
    optimizer = pair[0](net.parameters())
    train(net, optimizer, 9)
    if way in ("deepcopy", "pickle"):
        both = (net, optimizer)
        net, optimizer = (
            copy.deepcopy(both) if way == "deepcopy" else pickle.loads(pickle.dumps(both))
        )
    else:
        state = optimizer.state_dict()
        if way == "saved":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        optimizer = pair[0](net.parameters())
        optimizer.load_state_dict(state)
    train(net, optimizer, 11)
    for own, other in zip(net.parameters(), whole.parameters(), strict=True):
        assert torch.equal(own, other)


@pairs
def test_parameters_without_a_gradient_stay_as_they_are(pair: tuple[Make, Make]) -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    optimizer = pair[0](net.parameters())
    net[1].weight.grad = torch.ones_like(net[1].weight)
    optimizer.step()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == (name != "1.weight")


@pairs
def test_a_closure_is_called_once_with_gradients_on(pair: tuple[Make, Make]) -> None:
    nets, losses = [network().double() for _ in pair], []
    for net, make in zip(nets, pair, strict=True):
        optimizer = make(net.parameters())

        def closure(net: nn.Module = net, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(inputs()), labels())
            loss.backward()
            return loss

        losses.append([float(optimizer.step(closure).detach()) for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert_equal(*nets)


def test_sparse_gradients_are_refused_before_anything_is_updated() -> None:
    embedding = nn.Embedding(4, 3, sparse=True)
    other = nn.Parameter(torch.ones(3))
    (embedding(torch.tensor([1, 2])) * other).sum().backward()
    for optimizer in (optim.SGD, optim.AdamW):
        with pytest.raises(ValueError, match="sparse=False"):
            optimizer([other, embedding.weight], 0.1).step()
        assert torch.equal(other, torch.ones(3))


def test_any_rule_has_a_front_end() -> None:
    nets = [network() for _ in range(2)]
    own = optim.RuleOptimizer(nets[0].parameters(), rules.momentum, lr=0.1, momentum=0.9)
    train(nets[0], own, 10)
    train(nets[1], optim.SGD(nets[1].parameters(), 0.1, momentum=0.9), 10)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("words", "make"),
    [
        ("lr must be finite and not negative", lambda p: optim.SGD(p, -0.1)),
        ("momentum must be below 1", lambda p: optim.SGD(p, 0.1, momentum=1.0)),
        ("weight_decay must be finite", lambda p: optim.AdamW(p, weight_decay=float("nan"))),
        ("beta2 must be below 1", lambda p: optim.AdamW(p, betas=(0.9, 1.0))),
        ("lr must be finite", lambda p: optim.SGD([{"params": p, "lr": -1.0}], 0.1)),
        ("beta1 must be", lambda p: optim.AdamW([{"params": p, "betas": (1.0, 0.9)}], 0.1)),
    ],
)
def test_hyperparameters_out_of_range(words: str, make: Make) -> None:
    with pytest.raises(ValueError, match=words):
        make(list(network().parameters()))


def test_hyperparameters_that_do_not_exist() -> None:
    with pytest.raises(TypeError, match="dampening"):
        optim.RuleOptimizer(network().parameters(), rules.sgd, lr=0.1, dampening=0.5)
