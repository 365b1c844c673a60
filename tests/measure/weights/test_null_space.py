"""The projector on what inputs do not span, and what no gradient reaches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from undertow import predict
from undertow.measure import null_projector


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("inputs", "unseen"),
    [
        (draw(0, 6, 10), 4),
        (draw(1, 10, 6), 0),
        (draw(2, 6, 2) @ draw(3, 2, 10), 8),
        (draw(4, 3, 2, 5), 7),
        (torch.zeros(3, 5), 5),
    ],
    ids=["wide", "tall", "of low rank", "images", "nothing"],
)
def test_it_projects_on_all_that_the_inputs_do_not_span(inputs: Tensor, unseen: int) -> None:
    projector = null_projector(inputs)
    assert projector.dtype == torch.float64
    torch.testing.assert_close(projector, projector.mT)
    torch.testing.assert_close(projector, projector @ projector)
    assert torch.linalg.norm(inputs.double().flatten(1) @ projector) < 1e-12
    assert float(projector.trace()) == pytest.approx(unseen, abs=1e-10)


def test_what_the_data_cannot_see_can_be_deleted_and_only_decays() -> None:
    inputs, labels = draw(5, 8, 20), torch.arange(8) % 3
    projector = null_projector(inputs)
    layer = nn.Linear(20, 16).double()
    net = nn.Sequential(layer, nn.Tanh(), nn.Linear(16, 3).double())
    start, lr, weight_decay = layer.weight.detach().clone(), 0.5, 0.1
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, weight_decay=weight_decay)
    for step in range(7):
        optimizer.zero_grad()
        batch = slice(step % 3, None, 3)
        functional.cross_entropy(net(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    left = predict.null_space_decay(lr, weight_decay, 7)
    torch.testing.assert_close(layer.weight @ projector, left * start @ projector)
    outputs = net(inputs)
    with torch.no_grad():
        layer.weight -= layer.weight @ projector
    torch.testing.assert_close(net(inputs), outputs)


def test_small_singular_values_count_from_rtol_on() -> None:
    inputs = torch.diag(torch.tensor([1.0, 1e-4, 0.0], dtype=torch.float64))
    assert float(null_projector(inputs).trace()) == pytest.approx(1)
    assert float(null_projector(inputs, rtol=1e-3).trace()) == pytest.approx(2)
    assert float(null_projector(1e-12 * inputs).trace()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("inputs", "rtol", "message"),
    [
        (torch.zeros(3), 1e-10, "inputs must be"),
        (torch.zeros(0, 3), 1e-10, "inputs must be"),
        (torch.full((2, 3), torch.nan), 1e-10, "NaN"),
        (torch.zeros(2, 3), 1.0, "rtol must lie in"),
    ],
)
def test_arguments_out_of_range_are_named(inputs: Tensor, rtol: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        null_projector(inputs, rtol=rtol)
