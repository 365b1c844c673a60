"""Models and losses that differentiate by themselves have the value that plain autograd gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from undertow.objective import Objective

x, y = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3


class InnerStep(nn.Module):
    """A step of gradient descent on each sample within forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self._adapted(sample[None])[0] for sample in x])

    def _adapted(self, x: Tensor) -> Tensor:
        weights = dict(self.net.named_parameters())
        energy = self.net(x).square().mean()
        slopes = torch.autograd.grad(energy, list(weights.values()), create_graph=True)
        pairs = zip(weights.items(), slopes, strict=True)
        return functional_call(self.net, {n: w - 0.1 * s for (n, w), s in pairs}, (x,))


def slope_in_inputs(net: nn.Module) -> Tensor:
    inputs = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(inputs).sum(), inputs, create_graph=True)
    return slope.square().mean()


def slope_in_parameters(net: nn.Module, total: Tensor) -> Tensor:
    slopes = torch.autograd.grad(total, list(net.parameters()), create_graph=True)
    return sum((slope.square().sum() for slope in slopes), torch.zeros(()))


def adversarial(net: nn.Module, outputs: Tensor) -> Tensor:
    step = torch.ones_like(x).requires_grad_()
    apart = (net(x + 0.1 * step) - outputs.detach()).square().mean()
    (slope,) = torch.autograd.grad(apart, step)
    return (net(x + slope) - outputs.detach()).square().mean()


PENALTIES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "slope in inputs": lambda net, outputs: slope_in_inputs(net),
    "slope in parameters": lambda net, outputs: slope_in_parameters(net, outputs.square().mean()),
    "the same of another run": lambda net, outputs: slope_in_parameters(net, net(x).mean()),
    "adversarial": adversarial,
}


def plain(net: nn.Module, loss: Any) -> tuple[Tensor, Tensor]:
    value = loss(net(x), y)
    slopes = torch.autograd.grad(value, list(net.parameters()))
    return value.detach(), torch.cat([slope.flatten() for slope in slopes])


def check(net: nn.Module, loss: Any) -> None:
    objective = Objective(net, loss, (x, y))
    value, gradient = plain(net, loss)
    torch.testing.assert_close(objective.value(), value)
    assert not objective.value().requires_grad
    torch.testing.assert_close(objective.gradient(), gradient)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_steps_within_forward() -> None:
    check(InnerStep().double(), functional.cross_entropy)


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_on_slopes(name: str) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    check(net, lambda o, t: functional.cross_entropy(o, t) + PENALTIES[name](net, o))
