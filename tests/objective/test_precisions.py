"""Parameters of several types: one vector in the widest, and the numbers of float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from odd_twins import CLASSES, FEATURES, draw, samples
from undertow.objective import Objective

SINGLE, DOUBLE, HALF = torch.float32, torch.float64, torch.bfloat16


class Mixed(nn.Module):
    """Each layer in a type of its own; what goes in between is cast."""

    def __init__(self, *types: torch.dtype) -> None:
        super().__init__()
        widths = [FEATURES, 8, 8, CLASSES]
        pairs = zip(widths[:-1], widths[1:], types, strict=True)
        self.layers = nn.ModuleList(nn.Linear(a, b).to(kind) for a, b, kind in pairs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x.to(layer.weight.dtype)))
        return x


def both(*types: torch.dtype) -> tuple[Objective, Objective]:
    """The objective, and the same in float64 throughout."""
    net = Mixed(*types)
    x, y = samples()
    plain = copy.deepcopy(net).double()
    return (
        Objective(net, functional.cross_entropy, (x.float(), y), microbatch=5),
        Objective(plain, functional.cross_entropy, (x.float().double(), y)),
    )


@pytest.mark.parametrize(
    ("types", "widest"),
    [
        ((SINGLE, SINGLE, DOUBLE), DOUBLE),
        ((DOUBLE, SINGLE, SINGLE), DOUBLE),
        ((HALF, SINGLE, DOUBLE), DOUBLE),
        ((SINGLE, HALF, SINGLE), SINGLE),
        ((HALF, torch.float16, HALF), SINGLE),
    ],
)
def test_vectors_are_of_the_widest_type(types: Any, widest: torch.dtype) -> None:
    objective, plain = both(*types)
    block = draw(1, 3, objective.num_params)

    def noise(objective: Objective) -> Tensor:
        return objective.sample_noise(2, batch_size=2, generator=torch.Generator().manual_seed(0))

    rough = any(kind.itemsize < 4 for kind in types)
    for found, expected in (
        (objective.gradient(), plain.gradient()),
        (objective.hvp(block), plain.hvp(block)),
        (objective.ggnvp(block), plain.ggnvp(block)),
        (noise(objective), noise(plain)),
    ):
        assert found.dtype == widest
        error = torch.linalg.norm(found.double() - expected) / torch.linalg.norm(expected)
        assert error < (0.05 if rough else 1e-5)
    assert objective.risk.theta().dtype == widest
