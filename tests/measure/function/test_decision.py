"""Distances to where a decision changes: exact for linear maps, an interval for networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from undertow.measure import decision_distance
from undertow.models import mlp

DOUBLE = torch.float64


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_of_a_linear_map_it_is_exact() -> None:
    net = nn.Linear(5, 3).double()
    x = drawn(0, 20, 5)
    labels = net(x).argmax(1)
    found = decision_distance(net, x, labels)
    scores, weight = net(x).detach(), net.weight.detach()
    for row, label in enumerate(labels.tolist()):
        others = [j for j in range(3) if j != label]
        exact = min(
            float((scores[row, label] - scores[row, j]) / (weight[label] - weight[j]).norm())
            for j in others
        )
        assert float(found.upper[row]) == pytest.approx(exact, rel=1e-9)
        assert float(found.lower[row]) == pytest.approx(exact, rel=1e-9)
    assert found.exact.all()


def test_of_a_network_it_lies_between_and_no_draw_within_is_decided_otherwise() -> None:
    net = mlp((2, 16, 16, 3), generator=torch.Generator().manual_seed(1)).double()
    x = 2 * drawn(2, 12, 2)
    labels = net(x).argmax(1)
    found = decision_distance(net, x, labels)
    assert (found.lower <= found.upper * (1 + 1e-9)).all()
    angles = torch.linspace(0, 6.2832, 721, dtype=DOUBLE)
    around = torch.stack([angles.cos(), angles.sin()], 1)
    tight = []
    for row in range(len(x)):
        within = x[row] + 0.999 * found.lower[row] * around
        assert (net(within).argmax(1) == labels[row]).all()
        # The plane is so small that all of it may be tried for a point nearer by 5 %.
        radii = torch.linspace(0, 0.95, 80, dtype=DOUBLE)[:, None, None] * found.upper[row]
        inner = x[row] + radii.nan_to_num(100.0) * around
        tight.append(bool((net(inner.reshape(-1, 2)).argmax(1) == labels[row]).all()))
    assert sum(tight) >= 9
    assert "at most" in repr(found)


def test_what_is_decided_wrongly_is_at_distance_zero_and_other_labels_are_refused() -> None:
    net = nn.Linear(4, 2).double()
    x = drawn(3, 6, 4)
    wrong = 1 - net(x).argmax(1)
    found = decision_distance(net, x, wrong)
    assert not found.upper.any()
    assert not found.lower.any()
    with pytest.raises(ValueError, match="labels must be one whole number"):
        decision_distance(net, x, torch.zeros(6))
