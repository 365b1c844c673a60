"""Norms of layers against the matrices that they are, and the laws of the norm-based bounds."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from undertow.measure import layer_norms, norm_bounds, toeplitz_norm
from undertow.models import conv_net, mlp
from undertow.objective import Objective


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def objective(model: nn.Module, *shape: int, samples: int = 6) -> Objective:
    targets = torch.zeros(samples, dtype=torch.long)
    return Objective(model, nn.CrossEntropyLoss(), (draw(0, samples, *shape), targets))


def matrix(layer: nn.Module, *shape: int) -> Tensor:
    """The layer as one dense matrix, column by column."""
    layer = copy.deepcopy(layer).double()
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        return (layer(basis) - layer(torch.zeros_like(basis))).flatten(1).T


CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "plain": (nn.Conv2d(2, 3, 3), (2, 5, 6)),
    "padded": (nn.Conv2d(2, 3, 3, padding=1), (2, 5, 6)),
    "wide padding": (nn.Conv2d(1, 2, 2, padding=3), (1, 3, 4)),
    "stride": (nn.Conv2d(2, 4, 3, stride=2, padding=1), (2, 7, 6)),
    "dilation and groups": (nn.Conv2d(4, 6, (2, 3), dilation=2, groups=2, padding=2), (4, 6, 7)),
    "same": (nn.Conv2d(2, 3, (3, 5), padding="same"), (2, 5, 5)),
    "valid": (nn.Conv2d(2, 3, 3, padding="valid"), (2, 5, 5)),
    "circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 6)),
    "1d": (nn.Conv1d(2, 3, 4, stride=3, padding=2), (2, 11)),
    "3d": (nn.Conv3d(1, 2, 2, padding=1), (1, 3, 2, 4)),
    "transposed": (nn.ConvTranspose2d(4, 2, 3, groups=2), (4, 4, 5)),
    "transposed stride": (
        nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1),
        (2, 4, 5),
    ),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_have_the_norms_of_their_dense_matrix(case: str) -> None:
    layer, shape = CONVOLUTIONS[case]
    with torch.no_grad():
        layer.weight.copy_(draw(1, *layer.weight.shape))
    dense = matrix(layer, *shape)
    assert toeplitz_norm(layer, shape[1:]) == pytest.approx(float(dense.norm()), rel=1e-6)
    row = layer_norms(objective(layer, *shape)).table.row(0, named=True)
    largest = float(torch.linalg.svdvals(dense)[0])
    assert row["toeplitz_norm"] == pytest.approx(float(dense.norm()), rel=1e-6)
    assert row["spectral_norm"] >= largest * (1 - 1e-6)
    if case == "circular":
        assert row["spectral_norm"] == pytest.approx(largest, rel=1e-6)


def test_without_padding_the_ratio_is_the_root_of_the_positions() -> None:
    layer = nn.Conv2d(3, 4, 3, stride=2).double()
    kernel = float(layer.weight.detach().norm())
    assert toeplitz_norm(layer, (9, 11)) / kernel == pytest.approx(math.sqrt(4 * 5), rel=1e-12)


def test_reflected_padding_has_no_count() -> None:
    layer = nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect")
    assert math.isnan(toeplitz_norm(layer, (5,)))
    assert math.isnan(layer_norms(objective(layer, 1, 5)).log_toeplitz)


def test_linear_layers_repeat_at_every_position() -> None:
    layer = nn.Linear(3, 4)
    dense = matrix(layer, 5, 3)
    row = layer_norms(objective(layer, 5, 3)).table.row(0, named=True)
    assert row["positions"] == 5
    assert row["toeplitz_norm"] == pytest.approx(float(dense.norm()), rel=1e-6)
    assert row["spectral_norm"] == pytest.approx(float(torch.linalg.svdvals(dense)[0]), rel=1e-6)


def test_a_layer_called_twice_counts_twice_and_others_are_noted() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = parametrizations.weight_norm(nn.Linear(4, 4))
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.scale * self.core(self.core(inputs).relu())

    model = Twice()
    found = layer_norms(objective(model, 4))
    assert found.table["name"].to_list() == ["core", "core"]
    norm = float(model.core.weight.detach().double().norm())
    assert found.log_frobenius == pytest.approx(2 * math.log(norm))
    assert "scale" in found.notes[0]


def test_arguments_that_are_no_convolutions_are_refused() -> None:
    with pytest.raises(TypeError, match="convolution"):
        toeplitz_norm(nn.Linear(2, 2), (3,))
    with pytest.raises(ValueError, match="size must hold 2"):
        toeplitz_norm(nn.Conv2d(1, 1, 2), (3,))
    with pytest.raises(ValueError, match="no layer norms"):
        layer_norms(objective(nn.PReLU(), 2))


def chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False),
        nn.ReLU(),
        nn.Conv2d(3, 4, 2, stride=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 9, 5, bias=False),
    )


def test_the_bounds_are_their_formulas() -> None:
    model, count = chain(), 6
    found = norm_bounds(objective(model, 2, 8, 8))
    x = draw(0, count, 2, 8, 8).double()
    rho = math.prod(float(p.detach().double().norm()) for p in model.parameters())
    patches = nn.functional.unfold(x, 3).square().sum((0, 1)).max()
    choices = 3 * math.log(2) + math.log(5)
    assert found.degrees == (4, 9)
    expected = (
        rho / count * (1 + math.sqrt(2 * (choices + math.log(36)))) * math.sqrt(36 * float(patches))
    )
    assert found.kernel == pytest.approx(expected, rel=1e-6)
    assert found.locality_factor == pytest.approx(math.sqrt(36 * 9), rel=1e-6)
    expected = rho * found.locality_factor / count * (1 + math.sqrt(2 * choices)) * float(x.norm())
    assert found.toeplitz == pytest.approx(expected, rel=1e-6)
    assert math.log(found.kernel) == pytest.approx(found.log_kernel)


def test_dense_networks_gain_nothing_and_scaling_enters_once_a_layer() -> None:
    model = mlp((5, 6, 7, 3), bias=False)
    one = norm_bounds(objective(model, 5))
    assert one.kernel == pytest.approx(one.toeplitz, rel=1e-12)
    assert one.locality_factor == pytest.approx(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert norm_bounds(objective(model, 5)).kernel == pytest.approx(8 * one.kernel, rel=1e-6)


def test_the_bound_exceeds_the_complexity_of_one_layer() -> None:
    x = draw(0, 40, 5)
    model = nn.Sequential(nn.Linear(5, 1, bias=False))
    found = norm_bounds(Objective(model, nn.MSELoss(), (x, torch.zeros(40, 1))))
    signs = draw(1, 2000, 40).sign()
    norm = float(model[0].weight.detach().norm())
    complexity = norm * float((signs @ x).norm(dim=1).mean()) / 40
    assert complexity <= found.kernel


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)), 6),
        (conv_net((1, 6, 6), (2,), 2, batch_norm=True), 6),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")), 6),
    ],
    ids=["pooling", "batch norm", "reflect"],
)
def test_networks_outside_the_bounds_are_refused(model: nn.Module, shape: Any) -> None:
    with pytest.raises(ValueError, match="the bounds"):
        norm_bounds(objective(model, 1, shape, shape))


def test_biases_are_noted() -> None:
    found = norm_bounds(objective(mlp((5, 4, 2)), 5))
    assert "biases" in found.notes[0]
    assert "biases" in repr(found)


class Folded(nn.Module):
    """A layer on every position of a sequence, with the positions somewhere in the batch."""

    def __init__(self, layer: nn.Module, first: bool) -> None:
        super().__init__()
        self.layer, self.first = layer, first

    def forward(self, inputs: Tensor) -> Tensor:
        if self.first:  # positions come first
            return self.layer(inputs.transpose(0, 1)).transpose(0, 1)
        return self.layer(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])


@pytest.mark.parametrize(
    ("layer", "first", "shape"),
    [
        (nn.Linear(3, 4), False, (5, 3)),
        (nn.Linear(3, 4), True, (5, 3)),
        (nn.Conv1d(3, 4, 2), False, (5, 3, 6)),
    ],
    ids=["linear folded", "linear first", "convolution folded"],
)
def test_positions_count_wherever_the_model_puts_them(
    layer: nn.Module, first: bool, shape: tuple[int, ...]
) -> None:
    model = Folded(layer, first)
    dense = matrix(model, *shape)
    row = layer_norms(objective(model, *shape)).table.row(0, named=True)
    assert row["positions"] == (25 if len(shape) == 3 else 5)
    assert row["toeplitz_norm"] == pytest.approx(float(dense.norm()), rel=1e-6)
    assert row["spectral_norm"] >= float(torch.linalg.svdvals(dense)[0]) * (1 - 1e-6)


@pytest.mark.parametrize("padding", [0, 1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_circular_padding_that_repeats_rows_raises_the_norm(padding: int, stride: int) -> None:
    layer = nn.Conv1d(2, 3, 2, padding=padding, padding_mode="circular", stride=stride)
    dense = matrix(layer, 2, 5)
    row = layer_norms(objective(layer, 2, 5)).table.row(0, named=True)
    assert row["spectral_norm"] >= float(torch.linalg.svdvals(dense)[0]) * (1 - 1e-6)
    assert row["toeplitz_norm"] == pytest.approx(float(dense.norm()), rel=1e-6)


def test_sizes_without_an_output_are_refused() -> None:
    with pytest.raises(ValueError, match=r"size \(3, 3\) is too small"):
        toeplitz_norm(nn.Conv2d(1, 1, 5), (3, 3))
    with pytest.raises(ValueError, match="whole numbers"):
        toeplitz_norm(nn.Conv1d(1, 1, 2), (3.5,))  # type: ignore[arg-type]


def test_a_layer_used_twice_has_the_bound_of_two_equal_ones() -> None:
    tied = nn.Linear(4, 4, bias=False)
    apart = nn.Sequential(tied, nn.ReLU(), copy.deepcopy(tied))
    one = norm_bounds(objective(nn.Sequential(tied, nn.ReLU(), tied), 4))
    two = norm_bounds(objective(apart, 4))
    assert one.samples == two.samples == 6
    assert one.kernel == pytest.approx(two.kernel, rel=1e-12)
    assert one.toeplitz == pytest.approx(two.toeplitz, rel=1e-12)


def test_every_output_position_is_a_choice() -> None:
    dense = nn.Linear(6, 10, bias=False)
    layer = nn.Conv1d(1, 2, 2, bias=False)
    bounds = norm_bounds(objective(layer, 1, 6)), norm_bounds(objective(dense, 6))
    factors = []
    for found, inputs in zip(bounds, (draw(0, 6, 1, 6), draw(0, 6, 6)), strict=True):
        scale = math.exp(found.norms.log_toeplitz) * float(inputs.norm()) / 6
        factors.append(found.toeplitz / scale)
    assert factors[0] == pytest.approx(factors[1], rel=1e-6)


class Shortcut(nn.Sequential):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + super().forward(inputs)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(4, 3)), (1, 6, 6), "whole positions"),
        (nn.Sequential(nn.Linear(6, 6), nn.Conv1d(5, 3, 2)), (5, 6), "whole positions"),
        (nn.Sequential(nn.Linear(4, 4), Shortcut(nn.Linear(4, 4))), (4,), "Shortcut"),
        (nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 3)), (5, 4), "5 rows"),
    ],
    ids=["not flattened", "channels mixed up", "shortcut", "batch folded"],
)
def test_layers_that_do_not_read_whole_positions_are_refused(
    model: nn.Module, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        norm_bounds(objective(model, *shape))


def test_layers_called_by_the_name_of_their_input_are_measured() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(input=inputs)

    row = layer_norms(objective(Named(), 5, 3)).table.row(0, named=True)
    assert (row["name"], row["positions"]) == ("layer", 5)
