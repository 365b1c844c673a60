"""Parameters reached beside the model's attributes are counted, or refused; never left out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from undertow.objective import Objective, gradient

FEATURES, CLASSES, SAMPLES = 4, 3, 9
Loss = Callable[[Tensor, Tensor], Tensor]


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    return x, torch.arange(SAMPLES) % CLASSES


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, 3), nn.Tanh(), nn.Linear(3, CLASSES)).double()


def entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets)


def squares(parameters: Any) -> Tensor:
    return sum((p.square().sum() for p in parameters), torch.zeros((), dtype=torch.float64))


class Held(nn.Module):
    """A loss that holds the model as a part of its own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.weight = net, nn.Parameter(torch.ones(CLASSES).double())

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = [p for p in self.net.parameters() if p.requires_grad]
        return entropy(outputs * self.weight, targets) + 0.5 * squares(wanted)


class Hidden(Held):
    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.net = None
        self.nets = [net]

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return entropy(outputs, targets) + squares(self.nets[0].parameters())


def by_partial(net: nn.Module) -> Loss:
    def loss(outputs: Tensor, targets: Tensor, weights: list[Tensor]) -> Tensor:
        return entropy(outputs, targets) + squares(weights)

    return functools.partial(loss, weights=[net[0].weight])


LOSSES: dict[str, Callable[[nn.Module], Loss]] = {
    "closure": lambda net: lambda o, t: entropy(o, t) + 0.5 * squares(net.parameters()),
    "only those that are trained": lambda net: (
        lambda o, t: entropy(o, t) + squares(p for p in net.parameters() if p.requires_grad)
    ),
    "one vector": lambda net: (
        lambda o, t: entropy(o, t) + nn.utils.parameters_to_vector(net.parameters()).norm()
    ),
    "held": Held,
    "hidden": Hidden,
    "partial": by_partial,
    "the model again": lambda net: lambda o, t: entropy(o, t) + net(data()[0] + 1).square().mean(),
    "the model by functions": lambda net: (
        lambda o, t: (
            entropy(o, t)
            + functional_call(net, dict(net.named_parameters()), (data()[0],)).square().mean()
        )
    ),
}


def dense(function: Callable[[], Tensor], parameters: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    """The gradient and the Hessian by autograd on the user's own parameters."""

    def flat(output: Tensor, **options: Any) -> Tensor:
        found = torch.autograd.grad(
            output, parameters, allow_unused=True, materialize_grads=True, **options
        )
        return torch.cat([part.flatten() for part in found])

    slope = flat(function(), create_graph=True)
    return slope.detach(), torch.stack([flat(part, retain_graph=True) for part in slope])


def check(net: nn.Module, loss: Loss) -> None:
    objective, (x, y) = Objective(net, loss, data(), microbatch=5), data()
    parameters = [p for p in net.parameters() if p.requires_grad]
    for _ in range(2):  # again after a step
        value = loss(net(x), y)
        slope, hessian = dense(lambda: loss(net(x), y), parameters)
        torch.testing.assert_close(objective.value(), value.detach())
        torch.testing.assert_close(objective.gradient(), slope)
        unit = torch.eye(len(slope), dtype=torch.float64)
        torch.testing.assert_close(objective.hvp(unit), hessian)
        wide = objective.risk.at(torch.float64)
        torch.testing.assert_close(wide.value(), value.detach())
        torch.testing.assert_close(gradient(wide), slope)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.1)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_what_the_loss_makes_of_parameters_is_counted(name: str, frozen: bool) -> None:
    net = network().eval()
    if frozen:
        net[0].weight.requires_grad_(False)
    check(net, LOSSES[name](net))


@pytest.mark.parametrize("name", LOSSES)
def test_what_would_leave_it_out_is_refused(name: str) -> None:
    net = network().eval()
    objective = Objective(net, LOSSES[name](net), data())
    with pytest.raises(ValueError, match="beside the model's outputs"):
        objective.ggnvp(torch.ones(1, objective.num_params).double())
    with pytest.raises(ValueError, match="beside the model's outputs"):
        objective.ggn_trace()


@pytest.mark.parametrize("what", ["sizes", "constant", "another model's"])
def test_what_leaves_nothing_out_is_not_refused(what: str) -> None:
    net, other = network().eval(), network()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        factor: Any = {
            "sizes": lambda: sum(p.numel() for p in net.parameters() if p.requires_grad),
            "constant": lambda: 1 + squares(p.detach() for p in net.parameters()),
            "another model's": lambda: 1 + squares(other.parameters()),
        }[what]()
        return entropy(outputs, targets) * factor

    objective = Objective(net, loss, data())
    assert objective.ggnvp(torch.ones(1, objective.num_params).double()).any()


LAYER = nn.Linear(FEATURES, CLASSES).double()


class Global(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = LAYER

    def forward(self, x: Tensor) -> Tensor:
        return LAYER(x)


class Saved(nn.Module):
    """Uses a tensor that was made of its weight beforehand."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, FEATURES).double())
        self.made = make(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        made = self.made if isinstance(self.made, Tensor) else self.made[0]
        return functional.linear(x, made) + 0 * self.weight.sum()


def test_modules_called_through_a_global_are_counted() -> None:
    check(Global(), entropy)


@pytest.mark.parametrize(
    "make",
    [lambda w: w[:], lambda w: (w[:],), lambda w: w.detach(), lambda w: [w.data], lambda w: 2 * w],
    ids=["view", "view in a tuple", "detached", "data in a list", "computed"],
)
def test_what_was_made_of_a_parameter_beforehand_is_refused(make: Callable[[Tensor], Any]) -> None:
    objective = Objective(Saved(make), entropy, data())
    for call in (objective.value, objective.gradient):
        with pytest.raises(ValueError, match="made from weight outside of the forward pass"):
            call()


def test_parts_of_the_model_that_the_loss_runs_in_training_mode_are_refused() -> None:
    net = nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.Dropout(0.5)).double()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return entropy(outputs, targets) + net(data()[0]).square().mean()

    objective = Objective(net.train(), loss, data())
    with pytest.raises(ValueError, match=r"Dropout '1' .* call model.eval\(\)"):
        objective.value()
    net.eval()
    objective = Objective(net, loss, data())
    torch.testing.assert_close(objective.value(), loss(net(data()[0]), data()[1]).detach())
