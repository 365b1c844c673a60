"""Modules that cannot be run at parameters of one's choice are refused before any work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from odd_twins import CLASSES, FEATURES, samples
from undertow.objective import Objective


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()


def refused(model: nn.Module, message: str, **arguments: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        Objective(model, functional.cross_entropy, samples(), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused() -> None:
    x, _ = samples()
    refused(torch.jit.script(network()), "the model is TorchScript.*give the nn.Module")
    refused(torch.jit.trace(network(), x), "the model is TorchScript")
    refused(nn.Sequential(network(), torch.jit.script(nn.Tanh())), "1 is TorchScript")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_layers_are_refused() -> None:
    mixed = nn.Sequential(nn.Linear(FEATURES, 8), nn.LayerNorm(8), nn.Linear(8, CLASSES))
    quantised = torch.ao.quantization.quantize_dynamic(mixed, {nn.Linear})
    refused(quantised, "0 is a quantised Linear.*before quantisation")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_exported_programs_are_refused() -> None:
    x, _ = samples()
    refused(torch.export.export(network(), (x,)).module(), "an exported program")


def test_parameters_that_make_no_vector_are_refused() -> None:
    sparse, empty, away = network(), nn.ParameterList([torch.zeros(0, 3)]), network()
    sparse.weight = nn.Parameter(torch.eye(3).to_sparse())
    refused(sparse, "parameter weight is sparse")
    refused(empty, "selects no parameter")
    away[2].to("meta")
    refused(away, "has no values yet")


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return cotangent * x.cos()


class ThroughOnce(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Once.apply(self.first(x)))


@pytest.mark.parametrize("kind", ["hvp", "ggnvp"])
def test_terms_that_autograd_leaves_out_are_not_left_out(kind: str) -> None:
    """Autograd ends at what is differentiable once, in silence where some tensors are asked for."""
    net = ThroughOnce().double()
    objective = Objective(net, functional.cross_entropy, samples())
    assert objective.gradient().norm() > 0
    with pytest.raises(ValueError, match=r"once_differentiable .*Once|autograd.Function Once"):
        getattr(objective, kind)(torch.ones(1, objective.num_params))
    beyond = Objective(
        net, functional.cross_entropy, samples(), params=["last.weight", "last.bias"]
    )
    block = torch.ones(1, beyond.num_params, dtype=torch.float64)
    x, y = samples()
    head = Objective(net.last, functional.cross_entropy, (net.first(x).sin().detach(), y))
    torch.testing.assert_close(getattr(beyond, kind)(block), getattr(head, kind)(block))
