"""The degree of networks whose degree is known, and networks that have none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from undertow.measure import homogeneity
from undertow.models import conv_net, mlp
from undertow.objective import Objective


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def objective(model: nn.Module, *shape: int, **options: object) -> Objective:
    data = draw(0, 12, *shape), torch.zeros(12, dtype=torch.long)
    return Objective(model, nn.CrossEntropyLoss(), data, **options)  # type: ignore[arg-type]


class Power(nn.Module):
    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.relu() ** self.power


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "identity"])
def test_networks_without_biases_have_their_depth_as_degree(depth: int, activation: str) -> None:
    sizes = (5, *[9] * (depth - 1), 3)
    found = homogeneity(objective(mlp(sizes, activation=activation, bias=False), 5), layers=True)
    assert found.homogeneous
    assert found.degree == depth
    assert found.deviation < 1e-13
    assert found.stderr < 1e-13
    assert set(found.layer_degrees.values()) == {1.0}
    assert len(found.layer_degrees) == depth


def test_a_bias_in_the_first_layer_only_keeps_the_degree() -> None:
    net = mlp((5, 8, 8, 3), bias=False)
    net[1] = nn.Linear(5, 8)
    found = homogeneity(objective(net, 5), layers=True)
    assert found.degree == 3
    assert found.layer_degrees["1"] == 1


@pytest.mark.parametrize(
    "net",
    [
        mlp((5, 8, 8, 3)),
        mlp((5, 8, 3), activation="tanh", bias=False),
        mlp((5, 8, 3), batch_norm=True, bias=False),
    ],
    ids=["biases", "tanh", "batch norm"],
)
def test_other_networks_are_not_homogeneous_and_the_text_says_so(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.fill_(0.3)
    found = homogeneity(objective(net, 5))
    assert not found.homogeneous
    assert found.deviation > 1e-3
    assert found.stderr > 0
    assert repr(found).startswith("Not homogeneous")


def test_powers_and_normalisation_change_the_degree() -> None:
    squared = nn.Sequential(
        nn.Linear(5, 6, bias=False), Power(2.0), nn.Linear(6, 3, bias=False), Power(1.5)
    )
    assert homogeneity(objective(squared, 5)).degree == pytest.approx(4.5, abs=1e-12)
    normalised = nn.Sequential(
        nn.Linear(5, 6, bias=False), nn.LayerNorm(6, eps=0.0), nn.Linear(6, 3, bias=False)
    )
    found = homogeneity(objective(normalised, 5), layers=True)
    assert found.degree == 2  # the scale of the norm and the last layer; the first has none
    assert found.layer_degrees["0"] == 0
    assert any("normalisation" in note for note in found.notes)


def test_theta_is_what_the_objective_says_it_is() -> None:
    net = mlp((5, 8, 8, 3), bias=False)
    assert homogeneity(objective(net, 5, params=["1.weight", "5.weight"])).degree == 2


def test_a_network_far_deeper_than_floats_reach_keeps_its_degree() -> None:
    net = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(900)])
    for layer in net:
        nn.init.ones_(layer.weight)
    found = homogeneity(objective(net, 1), samples=3)
    assert found.degree == 900
    assert found.samples == 3


def test_zero_biases_are_noted() -> None:
    net = mlp((5, 8, 3))
    for layer in (net[1], net[3]):
        nn.init.zeros_(layer.bias)
    found = homogeneity(objective(net, 5))
    assert found.degree == 2
    assert any("1.bias" in note for note in found.notes)


def test_convolutions_batches_and_the_number_of_samples() -> None:
    net = conv_net((2, 6, 6), (3, 4), 3, bias=False)
    whole = homogeneity(objective(net, 2, 6, 6))
    pieces = homogeneity(objective(net, 2, 6, 6, microbatch=5))
    for found in (whole, pieces):
        assert (found.degree, found.samples, found.passes) == (3, 12, 5)
        assert found.homogeneous


def test_dead_networks_and_bad_arguments_are_refused() -> None:
    net = mlp((5, 8, 3), bias=False)
    with pytest.raises(ValueError, match="tolerance"):
        homogeneity(objective(net, 5), tolerance=0)
    with pytest.raises(ValueError, match="samples"):
        homogeneity(objective(net, 5), samples=0)
    nn.init.zeros_(net[1].weight)
    with pytest.raises(ValueError, match="all outputs are zero"):
        homogeneity(objective(net, 5))
    nn.init.constant_(net[1].weight, math.inf)
    with pytest.raises(ValueError, match=r"1\.weight is not finite"):
        homogeneity(objective(net, 5))


def test_outputs_whose_squares_leave_the_range_of_floats_have_their_degree() -> None:
    for weight, depth in ((1e-4, 60), (1e4, 60)):
        layers = [nn.Linear(2, 2, bias=False, dtype=torch.float64) for _ in range(depth)]
        model = nn.Sequential(*layers)
        with torch.no_grad():
            for layer in layers:
                layer.weight.copy_(weight * torch.tensor([[1.0, 0.1], [0.2, 1.0]]))
        data = draw(0, 12, 2).double(), torch.zeros(12, dtype=torch.long)
        found = homogeneity(Objective(model, nn.CrossEntropyLoss(), data))
        assert found.homogeneous
        assert found.degree == depth
        assert found.deviation < 1e-11
