"""What evaluating leaves as found, and what of the caller's does not reach it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
from objective_cases import CLASSES, FEATURES, SAMPLES, draw, labels, labels_with_gaps, network
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    TensorDataset,
)

from left_as_found import same, snapshot
from undertow.objective import Objective


class Restless(nn.Module):
    """Draws random numbers, counts its calls in a buffer, and fails when told to."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, CLASSES).double()
        self.register_buffer("calls", torch.zeros(()))
        self.fail_at, self.passes = fail_at, count(1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.fail_at and next(self.passes) >= self.fail_at:
            raise RuntimeError("midway")
        return self.linear(x) + 0 * torch.randn(1)


@pytest.mark.parametrize("fail_at", [None, 1, 3])
@pytest.mark.parametrize("method", ["value", "gradient", "predictions"])
def test_module_and_random_state_are_left_as_found(method: str, fail_at: int | None) -> None:
    net = Restless(fail_at)
    net.linear.eval()
    net.linear.weight.grad = torch.ones_like(net.linear.weight)
    data = DataLoader(TensorDataset(draw(0, SAMPLES, FEATURES), labels()), 5, shuffle=True)
    objective = Objective(net, nn.CrossEntropyLoss(), data)
    before = snapshot(net)
    if fail_at is None:
        getattr(objective, method)()
    else:
        with pytest.raises(RuntimeError, match="midway"):
            getattr(objective, method)()
    assert same(snapshot(net), before)


def test_state_is_left_as_found_when_the_loss_raises_midway() -> None:
    net = network()
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyError("midway")
        return functional.cross_entropy(outputs, targets)

    objective = Objective(net, loss, (draw(0, SAMPLES, FEATURES), labels()), microbatch=4)
    before = snapshot(net)
    with pytest.raises(KeyError, match="midway"):
        objective.gradient()
    assert same(snapshot(net), before)


def sampled(x: Tensor, y: Tensor, generator: torch.Generator, kind: str) -> DataLoader[Any]:
    pairs = TensorDataset(x, y)
    if kind == "loader":
        return DataLoader(pairs, 5, shuffle=True, generator=generator)
    sampler = RandomSampler(pairs, generator=generator)
    if kind == "sampler":
        return DataLoader(pairs, 5, sampler=sampler)
    return DataLoader(pairs, batch_sampler=BatchSampler(sampler, 5, drop_last=False))


@pytest.mark.parametrize("kind", ["loader", "sampler", "batch sampler"])
def test_loaders_with_a_generator_keep_their_order_and_its_state(kind: str) -> None:
    """Noise weights and counts come from two passes that must agree."""
    x, y = draw(0, SAMPLES, FEATURES), labels_with_gaps()
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    loader = sampled(x, y, generator, kind)
    objective = Objective(network(), nn.CrossEntropyLoss(), loader)
    orders = [torch.cat([inputs for inputs, _ in objective.batches()]) for _ in range(2)]
    assert torch.equal(*orders)
    assert not torch.equal(orders[0], x)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    "context", [torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)]
)
def test_modes_of_the_caller_change_nothing(context: Callable[[], Any]) -> None:
    net = network().float()
    objective = Objective(
        net, nn.CrossEntropyLoss(), (draw(0, SAMPLES, FEATURES).float(), labels())
    )
    block = draw(1, 2, objective.num_params).float()

    def measured() -> list[Tensor]:
        objective.release()
        generator = torch.Generator().manual_seed(0)
        return [
            objective.value(),
            objective.gradient(),
            objective.hvp(block),
            objective.ggnvp(block),
            objective.sample_noise(2, batch_size=3, generator=generator),
        ]

    expected = measured()
    with context():
        found = measured()
        assert torch.is_inference_mode_enabled() or torch.is_autocast_enabled("cpu")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.clone(), other)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_duplicates_stand_alone(duplicate: Callable[[Objective], Objective]) -> None:
    objective = Objective(network(), nn.CrossEntropyLoss(), (draw(0, SAMPLES, FEATURES), labels()))
    block = draw(1, 2, objective.num_params)
    expected = objective.hvp(block), objective.ggn_trace()
    other = duplicate(objective)
    with torch.no_grad():
        for parameter in objective.model.parameters():
            parameter.zero_()
    torch.testing.assert_close((other.hvp(block), other.ggn_trace()), expected)
    assert other.model.training
