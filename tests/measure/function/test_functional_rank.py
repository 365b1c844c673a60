"""Functional rank: closed forms, the definition at the rank found, and where matrices live."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from undertow.measure import functional_rank
from undertow.models import mlp
from undertow.objective import Objective

CE = nn.CrossEntropyLoss()


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(spectrum: list[float], rows: int, cols: int) -> nn.Linear:
    layer = nn.Linear(cols, rows, bias=False, dtype=torch.float64)
    count = len(spectrum)
    left = torch.linalg.qr(draw(1, rows, count)).Q
    right = torch.linalg.qr(draw(2, cols, count)).Q
    with torch.no_grad():
        layer.weight.copy_(left * torch.tensor(spectrum, dtype=torch.float64) @ right.T)
    return layer


def white(samples: int, features: int) -> Tensor:
    return torch.linalg.qr(draw(3, samples, features)).Q * samples**0.5


@pytest.mark.parametrize(
    ("tolerance", "rank"), [(1e-9, 5), (0.001, 4), (0.01, 3), (0.2, 2), (1.0, 1), (50.0, 0)]
)
def test_linear_regression_on_white_inputs_drops_the_tail_energy(
    tolerance: float, rank: int
) -> None:
    spectrum = [4.0, 2.0, 0.6, 0.16, 0.03]
    layer = linear(spectrum, 6, 8)
    x = white(32, 8)
    target = layer(x).detach()
    found = functional_rank(layer, Objective(layer, nn.MSELoss(), (x, target)), tolerance)
    # The loss at rank r is (s_{r+1}^2 + ...) / rows: 3.4, 0.73, 0.064, 0.0044, 0.00015, 0.
    loss = sum(s * s for s in spectrum[rank:]) / 6
    assert found.ranks == found.common_ranks == {"weight": rank}
    assert found.table["metric_alone"][0] == pytest.approx(loss, abs=1e-12)
    assert found.common_metric == pytest.approx(loss, abs=1e-12)


def truncated(net: nn.Module, chosen: dict[str, int]) -> nn.Module:
    net = copy.deepcopy(net)
    for name, rank in chosen.items():
        weight = net.get_parameter(name)
        left, values, right = torch.linalg.svd(weight.detach().flatten(1), full_matrices=False)
        cut = left[:, :rank] * values[:rank] @ right[:rank]
        weight.data = cut.reshape(weight.shape)
    return net


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((net(x).argmax(1) == y).double().mean())


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
@pytest.mark.parametrize("microbatch", [None, 7])
def test_the_rank_found_keeps_the_metric_and_the_next_lower_does_not(
    metric: Any, microbatch: int | None
) -> None:
    net = mlp((9, 12, 10, 4), activation="tanh", generator=torch.Generator().manual_seed(1))
    net = net.double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    x = draw(5, 60, 9)
    y = net(x).argmax(1)
    objective = Objective(net, CE, (x, y), microbatch=microbatch)
    found = functional_rank(net, objective, 0.05, metric=metric)

    @torch.no_grad()
    def drop(chosen: dict[str, int]) -> float:
        cut = truncated(net, chosen)
        if metric == "accuracy":
            return accuracy(net, x, y) - accuracy(cut, x, y)
        return float(CE(cut(x), y) - CE(net(x), y))

    for name, rank in found.ranks.items():
        assert drop({name: rank}) <= 0.05 + 1e-9
        assert rank == 0 or drop({name: rank - 1}) > 0.05
    assert drop(dict(found.common_ranks)) <= 0.05 + 1e-9
    for name, rank in found.common_ranks.items():
        squares = torch.linalg.svdvals(net.get_parameter(name).detach()).square()
        assert squares[rank:].sum() <= (found.discarded_energy + 1e-12) * squares.sum()
        assert squares[rank - 1 :].sum() > found.discarded_energy * squares.sum()
    assert found.table["metric_alone"].to_list() == pytest.approx(
        [
            found.full_metric + (1 if metric == "loss" else -1) * drop({n: r})
            for n, r in found.ranks.items()
        ],
        abs=1e-9,
    )
    assert found.passes <= 1 + 3 * 4 + 5
    assert "all at energy" in repr(found)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.attention(inputs, inputs, inputs)[0].mean(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5, bias=False)
        self.outer = nn.Linear(5, 5, bias=False)
        self.outer.weight = self.inner.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outer(self.inner(inputs).relu())


PLACES: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "transposed": (
        nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Flatten()),
        (4, 3, 3),
        1,
    ),
    "grouped": (nn.Sequential(nn.Conv1d(4, 6, 2, groups=2), nn.Flatten()), (4, 5), 1),
    "attention": (Attention(), (4, 6), 5),
    "tied": (Tied(), (5,), 1),
}


@pytest.mark.parametrize("case", PLACES)
@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_matrices_are_cut_where_they_are_stored(case: str, metric: Any) -> None:
    """With directions that do nothing removed from every matrix, nothing changes."""
    net, shape, count = PLACES[case]
    net = copy.deepcopy(net).double()
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(net.named_parameters()):
            parameter.copy_(draw(seed, *parameter.shape))
            if parameter.ndim >= 2:
                matrix = parameter
                if case == "transposed":
                    matrix = parameter.unflatten(0, (2, -1)).transpose(1, 2).flatten(0, 1)
                pieces = matrix.flatten(1).chunk(3 if "in_proj" in name else 1)
                low = torch.cat([torch.outer(p[:, 0], p[0]) for p in pieces])
                low = low.reshape(matrix.shape)
                if case == "transposed":
                    low = low.unflatten(0, (2, -1)).transpose(1, 2).flatten(0, 1)
                parameter.copy_(low)
    x = draw(0, 20, *shape)
    y = net(x).argmax(1)
    found = functional_rank(net, Objective(net, CE, (x, y)), 1e-9, metric=metric)
    assert len(found.ranks) == count
    assert max(found.ranks.values()) <= 1
    assert max(found.common_ranks.values()) <= 1
    worse = found.common_metric - found.full_metric
    assert (worse if metric == "loss" else -worse) <= 1e-9


def test_a_part_of_the_model_can_be_asked_for() -> None:
    net = mlp((6, 8, 8, 3)).double()
    x = draw(0, 30, 6)
    objective = Objective(net, CE, (x, net(x).argmax(1)))
    part = functional_rank(net[1:4], objective, 0.01)
    named = functional_rank(net, objective, 0.01, include=["1.weight", "3.weight"])
    assert list(part.ranks.values()) == list(named.ranks.values())
    with pytest.raises(ValueError, match="part of it"):
        functional_rank(mlp((6, 3)), objective, 0.01)


def test_parametrised_weights_are_left_as_they_are() -> None:
    net = mlp((4, 4, 3)).double()[1:]
    parametrizations.weight_norm(net[0])
    x = draw(0, 10, 4)
    found = functional_rank(net, Objective(net, CE, (x, net(x).argmax(1))), 0.01)
    assert list(found.ranks) == ["3.weight"]
    assert "1.weight is parametrised" in found.notes[0]
    with pytest.raises(ValueError, match="no matrix to truncate"):
        functional_rank(net[0], Objective(net, CE, (x, net(x).argmax(1))), 0.01)


def test_frozen_parameters_and_zero_matrices_are_measured_too() -> None:
    net = mlp((4, 5, 3)).double().requires_grad_(False)
    objective = Objective(net, CE, (draw(0, 10, 4), torch.zeros(10).long()), params=["1.weight"])
    nn.init.zeros_(net[3].weight)
    found = functional_rank(net, objective, 0.0)
    assert set(found.ranks.values()) == {0}


def test_one_output_and_ignored_labels_have_an_accuracy() -> None:
    net = linear([1.0], 1, 4)
    x = draw(0, 20, 4)
    y = (net(x) > 0).double()
    found = functional_rank(net, Objective(net, nn.BCEWithLogitsLoss(), (x, y)), metric="accuracy")
    assert found.full_metric == 1
    assert found.ranks == {"weight": 1}
    net = linear([2.0, 1.0], 3, 4)
    labels = net(x).argmax(1)
    labels[:5] = -100
    objective = Objective(net, CE, (x, labels), microbatch=4)
    assert functional_rank(net, objective, metric="accuracy").full_metric == 1
    objective = Objective(net, CE, (x, torch.full_like(labels, -100)))
    with pytest.raises(ValueError, match="no label counts"):
        functional_rank(net, objective, metric="accuracy")


def test_bad_arguments_are_refused() -> None:
    net = linear([1.0], 2, 2)
    objective = Objective(net, nn.MSELoss(), (draw(0, 3, 2), draw(1, 3, 2)))
    for tolerance in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="tolerance"):
            functional_rank(net, objective, tolerance)
    with pytest.raises(ValueError, match="metric"):
        functional_rank(net, objective, metric="f1")  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0]])
def test_ragged_batches_count_by_the_loss_s_own_denominator(weights: Any) -> None:
    net = linear([2.0, 1.0, 0.5], 3, 4)
    x = draw(0, 23, 4)
    y = torch.arange(23) % 3
    y[[2, 3, 11]] = -100
    loss = nn.CrossEntropyLoss(
        weight=None if weights is None else torch.tensor(weights, dtype=torch.float64)
    )
    batches = [(x[:20], y[:20]), (x[20:], y[20:])]
    found = functional_rank(net, Objective(net, loss, batches), 0.05)
    whole = functional_rank(net, Objective(net, loss, (x, y)), 0.05)
    assert found.full_metric == pytest.approx(float(loss(net(x), y).detach()), abs=1e-12)
    assert found.common_metric == pytest.approx(whole.common_metric, abs=1e-12)
    assert found.ranks == whole.ranks


def test_an_accuracy_that_falls_by_the_tolerance_exactly_is_kept() -> None:
    net = nn.Linear(1, 2, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        net.bias.copy_(torch.tensor([0.0, 0.1]))
    x = torch.ones(10, 1, dtype=torch.float64)
    x[:3] = -1
    y = (x[:, 0] > 0).long()
    found = functional_rank(net, Objective(net, CE, (x, y)), 0.3, metric="accuracy")
    assert found.ranks == {"weight": 0}  # always class 1: 0.7 of the labels
    assert found.common_metric == pytest.approx(0.7)


class Cosine(nn.Module):
    """Features of unit length: rank 0 divides by zero."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 6, bias=False, dtype=torch.float64)
        self.head = nn.Linear(6, 3, dtype=torch.float64)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.body(inputs)
        return self.head(hidden / hidden.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_a_truncation_whose_outputs_are_not_finite_is_not_kept(metric: Any) -> None:
    model = Cosine()
    data = draw(4, 30, 5), torch.arange(30) % 3
    found = functional_rank(model, Objective(model, CE, data), 100.0, metric=metric)
    assert found.ranks == {"body.weight": 1, "head.weight": 0}
    assert found.common_ranks["body.weight"] == 1
    with torch.no_grad():
        model.head.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        functional_rank(model, Objective(model, CE, data), 100.0, metric=metric)
