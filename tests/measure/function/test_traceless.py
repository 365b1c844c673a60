"""Margins, norms, collapse and functional rank leave a model as they found it, also on errors."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from undertow.measure import (
    functional_rank,
    homogeneity,
    layer_norms,
    margins,
    neural_collapse,
    normalized_outputs,
)
from undertow.objective import Objective

MEASURES: dict[str, Callable[[Objective], Any]] = {
    "homogeneity": homogeneity,
    "margins": margins,
    "normalized_outputs": normalized_outputs,
    "layer_norms": layer_norms,
    "neural_collapse": neural_collapse,
    "features": lambda o: neural_collapse(o, features="1"),
    "functional_rank": lambda o: functional_rank(o.model, o),
    "accuracy": lambda o: functional_rank(o.model, o, metric="accuracy"),
}


class Counter(nn.Module):
    """Writes to a buffer and draws random numbers in every mode; fails from a given call on."""

    def __init__(self, fail_at: int) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.fail_at, self.times = fail_at, count(1)

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        torch.rand(3)
        if self.fail_at and next(self.times) >= self.fail_at:
            raise ArithmeticError("failed on purpose")
        return inputs


def network(fail_at: int) -> nn.Sequential:
    net = nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), Counter(fail_at), nn.Linear(6, 3)
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        nn.init.normal_(parameter, generator=generator)
        parameter.grad = torch.ones_like(parameter)
    net[0].bias.requires_grad_(False)
    net.train()
    net[2].eval()
    return net


def snapshot(net: nn.Module) -> list[Any]:
    return [
        torch.get_rng_state(),
        {name: tensor.clone() for name, tensor in net.state_dict().items()},
        [module.training for module in net.modules()],
        [(id(p), p.data_ptr(), p.requires_grad) for p in net.parameters()],
        [p.grad.clone() for p in net.parameters() if p.grad is not None],
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()],
        [list(m._parameters) + list(m._buffers) + list(m._modules) for m in net.modules()],
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("fail_at", [0, 1, 5])
def test_nothing_of_the_model_is_changed(measure: str, fail_at: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 5, generator=generator)
    y = torch.randint(3, (20,), generator=generator)
    net = network(fail_at)
    before = snapshot(net)
    objective = Objective(net, nn.CrossEntropyLoss(), (x, y), microbatch=6)
    if fail_at and not (measure == "layer_norms" and fail_at > 1):
        with pytest.raises(ArithmeticError):
            MEASURES[measure](objective)
    else:
        MEASURES[measure](objective)
    assert same(snapshot(net), before)


class Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Keyword(nn.Module):
    """Takes its inputs by name and returns its scores in a wrapper, as language models do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *, values: Tensor, scale: float = 1.0) -> Output:
        return Output(self.net(values * scale))


@pytest.mark.parametrize("measure", [m for m in MEASURES if m != "features"])
def test_inputs_by_name_and_wrapped_scores_give_the_same(measure: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 5, generator=generator)
    y = torch.randint(3, (20,), generator=generator)
    net = network(0)
    plain = MEASURES[measure](Objective(net, nn.CrossEntropyLoss(), (x, y), microbatch=6))
    named = [({"values": x[:9]}, y[:9]), ({"values": x[9:]}, y[9:])]
    found = MEASURES[measure](Objective(Keyword(net), nn.CrossEntropyLoss(), named, microbatch=6))
    if isinstance(plain, Tensor):
        torch.testing.assert_close(found, plain)
    else:
        assert repr(found).replace("net.", "").split() == repr(plain).split()
