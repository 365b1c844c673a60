"""Norms of minibatch gradients: plain autograd's, and never below the floor."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from undertow.measure import batch_gradient_norms, noise_floor, per_sample_gradient_norms
from undertow.models import mlp
from undertow.objective import Objective

DRAWN = torch.Generator().manual_seed(3)
INPUTS = torch.randn(12, 6, generator=DRAWN, dtype=torch.float64)
LABELS = torch.arange(12) % 3
NET = mlp((6, 8, 3), activation="tanh", generator=DRAWN).double()
OBJECTIVE = Objective(NET, functional.cross_entropy, (INPUTS, LABELS), microbatch=5)


def test_they_are_those_of_autograd() -> None:
    batches = torch.tensor([[0, 1, 7], [11, 2, 2]])
    found = batch_gradient_norms(OBJECTIVE, batches, weight_decay=0.1)
    for k, batch in enumerate(batches):
        net = mlp((6, 8, 3), activation="tanh").double()
        net.load_state_dict(NET.state_dict())
        functional.cross_entropy(net(INPUTS[batch]), LABELS[batch]).backward()
        for name, weight in net.named_parameters():
            assert weight.grad is not None
            expected = (weight.grad + 0.1 * weight).norm()
            torch.testing.assert_close(found[name][k], expected.detach())


def test_of_single_samples_they_are_the_per_sample_norms() -> None:
    found = batch_gradient_norms(OBJECTIVE, torch.arange(12)[:, None])
    squares = torch.stack([norms.square() for norms in found.values()]).sum(0)
    torch.testing.assert_close(squares.sqrt(), per_sample_gradient_norms(OBJECTIVE).norms)


@pytest.mark.parametrize("size", [1, 2])
def test_none_goes_below_the_floor(size: int) -> None:
    batches = torch.arange(12).view(-1, size)
    found = batch_gradient_norms(OBJECTIVE, batches, weight_decay=10.0)
    floors = noise_floor(NET, weight_decay=10.0, batch_size=size).table
    for name, floor in floors.select("name", "floor").iter_rows():
        assert floor > 0
        assert float(found[name].min()) >= floor * (1 - 1e-9)


def test_the_model_is_left_as_found() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    objective = Objective(net, functional.cross_entropy, (INPUTS, LABELS))
    first, again = (batch_gradient_norms(objective, torch.tensor([[0, 1]])) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert net.training
    assert all(weight.grad is None for weight in net.parameters())


def test_what_would_not_do_is_named() -> None:
    with pytest.raises(ValueError, match=r"batches must be \[batches, size\], got shape \(3,\)"):
        batch_gradient_norms(OBJECTIVE, torch.arange(3))
    with pytest.raises(ValueError, match="batches must name samples 0 to 11, got 5 to 12"):
        batch_gradient_norms(OBJECTIVE, torch.tensor([[5, 12]]))
    with pytest.raises(ValueError, match="weight_decay must be finite and not negative, got -1"):
        batch_gradient_norms(OBJECTIVE, torch.tensor([[0]]), weight_decay=-1)
