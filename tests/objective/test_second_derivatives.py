"""Second derivatives that are wrong: those of weight norm are mended, the unknown ones refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from objective_cases import draw
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from undertow.objective import Objective

SAMPLES, FEATURES, CLASSES = 7, 6, 3


def filled(net: nn.Module) -> nn.Module:
    net = net.double()
    with torch.no_grad():
        for seed, parameter in enumerate(net.parameters()):
            parameter.copy_(0.6 * draw(seed, parameter.numel()).view_as(parameter))
    return net.eval()


def old(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module, *args, **kwargs)


class Convolving(nn.Module):
    def __init__(self, norm: Callable[..., nn.Module], dim: int | None) -> None:
        super().__init__()
        self.layer, self.head = norm(nn.Conv1d(2, 4, 2), dim=dim), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(x.view(-1, 2, 3))).flatten(1))


class Recurrent(nn.Module):
    def __init__(self, norm: Callable[..., nn.Module], dim: int | None) -> None:
        super().__init__()
        self.layer = nn.LSTM(2, 3, batch_first=True)
        for name in ("weight_ih_l0", "weight_hh_l0"):
            norm(self.layer, name, dim=dim)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.view(-1, 3, 2))[0][:, -1])


def perceptron(norm: Callable[..., nn.Module], dim: int | None) -> nn.Module:
    return nn.Sequential(norm(nn.Linear(FEATURES, 4), dim=dim), nn.Tanh(), nn.Linear(4, CLASSES))


def differences(net: nn.Module, x: Tensor, y: Tensor, block: Tensor) -> Tensor:
    """Hessian products as differences of gradients, which are right."""
    named = dict(net.named_parameters())
    theta = torch.cat([p.detach().flatten() for p in named.values()])

    def gradient(theta: Tensor) -> Tensor:
        parts = theta.split([p.numel() for p in named.values()])
        leaves = {
            n: part.view_as(p).requires_grad_()
            for (n, p), part in zip(named.items(), parts, strict=True)
        }
        loss = functional.cross_entropy(functional_call(net, leaves, (x,)), y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(leaves.values()))])

    step = 1e-5
    return torch.stack(
        [(gradient(theta + step * v) - gradient(theta - step * v)) / (2 * step) for v in block]
    )


@pytest.mark.parametrize("norm", [old, nn.utils.parametrizations.weight_norm])
@pytest.mark.parametrize(
    ("make", "dims"),
    [(perceptron, (0, 1, None, -1)), (Convolving, (0, 1, 2, None)), (Recurrent, (0, None))],
)
def test_products_of_weight_norm_are_differences_of_gradients(
    make: Callable[..., nn.Module], dims: tuple[int | None, ...], norm: Callable[..., nn.Module]
) -> None:
    x, y = draw(50, SAMPLES, FEATURES), torch.arange(SAMPLES) % CLASSES
    for dim in dims:
        net = filled(make(norm, dim))
        objective = Objective(net, nn.CrossEntropyLoss(), (x, y), microbatch=4)
        block = draw(51, 3, objective.num_params)
        expected = differences(net, x, y, block)
        for found in (objective.hvp(block), torch.cat([objective.hvp(v[None]) for v in block])):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
        pushed = objective.ggnvp(block) @ block.T
        torch.testing.assert_close(pushed, pushed.T)


class KeepsSigmoid(torch.autograd.Function):
    """Symmetric, and wrong: what it keeps counts as constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        sigmoid = x.sigmoid()
        ctx.save_for_backward(x, sigmoid)
        return x * sigmoid

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        x, sigmoid = ctx.saved_tensors
        return cotangent * sigmoid * (1 + x * (1 - sigmoid))


class Swish(KeepsSigmoid):
    """The same rightly."""

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        x, _ = ctx.saved_tensors
        sigmoid = x.sigmoid()
        return cotangent * sigmoid * (1 + x * (1 - sigmoid))


class KeepsNorm(torch.autograd.Function):
    """Not symmetric."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norm = x.norm(dim=1, keepdim=True)
        ctx.save_for_backward(x, norm)
        return x / norm

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        x, norm = ctx.saved_tensors
        return cotangent / norm - x * (x * cotangent).sum(1, keepdim=True) / norm**3


class Rounded(torch.autograd.Function):
    """A straight-through estimator, whose gradient is that of no function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return cotangent


class By(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x)


class Quantised(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, Rounded.apply(self.weight), self.bias)


def around(module: nn.Module) -> nn.Module:
    return filled(nn.Sequential(nn.Linear(FEATURES, 4), module, nn.Linear(4, CLASSES)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", [KeepsSigmoid, KeepsNorm, Rounded])
def test_what_is_unknown_and_wrong_is_refused_by_its_name(
    function: Any, dtype: torch.dtype
) -> None:
    x, y = draw(50, SAMPLES, FEATURES).to(dtype), torch.arange(SAMPLES) % CLASSES
    nested = nn.Sequential(nn.Tanh(), By(function))
    for module, name in ((By(function), "1"), (nested, r"1\.1")):
        objective = Objective(around(module).to(dtype), nn.CrossEntropyLoss(), (x, y))
        block = torch.ones(1, objective.num_params)
        for _ in range(2):
            with pytest.raises(ValueError, match=rf"module {name} \(By\).*{function.__name__}"):
                objective.hvp(block)
        if function is not KeepsNorm:
            assert objective.ggnvp(block).isfinite().all()


def test_weights_that_are_rounded_and_losses_by_hand_are_refused() -> None:
    x, y = draw(50, SAMPLES, FEATURES), torch.arange(SAMPLES) % CLASSES
    net = filled(nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), Quantised(4, CLASSES)))
    by_hand = Objective(
        around(nn.Tanh()), lambda o, t: KeepsSigmoid.apply(o).square().mean(), (x, y)
    )
    for objective in (Objective(net, nn.CrossEntropyLoss(), (x, y)), by_hand):
        with pytest.raises(ValueError, match="the Hessian would be wrong"):
            objective.hvp(torch.ones(1, objective.num_params))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_right_is_not_refused(dtype: torch.dtype) -> None:
    x, y = draw(50, SAMPLES, FEATURES).to(dtype), torch.arange(SAMPLES) % CLASSES
    deep = [part for _ in range(20) for part in (nn.Linear(4, 4), nn.ReLU())]
    modules = (By(Swish), nn.Sequential(*deep), nn.GELU(), nn.LayerNorm(4), nn.PReLU())
    for module in modules:
        objective = Objective(around(module).to(dtype), nn.CrossEntropyLoss(), (x, y))
        assert objective.hvp(torch.ones(2, objective.num_params)).isfinite().all()


def test_samples_on_which_the_loss_is_a_constant_are_not_held_against_it() -> None:
    """Of one target, under a batch-normalised output: their Hessian is nothing but rounding."""
    for seed in range(4):
        torch.manual_seed(seed)
        first, last = (
            nn.BatchNorm1d(k, affine=False, track_running_stats=False, eps=1e-12) for k in (16, 1)
        )
        layers = nn.Linear(3, 16, bias=False), nn.Linear(16, 1, bias=False)
        net = nn.Sequential(layers[0], first, nn.GELU(), layers[1], last)
        targets = torch.full((64, 1), -1.0)
        targets[-8:] = 7.0
        measured = Objective(net, nn.MSELoss(), (torch.randn(64, 3), targets))
        vectors = torch.randn(2, measured.num_params)
        images = measured.hvp(vectors)
        across, back = images[0] @ vectors[1], images[1] @ vectors[0]
        assert abs(across - back) < 1e-3 * images.norm() * vectors.norm()
