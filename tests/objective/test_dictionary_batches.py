"""Batches that are dictionaries, and the loss that a model computes of its labels."""

from __future__ import annotations

import pytest
import torch
from dense_curvature import draw, fill
from token_models import Named, sliced, tokens
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from undertow.objective import Objective


@pytest.mark.parametrize("shift", [0, 1])
def test_dictionary_batches_with_the_models_own_loss_are_averaged_exactly(shift: int) -> None:
    net = fill(Named(shift))
    batch = tokens()
    whole = Objective(net, None, [batch])
    split = Objective(net, None, sliced(batch, 2), microbatch=1)
    torch.testing.assert_close(whole.value(), net(**batch).loss.detach())
    torch.testing.assert_close(split.value(), whole.value())
    torch.testing.assert_close(split.gradient(), whole.gradient())
    block = draw(1, 2, whole.num_params)

    def own(theta: Tensor) -> Tensor:
        named = dict(net.named_parameters())
        parts = theta.split([p.numel() for p in named.values()])
        shaped = {n: t.view_as(p) for (n, p), t in zip(named.items(), parts, strict=True)}
        return functional_call(net, shaped, (), batch).loss

    theta = torch.cat([p.detach().flatten() for p in net.parameters()])
    matrix = torch.autograd.functional.hessian(own, theta)
    for objective in (whole, split):
        torch.testing.assert_close(objective.hvp(block), block @ matrix)
    torch.testing.assert_close(split.ggnvp(block), whole.ggnvp(block))
    assert whole.num_samples == split.num_samples == 9
    assert "its own loss" in repr(whole)


def test_dictionary_batches_with_a_loss_of_the_logits() -> None:
    net, batch = fill(Named()), tokens()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        values = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        return values.mean(1)

    given_loss = Objective(net, loss, sliced(batch, 4))
    objective = Objective(Named(), None, [batch])
    assert given_loss.predictions().shape == (9, 5, 7)
    assert given_loss.hvp(draw(0, 1, objective.num_params)).shape == (1, objective.num_params)
    with pytest.raises(TypeError, match="under 'labels'"):
        Objective(net, loss, [{"input_ids": batch["input_ids"]}]).value()
    with pytest.raises(TypeError, match=r"no 0-d \.loss"):
        Objective(nn.Linear(2, 2), None, [(torch.ones(1, 2), torch.ones(1, 2))]).value()
    with pytest.raises(ValueError, match="its denominator is unknown"):
        Objective(fill(Named(scale=2.0)), None, [batch]).value()
