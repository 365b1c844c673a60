"""Neural collapse: zero on the simplex, equal to the definition on dense matrices, invariant."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from undertow.measure import NeuralCollapse, neural_collapse
from undertow.objective import Objective

CLASSES, FEATURES = 4, 6
CE = nn.CrossEntropyLoss()


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed: int, size: int) -> Tensor:
    return torch.linalg.qr(draw(seed, size, size)).Q


def head(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return layer


def simplex(classes: int, features: int) -> Tensor:
    """A simplex equiangular tight frame `[classes, features]`, turned at random."""
    frame = torch.eye(classes, dtype=torch.float64) - 1 / classes
    wide = torch.zeros(classes, features, dtype=torch.float64)
    wide[:, :classes] = frame
    return wide @ rotation(0, features)


def cloud(counts: tuple[int, ...] = (9, 5, 7, 11), features: int = FEATURES) -> Any:
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(2))]
    means = 2 * draw(3, len(counts), features)
    return means[y] + draw(4, len(y), features), y


def measure(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> NeuralCollapse:
    return neural_collapse(Objective(head(weight, bias), CE, (x, y)))


def numbers(found: NeuralCollapse) -> list[float]:
    return [
        found.nc1,
        found.nc2,
        found.nc3,
        found.nc4,
        found.equinorm_means,
        found.equiangular_means,
        found.equinorm_weights,
        found.equiangular_weights,
    ]


def dense(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> list[float]:
    """The definitions, with scatter matrices of features x features."""
    classes = len(weight)
    means = torch.stack([x[y == c].mean(0) for c in range(classes)])
    centered = means - means.mean(0)
    within = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for row, label in zip(x, y, strict=True):
        within += torch.outer(row - means[label], row - means[label]) / len(x)
    between = centered.T @ centered / classes
    inverse = torch.linalg.pinv(between, rtol=1e-10)
    nc1 = (within @ inverse).trace() / classes
    gram = centered @ centered.T
    ideal = (torch.eye(classes, dtype=torch.float64) - 1 / classes) / math.sqrt(classes - 1)
    nc2 = (gram / gram.norm() - ideal).norm()
    nc3 = (weight / weight.norm() - centered / centered.norm()).norm() ** 2
    nearest = torch.cdist(x, means).argmin(1)
    nc4 = ((x @ weight.T + bias).argmax(1) != nearest).double().mean()
    regular = []
    for rows in (centered, weight):
        norms = rows.norm(dim=1)
        cosines = [
            abs(float(rows[i] @ rows[j] / norms[i] / norms[j]) + 1 / (classes - 1))
            for i in range(classes)
            for j in range(classes)
            if i != j
        ]
        regular += [float(norms.std(correction=0) / norms.mean()), sum(cosines) / len(cosines)]
    return [float(nc1), float(nc2), float(nc3), float(nc4), *regular]


@pytest.mark.parametrize("classes", [2, 3, 4, 6])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_a_collapsed_network_has_four_zeros(classes: int, offset: float) -> None:
    means = simplex(classes, 8)
    y = torch.arange(5 * classes) % classes
    bias = -3 * means @ torch.full((8,), offset, dtype=torch.float64)
    found = measure(2 * means[y] + offset, y, 3 * means, bias)
    assert numbers(found) == pytest.approx([0] * 8, abs=1e-9)
    assert "all are 0 at collapse" in repr(found)


@pytest.mark.parametrize("counts", [(6, 6, 6, 6), (9, 5, 7, 11), (1, 2, 3, 30)])
def test_numbers_are_those_of_the_definitions(counts: tuple[int, ...]) -> None:
    x, y = cloud(counts)
    weight, bias = draw(5, CLASSES, FEATURES), draw(6, CLASSES)
    expected = dense(x, y, weight, bias)
    assert expected[3] > 0
    assert numbers(measure(x, y, weight, bias)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("features", [2, 3])
def test_fewer_features_than_classes_take_the_pseudoinverse(features: int) -> None:
    x, y = cloud(features=features)
    weight = draw(5, CLASSES, features)
    expected = dense(x, y, weight, torch.zeros(CLASSES))
    assert numbers(measure(x, y, weight)) == pytest.approx(expected, rel=1e-9)


BATCHINGS: dict[str, Any] = {
    "list": lambda x, y: list(zip(x.split(6), y.split(6), strict=True)),
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=5),
    "shuffled": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=9, shuffle=True),
    "one by one": lambda x, y: list(zip(x.split(1), y.split(1), strict=True)),
}


@pytest.mark.parametrize("batching", BATCHINGS)
def test_batches_do_not_matter(batching: str) -> None:
    x, y = cloud()
    weight = draw(5, CLASSES, FEATURES)
    whole = measure(x, y, weight)
    found = neural_collapse(Objective(head(weight), CE, BATCHINGS[batching](x, y)))
    assert numbers(found) == pytest.approx(numbers(whole), rel=1e-12)
    assert torch.equal(found.counts, whole.counts)


def test_rotation_scale_shift_and_names_of_classes_do_not_matter() -> None:
    x, y = cloud()
    weight = draw(5, CLASSES, FEATURES)
    before = numbers(measure(x, y, weight))
    turn = rotation(7, FEATURES)
    assert numbers(measure(3 * x @ turn, y, weight @ turn)) == pytest.approx(before, rel=1e-9)
    names = torch.tensor([2, 0, 3, 1])
    renamed = torch.empty_like(weight)
    renamed[names] = weight
    assert numbers(measure(x, names[y], renamed)) == pytest.approx(before, rel=1e-9)
    shift = draw(8, FEATURES)
    moved = numbers(measure(x + shift, y, weight, -weight @ shift))
    assert moved == pytest.approx(before, rel=1e-9)


def test_a_far_offset_leaves_the_noise_where_it_is() -> None:
    x, y = cloud()
    weight = draw(5, CLASSES, FEATURES)
    before = measure(x, y, weight)
    assert measure(x + 1e7, y, weight).nc1 == pytest.approx(before.nc1, rel=1e-6)


def test_equal_class_means_are_not_collapse() -> None:
    x = torch.cat([draw(1, 8, 3)] * 2)
    found = measure(x, torch.arange(16) // 8, draw(2, 2, 3))
    assert found.nc1 == math.inf
    assert found.nc2 > 0.5


def test_a_class_without_samples_is_left_out_and_noted() -> None:
    x, y = cloud()
    weight = draw(5, CLASSES, FEATURES)
    kept = y != 1
    found = measure(x[kept], y[kept], weight)
    assert found.classes == (0, 2, 3)
    assert "1 of 4 classes" in found.notes[0]
    rest = (y[kept] - (y[kept] > 1).long(), weight[[0, 2, 3]])
    smaller = measure(x[kept], *rest)
    assert found.nc1 == pytest.approx(smaller.nc1)
    assert found.nc3 == pytest.approx(smaller.nc3)


@pytest.mark.parametrize("coding", [0.0, -1.0])
def test_one_output_stands_for_two_opposite_classes(coding: float) -> None:
    x, y = cloud((8, 12))
    weight = draw(5, 1, FEATURES)
    targets = torch.where(y == 1, 1.0, coding).double()[:, None]
    found = neural_collapse(Objective(head(weight), nn.MSELoss(), (x, targets)))
    two = measure(x, y, torch.cat([-weight / 2, weight / 2]))
    assert numbers(found) == pytest.approx(numbers(two), rel=1e-9)


def body() -> nn.Sequential:
    net = nn.Sequential(
        nn.Linear(FEATURES, 7), nn.ReLU(inplace=True), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 4)
    ).double()
    with torch.no_grad():
        for seed, parameter in enumerate(net.parameters()):
            parameter.copy_(draw(seed, *parameter.shape))
    return net


def test_features_by_name_by_side_and_by_function_agree() -> None:
    x, y = cloud()
    net = body()
    objective = Objective(net, CE, (x, y))
    default = neural_collapse(objective)
    for options in (
        {"features": "3"},
        {"features": "4", "side": "input"},
        {"features": net[:4]},
        {"classifier": "4"},
    ):
        found = neural_collapse(objective, **options)  # type: ignore[arg-type]
        assert numbers(found) == pytest.approx(numbers(default), rel=1e-12)
    earlier = neural_collapse(objective, features="2")
    assert math.isnan(earlier.nc3)
    assert "not the input" in earlier.notes[0]
    assert earlier.class_means.shape == (4, 5)


def test_activations_in_place_do_not_change_what_was_read() -> None:
    x, y = cloud()
    net = body()
    found = neural_collapse(Objective(net, CE, (x, y)), features="0")
    with torch.no_grad():
        hidden = net[0](x)
    expected = torch.stack([hidden[y == c].mean(0) for c in range(CLASSES)])
    torch.testing.assert_close(found.class_means, expected)


def test_float32_networks_are_measured_in_float64() -> None:
    x, y = cloud()
    net = body().float()
    objective = Objective(net, CE, (x.float(), y))
    found = neural_collapse(objective)
    assert found.class_means.dtype == torch.float64
    precise = neural_collapse(objective, dtype=torch.float64)
    assert numbers(found) == pytest.approx(numbers(precise), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "body"}, "the model has 0, 1"),
        ({"features": "0", "side": "both"}, "side"),
        ({"classifier": "1"}, "no nn.Linear"),
        ({"features": lambda x: x[:3]}, "rows here"),
        ({"features": lambda x: x / 0}, "not finite"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neural_collapse(Objective(body(), CE, cloud()), **options)


def test_data_without_classes_are_refused() -> None:
    x, y = cloud()
    with pytest.raises(ValueError, match="two or more classes"):
        neural_collapse(Objective(body(), CE, (x, torch.zeros_like(y))))
    y[3] = -100
    with pytest.raises(ValueError, match="one label per sample"):
        neural_collapse(Objective(body(), CE, (x, y)))


def test_modules_called_twice_have_no_features() -> None:
    net = body()
    net.insert(4, net[3])
    with pytest.raises(ValueError, match="called 2 times"):
        neural_collapse(Objective(net, CE, cloud()), features="3")


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("step", [7, 13, 60])
def test_rounding_of_the_class_means_is_not_inverted(offset: float, step: int) -> None:
    noise, line = draw(1, 20, FEATURES), draw(2, FEATURES)
    noise = noise - noise.mean(0)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    y = torch.arange(3).repeat_interleave(20)

    def found(gap: float) -> NeuralCollapse:
        x = torch.cat([noise[torch.randperm(20)] + k * gap * line for k in range(3)]) + offset
        data = list(zip(x[order].split(step), y[order].split(step), strict=True))
        return neural_collapse(Objective(head(draw(3, 3, FEATURES)), CE, data))

    # Means on a line: one direction between the classes, and no second one from rounding.
    on_a_line = found(1.0)
    along = (noise @ line).square().mean() / line.square().sum() ** 2 / 2
    assert on_a_line.nc1 == pytest.approx(float(along), rel=1e-9)
    assert math.isnan(on_a_line.equinorm_means)  # the middle class lies at the centre
    equal = found(0.0)
    assert equal.nc1 == math.inf
    assert equal.nc2 == pytest.approx(1)
    assert math.isnan(equal.equinorm_means)


def test_layers_called_by_the_name_of_their_input_have_features() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = head(draw(5, CLASSES, FEATURES))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(input=inputs)

    x, y = cloud()
    found = neural_collapse(Objective(Named(), CE, (x, y)))
    assert numbers(found) == numbers(measure(x, y, draw(5, CLASSES, FEATURES)))


class _Moved(nn.Module):
    """Features that are sorted, or of which the lengths come first, and outputs in order."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.features, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, inputs):
        if self.kind == "sorted":
            order = inputs[:, 0, 0].argsort()
            return self.head(self.features(inputs[order]).tanh()[order.argsort()].mean(1))
        if self.kind == "times first":
            return self.head(self.features(inputs.transpose(0, 1)).tanh().mean(0))
        return self.head(self.features(inputs).tanh().mean(1))


@pytest.mark.parametrize("kind", ["in order", "sorted", "times first"])
@pytest.mark.parametrize("microbatch", [None, 6])
def test_features_in_another_order_are_refused(kind, microbatch):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(12, microbatch or 12, 4, generator=generator)
    data = inputs, torch.arange(12) % 3
    asked = Objective(_Moved(kind), nn.CrossEntropyLoss(), data, microbatch=microbatch)
    if kind == "in order":
        assert neural_collapse(asked, features="features").samples == 12
    else:
        with pytest.raises(ValueError, match="do not lie in the order of the samples"):
            neural_collapse(asked, features="features")
