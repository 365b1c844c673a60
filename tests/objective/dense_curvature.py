"""Dense Hessians and Gauss-Newton matrices of small networks in float64, the reference of tests."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from undertow.objective import Objective, _linearization


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fill(net: nn.Module) -> nn.Module:
    """In double precision and training mode, away from symmetric points."""
    net = net.double()
    with torch.no_grad():
        for seed, (name, tensor) in enumerate(net.state_dict().items()):
            if tensor.is_floating_point():
                noise = 0.5 * draw(seed, *tensor.shape)
                tensor.copy_(noise.abs() + 0.3 if "var" in name else noise + 0.1)
    return net.train()


def flat_loss(
    net: nn.Module, loss: Callable[..., Tensor], inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The flat parameters, the outputs and the loss as functions of them, in eval mode."""
    net = copy.deepcopy(net).eval()
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in named.values()]

    def outputs(theta: Tensor) -> Tensor:
        parts = zip(named.items(), theta.split(sizes), strict=True)
        return functional_call(net, {n: part.view_as(p) for (n, p), part in parts}, (inputs,))

    def whole(theta: Tensor) -> Tensor:
        return loss(outputs(theta), targets).mean()

    return torch.cat([p.detach().flatten() for p in named.values()]), outputs, whole


def dense(
    net: nn.Module, loss: Callable[..., Tensor], inputs: Tensor, targets: Tensor, kind: str
) -> Tensor:
    """The full Hessian or Gauss-Newton matrix."""
    with _linearization.second_order():
        theta, outputs, whole = flat_loss(net, loss, inputs, targets)
        if kind == "hessian":
            return torch.autograd.functional.hessian(whole, theta)
        jacobian = torch.autograd.functional.jacobian(outputs, theta).flatten(0, -2)
        at = outputs(theta).detach()
        inner = torch.autograd.functional.hessian(lambda z: loss(z, targets).mean(), at)
        return jacobian.T @ inner.reshape(at.numel(), at.numel()) @ jacobian


def product(objective: Objective, kind: str, block: Tensor) -> Tensor:
    return objective.hvp(block) if kind == "hessian" else objective.ggnvp(block)
