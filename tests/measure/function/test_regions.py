"""Activation regions: the affine map against dense Jacobians, and exact distances to boundaries."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from undertow.measure import activation_region, boundary_distance, region_radius
from undertow.models import conv_net, mlp

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def built(make: Callable[[], nn.Module]) -> nn.Module:
    """A module whose initial weights are drawn aside from the global random state."""
    with torch.random.fork_rng():
        return make().double()


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 with seeded parameters and batch-norm statistics."""
    model = model.double()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for index, (name, tensor) in enumerate(tensors):
        if tensor.is_floating_point():
            values = draw(1000 * seed + index, *tensor.shape) / max(1, tensor[:1].numel()) ** 0.5
            with torch.no_grad():
                tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return model


class Residual(nn.Module):
    """A block with an identity path, batch norm, and functional nonlinearities."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.norm(self.first(x)))
        return torch.relu_(self.second(inner) + x)


class Everything(nn.Module):
    """Slices, products with constants, concatenation, clamps, and a max pool of one dimension."""

    def forward(self, x: Tensor) -> Tensor:
        halves = torch.cat([x.clamp(-0.3, 0.4), 2 * x.abs() - x / 3], 1).clone()
        halves[:, :2] += functional.hardsigmoid(x[:, :2])
        pooled = functional.max_pool1d(halves[:, None], 3, stride=2, padding=1, dilation=1)
        return functional.prelu(pooled, torch.tensor([0.2], dtype=x.dtype))[:, 0]


CASES = {
    "mlp": (lambda: mlp((6, 8, 8, 3)), (6,)),
    "leaky": (lambda: mlp((6, 8, 8, 3), activation="leaky_relu"), (6,)),
    "batch norm": (lambda: mlp((6, 8, 3), batch_norm=True), (6,)),
    "conv": (lambda: conv_net((2, 6, 6), (3, 4), 5, batch_norm=True), (2, 6, 6)),
    "relu6 first, in place": (
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 5), nn.ReLU6(), nn.Linear(5, 2)),
        (6,),
    ),
    "residual": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            Residual(3),
            nn.MaxPool2d(3, 2, 1),
            Residual(3),
            nn.AvgPool2d(2, ceil_mode=True),
            nn.Flatten(),
            nn.Linear(12, 4),
        ),
        (2, 7, 7),
    ),
    "pools": (
        lambda: nn.Sequential(
            nn.MaxPool2d((3, 2), stride=(1, 2), padding=1, dilation=(2, 1), ceil_mode=True),
            nn.AdaptiveAvgPool2d((2, 3)),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(12, 2),
        ),
        (2, 6, 7),
    ),
    "max pool in three dimensions": (
        lambda: nn.Sequential(nn.MaxPool3d(2), nn.Flatten(), nn.Linear(8, 2)),
        (1, 4, 4, 4),
    ),
    "adaptive max pools": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 2),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d((3, 2)),
            nn.Flatten(2),
            nn.AdaptiveMaxPool1d(4),
            nn.Flatten(),
            nn.Linear(8, 2),
        ),
        (1, 6, 5),
    ),
    "adaptive max pool in three dimensions": (
        lambda: nn.Sequential(nn.AdaptiveMaxPool3d((2, 3, 1)), nn.Flatten(), nn.Linear(6, 2)),
        (1, 3, 4, 5),
    ),
    "everything": (Everything, (6,)),
    "affine": (lambda: mlp((6, 8, 3), activation="identity"), (6,)),
}


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    make, shape = CASES[request.param]
    return filled(built(make)), draw(7, 5, *shape)


def patterns_equal(first: object, second: object, sample: int) -> bool:
    return all(
        torch.equal(pattern[sample], second.pattern[name][sample])
        for name, pattern in first.pattern.items()
    )


def test_the_map_is_the_dense_jacobian_and_the_output(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    region = activation_region(model, x)
    reference = copy.deepcopy(model).eval()
    with torch.no_grad():
        torch.testing.assert_close(region(x), reference(x.clone()).flatten(1))
    for sample, matrix in zip(x, region.matrix, strict=True):
        dense = torch.autograd.functional.jacobian(
            lambda point: reference(point[None].clone())[0], sample
        )
        torch.testing.assert_close(matrix, dense.flatten(1))


def test_the_pattern_holds_up_to_the_radius_and_not_beyond(case: tuple[nn.Module, Tensor]) -> None:
    model, x = case
    region, directions = activation_region(model, x), draw(8, *x.shape)
    found = region_radius(model, x, directions)
    assert found.distance.shape == (5,)
    reach = found.distance.clamp(max=100.0).view(-1, *[1] * (x.ndim - 1))
    inside = x + (1 - 1e-9) * reach * directions
    outside = activation_region(model, x + (1 + 1e-9) * reach * directions)
    near = activation_region(model, inside)
    with torch.no_grad():
        torch.testing.assert_close(
            region(inside), copy.deepcopy(model).eval()(inside.clone()).flatten(1)
        )
    for sample in range(5):
        assert patterns_equal(region, near, sample)
        if torch.isfinite(found.distance[sample]):
            assert not patterns_equal(region, outside, sample)
            changed = found.layers[int(found.layer[sample])]
            before, after = region.pattern[changed], outside.pattern[changed]
            assert not torch.equal(before[sample], after[sample])
        else:
            assert found.layer[sample] == -1


def test_the_nearest_boundary_bounds_every_direction_and_is_reached(
    case: tuple[nn.Module, Tensor],
) -> None:
    model, x = case
    nearest = boundary_distance(model, x)
    directions = draw(9, 40, *x.shape)
    directions /= directions.flatten(2).norm(dim=2).view(40, 5, *[1] * (x.ndim - 1))
    radii = region_radius(model, x, directions)
    assert radii.distance.shape == (40, 5)
    assert (radii.distance >= nearest.distance * (1 - 1e-9)).all()
    single = region_radius(model, x, directions[3])
    torch.testing.assert_close(single.distance, radii.distance[3])
    assert torch.equal(single.layer, radii.layer[3])


def test_a_single_layer_in_closed_form() -> None:
    weight, bias, x = draw(1, 4, 3), draw(2, 4), draw(3, 6, 3)
    model = built(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    with torch.no_grad():
        model[0].weight.copy_(weight)
        model[0].bias.copy_(bias)
    before = x @ weight.T + bias
    region = activation_region(model, x)
    active = before > 0
    torch.testing.assert_close(region.matrix, active[..., None] * weight)
    torch.testing.assert_close(region.offset, active * bias)
    assert torch.equal(region.pattern["1"], active)
    expected, unit = (before.abs() / weight.norm(dim=1)).min(1)
    found = boundary_distance(model, x)
    torch.testing.assert_close(found.distance, expected)
    # Straight across the nearest hyperplane the first hit is at that very distance.
    normal = weight[unit] / weight[unit].norm(dim=1, keepdim=True)
    toward = -torch.sign(before.gather(1, unit[:, None])) * normal
    torch.testing.assert_close(region_radius(model, x, toward).distance, expected)
    assert "A 4 x 3 for each of 6 samples" in repr(region)
    assert repr(found).startswith("Boundary: the activation pattern first changes")


@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10.0))
@settings(max_examples=25, deadline=None)
def test_a_network_without_biases_is_linear_on_rays(seed: int, scale: float) -> None:
    model = filled(mlp((4, 6, 6, 2), bias=False), seed)
    x = draw(seed, 3, 4)
    region, scaled = activation_region(model, x), activation_region(model, scale * x)
    torch.testing.assert_close(region.matrix, scaled.matrix)
    assert float(region.offset.abs().max()) < 1e-12
    assert torch.isinf(region_radius(model, x, x).distance).all()
    ratio = boundary_distance(model, scale * x).distance / boundary_distance(model, x).distance
    torch.testing.assert_close(ratio, torch.full_like(ratio, scale))


def test_directions_follow_the_scale_of_their_length() -> None:
    model, x, directions = filled(mlp((4, 6, 2))), draw(1, 5, 4), draw(2, 5, 4)
    once, twice = (region_radius(model, x, s * directions).distance for s in (1, 2))
    torch.testing.assert_close(once, 2 * twice)


def test_a_sample_on_a_boundary_has_distance_zero() -> None:
    model = built(lambda: nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU()))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0]]))
    x = torch.tensor([[0.0, 3.0]], dtype=torch.float64)
    toward, away = (torch.tensor([[s, 0.0]], dtype=torch.float64) for s in (1.0, -1.0))
    assert not activation_region(model, x).pattern["1"].any()
    assert float(boundary_distance(model, x).distance) == 0
    assert float(region_radius(model, x, toward).distance) == 0
    assert torch.isinf(region_radius(model, x, away).distance).all()


def test_dead_pooling_windows_are_ties_that_no_direction_breaks() -> None:
    layers = (nn.ReLU(), nn.MaxPool1d(2), nn.Flatten())
    model = built(lambda: nn.Sequential(nn.Conv1d(1, 2, 3), *layers))
    with torch.no_grad():
        model[0].weight.fill_(0.1)
        model[0].bias.fill_(-5.0)
    x, ray = draw(0, 3, 1, 9), draw(1, 3, 1, 9)
    inputs = torch.nn.functional.conv1d(x, model[0].weight, model[0].bias)
    slopes = torch.nn.functional.conv1d(ray, model[0].weight)
    times = torch.where(slopes > 0, -inputs / slopes, torch.inf).flatten(1).min(1).values
    torch.testing.assert_close(region_radius(model, x, ray).distance, times.detach())


def test_float32_and_a_shared_module_called_twice() -> None:
    act = nn.ReLU()
    model = built(lambda: nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 4), act)).float()
    model.load_state_dict(filled(model).float().state_dict())
    x = draw(0, 4, 3).float()
    region = activation_region(model, x)
    assert region.matrix.dtype == torch.float32
    assert list(region.pattern) == ["1", "1#2"]
    with torch.no_grad():
        torch.testing.assert_close(region(x), model(x))


class RaisesLate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp((3, 4, 3), batch_norm=True)

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        raise RuntimeError("midway")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("measure", [activation_region, boundary_distance])
def test_the_model_is_left_as_found(fails: bool, measure: object) -> None:
    model = RaisesLate() if fails else mlp((3, 4, 3), batch_norm=True)
    first = next(model.parameters())
    first.grad, first.requires_grad = torch.ones_like(first), False
    list(model.modules())[-1].eval()
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    x = draw(0, 4, 3).float()
    given = x.clone()
    if fails:
        with pytest.raises(RuntimeError, match="midway"):
            measure(model, x)
    else:
        measure(model, x)
    assert torch.equal(x, given)
    assert not x.requires_grad
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(first.grad, torch.ones_like(first))
    assert not first.requires_grad
    assert all(parameter.grad is None for parameter in list(model.parameters())[1:])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class FunctionalLayer(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.GELU(), r"layer 1 \(GELU\) is not piecewise linear: gelu"),
        (nn.Softmax(-1), r"layer 1 \(Softmax\).*_softmax"),
        (nn.Tanh(), "tanh"),
        (nn.LayerNorm(4), "native_layer_norm"),
        (FunctionalLayer(lambda x: x * x), "mul"),
        (FunctionalLayer(lambda x: x @ x.mT @ x), "mm"),
        (FunctionalLayer(lambda x: x / x.norm(dim=1, keepdim=True)), "linalg_vector_norm"),
        (FunctionalLayer(lambda x: 1 / x), "reciprocal"),
        (FunctionalLayer(lambda x: x.round()), "round"),
        (FunctionalLayer(lambda x: x.long().to(x.dtype)), "step function"),
        (FunctionalLayer(lambda x: torch.where(x > 0, x, 0 * x)), "gt"),
        (FunctionalLayer(lambda x: functional.dropout(x, 0.5, training=True)), "draws random"),
        (FunctionalLayer(lambda x: x - x.mean(0)), "mixes samples"),
        (FunctionalLayer(lambda x: functional.batch_norm(x, None, None, training=True)), "norm"),
        (nn.TransformerEncoderLayer(4, 1, dim_feedforward=8), "not piecewise linear"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_not_piecewise_linear_is_named(layer: nn.Module, said: str) -> None:
    model = built(lambda: nn.Sequential(nn.Linear(4, 4), layer))
    with pytest.raises(ValueError, match=said):
        activation_region(model, draw(0, 3, 4))


def test_moving_the_batch_axis_is_found_out() -> None:
    model = nn.Sequential(FunctionalLayer(lambda x: torch.relu(x.mT.contiguous()).mT))
    x = draw(0, 3, 3)
    with pytest.raises(ValueError, match="mixes samples, or moves the batch"):
        region_radius(model, x, draw(1, 3, 3))


def test_bad_input_says_what_would_do() -> None:
    model, x = mlp((3, 2)).double(), draw(0, 4, 3)
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got function"):
        activation_region(lambda x: x, x)
    with pytest.raises(TypeError, match=r"floating-point.*int64"):
        activation_region(model, x.long())
    with pytest.raises(ValueError, match=r"at least one sample.*\(0, 3\)"):
        boundary_distance(model, x[:0])
    with pytest.raises(ValueError, match="NaN"):
        activation_region(model, x / 0 * 0)
    with pytest.raises(ValueError, match=r"directions must have the shape of x, \(4, 3\)"):
        region_radius(model, x, x[:2])
    with pytest.raises(ValueError, match="directions hold NaN"):
        region_radius(model, x, x / 0)
    with pytest.raises(TypeError, match="must return a tensor; it returns tuple"):
        activation_region(FunctionalLayer(lambda x: (x, x)), x)
    with pytest.raises(ValueError, match="as many rows"):
        activation_region(FunctionalLayer(lambda x: x.sum()), x)


AT_KINK = {
    # At the last kink, the function and the piece below it as (slope, value at zero).
    "relu": (nn.ReLU(), 0.0, (0.0, 0.0)),
    "leaky relu": (nn.LeakyReLU(0.1), 0.0, (0.1, 0.0)),
    "abs": (FunctionalLayer(torch.abs), 0.0, (-1.0, 0.0)),
    "hardtanh": (nn.Hardtanh(), 1.0, (1.0, 0.0)),
    "hardtanh below": (nn.Hardtanh(), -1.0, (0.0, -1.0)),
    "relu6": (nn.ReLU6(), 6.0, (1.0, 0.0)),
    "hardsigmoid": (nn.Hardsigmoid(), 3.0, (1 / 6, 0.5)),
    "clamp below": (FunctionalLayer(lambda x: x.clamp(min=0.5)), 0.5, (0.0, 0.5)),
    "clamp at zero": (FunctionalLayer(lambda x: x.clamp(min=0)), 0.0, (0.0, 0.0)),
    "clamp above": (FunctionalLayer(lambda x: x.clamp(max=0.5)), 0.5, (1.0, 0.0)),
    "crossed clamp": (FunctionalLayer(lambda x: x.clamp(min=1.0, max=0.5)), 0.5, (0.0, 0.5)),
}


@pytest.mark.parametrize("name", AT_KINK)
def test_at_a_kink_the_map_is_that_of_the_piece_below(name: str) -> None:
    model, kink, (slope, offset) = AT_KINK[name]
    region = activation_region(model, torch.tensor([[kink]], dtype=torch.float64))
    assert float(region.matrix) == pytest.approx(slope)
    assert float(region.offset) == pytest.approx(offset)
    below = torch.tensor([[kink - 0.01]], dtype=torch.float64)
    torch.testing.assert_close(region(below), model(below))


@pytest.mark.parametrize("size", [1e-30, 1e-8, 1e-4, 1e4])
def test_the_length_of_a_direction_costs_no_digits(size: float) -> None:
    model = filled(mlp((4, 6, 6, 2))).float()
    x, ray = draw(1, 5, 4).float(), draw(2, 5, 4).float()
    once, scaled = (region_radius(model, x, s * ray).distance for s in (1.0, size))
    torch.testing.assert_close(size * scaled, once, rtol=1e-5, atol=0)


def test_large_biases_hide_no_boundary_in_float32() -> None:
    model, x, ray = filled(mlp((4, 6, 6, 2))), draw(1, 5, 4), draw(2, 5, 4)
    with torch.no_grad():
        model[1].weight.mul_(0.01)
        model[1].bias.add_(1000)
    single = copy.deepcopy(model).float()
    with torch.no_grad():  # the same numbers in both types
        for parameter, rounded in zip(model.parameters(), single.parameters(), strict=True):
            parameter.copy_(rounded)
    x, ray = x.float().double(), ray.float().double()
    for measure, inputs in ((region_radius, (x, ray)), (boundary_distance, (x,))):
        found = measure(single, *(part.float() for part in inputs)).distance.double()
        torch.testing.assert_close(found, measure(model, *inputs).distance, rtol=1e-4, atol=0)


@pytest.mark.parametrize("how", ["detach", "no_grad"])
def test_what_is_detached_counts(how: str) -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            if how == "detach":
                return self.head(self.body(x).relu().detach()) + x[:, :2]
            with torch.no_grad():
                hidden = self.body(x).relu()
            return self.head(hidden)

    model = filled(built(Detached))
    x = torch.cat([torch.zeros(1, 4, dtype=torch.float64), draw(1, 3, 4)])
    region = activation_region(model, x)
    step = 1e-6 * draw(2, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(region(x + step), model(x + step), rtol=0, atol=1e-12)


def test_choices_by_a_constant_mask_are_affine() -> None:
    mask = torch.tensor([True, False, True, False])
    for choice in (
        lambda x: torch.where(mask, x.relu(), 2 * x),
        lambda x: x.masked_fill(mask, 3.0),
    ):
        model, x = FunctionalLayer(choice), draw(0, 3, 4)
        torch.testing.assert_close(activation_region(model, x)(x), model(x))


@pytest.mark.parametrize("measure", [activation_region, boundary_distance])
def test_causes_are_named(measure: object) -> None:
    x = draw(0, 3, 4)
    broken = filled(mlp((4, 3, 2)))
    with torch.no_grad():
        broken[1].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"outputs of model are not finite: 1\.weight"):
        measure(broken, x)
    with pytest.raises(TypeError, match=r"x must be in the type.*float64, got torch\.float32"):
        measure(filled(mlp((4, 3, 2))), x.float())
    for function, said in (
        (lambda x: torch.div(x, 0.5, rounding_mode="floor"), "not piecewise linear: div"),
        (lambda x: torch.nn.functional.prelu(x, x[0, :1]), "not piecewise linear: _prelu"),
        (lambda x: x.half().double(), "rounds to torch.float16"),
    ):
        with pytest.raises(ValueError, match=said):
            measure(FunctionalLayer(function), x)
    with pytest.raises(TypeError, match="directions must be a tensor, got list"):
        region_radius(mlp((4, 2)).double(), x, [1.0])
    with pytest.raises(TypeError, match="directions must be floating point"):
        region_radius(mlp((4, 2)).double(), x, x.long())
