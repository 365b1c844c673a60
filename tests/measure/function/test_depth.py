"""Convergence in depth: bounds that hold, closed forms, and blocks that are found."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from undertow.measure import depth_convergence
from undertow.models import conv_net, deep_plain_mlp, identity_plus_noise_, mlp

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def seeded(make: Callable[[], nn.Module], scale: float = 0.3) -> nn.Module:
    with torch.random.fork_rng():
        model = make().double()
    for index, parameter in enumerate(model.parameters()):
        parameter.data.copy_(scale * draw(index, *parameter.shape))
    return model


class Residual(nn.Module):
    """h + W_2 relu(W_1 h + b_1) + b_2, with a ReLU behind where asked for."""

    def __init__(self, width: int, inner: int, *, last: bool, functional: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, inner), nn.Linear(inner, width)
        if not functional:
            self.first = nn.Sequential(self.first, nn.ReLU())
        self.last, self.functional = last, functional

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first(x)
        total = x + self.second(inner.relu() if self.functional else inner)
        return total.relu() if self.last else total


@given(
    seed=st.integers(0, 1000),
    scale=st.floats(0.0, 2.0),
    power=st.floats(0.0, 2.0),
    positive=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_both_bounds_hold_for_plain_stacks(
    seed: int, scale: float, power: float, positive: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = deep_plain_mlp(5, 12, inputs=5, outputs=2).double()[3:-1]
    identity_plus_noise_(hidden, scale=scale, power=power, generator=generator)
    for index, layer in enumerate(hidden[::2]):
        layer.bias.data.copy_(0.1 * draw(seed + index, 5))
    x = draw(seed, 7, 5)
    found = depth_convergence(hidden, x.abs() if positive else x)
    slack = 1e-12 * (1 + found.state_norm)
    assert (found.movement <= found.bound + slack[1:]).all()
    assert (found.state_norm <= found.norm_bound * (1 + 1e-12) + slack).all()
    if positive:
        plain = found.perturbation[:, None] * found.state_norm[:-1] + found.bias[:, None]
        torch.testing.assert_close(found.bound, plain)
    norms = [scale * layer**-power for layer in range(1, 13)]
    torch.testing.assert_close(found.perturbation.tolist(), norms, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.partial_sums, found.perturbation.cumsum(0))


def test_states_are_the_networks_own() -> None:
    model = deep_plain_mlp(6, 4, inputs=3, outputs=2, generator=torch.Generator().manual_seed(3))
    model = model.double()
    x = draw(0, 5, 3)
    found = depth_convergence(model, x)
    assert found.blocks == ("3-4", "5-6", "7-8", "9-10")
    with torch.no_grad():
        states = torch.stack([model[: 3 + 2 * depth](x) for depth in range(5)])
    torch.testing.assert_close(found.state_norm, states.norm(dim=2))
    torch.testing.assert_close(found.movement, (states[1:] - states[:-1]).norm(dim=2))
    torch.testing.assert_close(found.remaining, (states[-1] - states).norm(dim=2))


def test_a_constant_shrinkage_settles_where_its_closed_form_says() -> None:
    shrink, depth = 0.5, 30
    stack = deep_plain_mlp(3, depth, inputs=3, outputs=1, scale=0.0).double()[3:-1]
    for layer in stack[::2]:
        layer.weight.data.mul_(shrink)
        layer.bias.data.fill_(1.0)
    x = draw(0, 4, 3).abs()
    found = depth_convergence(stack, x, tolerance=1e-3)
    limit = 1 / (1 - shrink)
    factors = torch.tensor([shrink**n for n in range(depth + 1)], dtype=torch.float64)[:, None]
    expected = (factors - factors[-1]) * (x - limit).norm(dim=1)
    torch.testing.assert_close(found.remaining, expected)
    last = (limit + factors[-1][:, None] * (x - limit)).norm(dim=1)
    settled = [
        next(n for n in range(depth + 1) if expected[n, sample] <= 1e-3 * last[sample])
        for sample in range(4)
    ]
    assert found.settled_depth.tolist() == settled
    torch.testing.assert_close(found.perturbation, torch.full_like(found.perturbation, 0.5))
    assert "30 blocks: ||P_l|| add up to 15;" in repr(found)


def test_an_identity_stack_is_settled_at_once_and_a_negative_input_costs_one_relu() -> None:
    stack = deep_plain_mlp(4, 6, inputs=4, outputs=1, scale=0.0).double()[3:-1]
    x = draw(0, 5, 4)
    found = depth_convergence(stack, x.abs())
    assert not found.movement.any()
    assert found.settled_depth.tolist() == [0] * 5
    mixed = depth_convergence(stack, x)
    torch.testing.assert_close(mixed.movement[0], x.clamp(max=0).norm(dim=1))
    torch.testing.assert_close(mixed.bound[0], mixed.movement[0])
    assert mixed.settled_depth.tolist() == [1] * 5


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("functional", [False, True])
def test_residual_blocks_are_bounded(last: bool, functional: bool) -> None:
    stack = seeded(
        lambda: nn.Sequential(
            nn.Linear(3, 5), *[Residual(5, 8, last=last, functional=functional) for _ in range(4)]
        ),
        0.2,
    )
    found = depth_convergence(stack, draw(1, 6, 3))
    assert found.blocks == ("1", "2", "3", "4")
    assert (found.movement <= found.bound * (1 + 1e-12)).all()
    first = [part for part in stack[1].modules() if isinstance(part, nn.Linear)]
    norms = [float(torch.linalg.matrix_norm(part.weight.detach(), 2)) for part in first]
    assert float(found.perturbation[0]) == pytest.approx(math.prod(norms))
    biases = [float(part.bias.detach().norm()) for part in first]
    assert float(found.bias[0]) == pytest.approx(biases[0] * norms[1] + biases[1])


class Scaled(nn.Module):
    """A block that no chain of its layers explains."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.linear(x)


def test_a_block_of_unknown_form_is_measured_without_a_bound() -> None:
    stack = seeded(lambda: nn.Sequential(Scaled(4), Scaled(4), nn.Linear(4, 2)))
    x = draw(0, 3, 4)
    found = depth_convergence(stack, x)
    assert found.bound.isnan().all()
    assert "2 blocks of unknown form" in repr(found)
    with torch.no_grad():
        torch.testing.assert_close(found.movement[0], (stack[0](x) - x).norm(dim=1))


def test_the_longest_run_counts_and_sequences_have_a_bias_at_every_position() -> None:
    stack = seeded(
        lambda: nn.Sequential(
            nn.Linear(3, 3),
            nn.ReLU(),
            nn.Linear(3, 4),
            nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()),
            nn.Linear(4, 2),
        )
    )
    x = draw(1, 6, 5, 3)
    found = depth_convergence(stack, x)
    assert found.blocks == ("3.1-3.2", "3.3-3.4")
    assert (found.movement <= found.bound * (1 + 1e-12)).all()
    expected = 5**0.5 * stack[3][1].bias.detach().norm()
    torch.testing.assert_close(found.bias[0], expected)


def test_the_model_is_left_as_found_also_on_errors() -> None:
    model = mlp((3, 4, 4, 2)).train()
    model[1].weight.grad = torch.ones(4, 3)
    state = copy.deepcopy(model.state_dict())
    depth_convergence(model, draw(0, 5, 3).float())
    with pytest.raises(RuntimeError):
        depth_convergence(model, draw(0, 5, 7).float())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model[1].weight.grad, torch.ones(4, 3))
    assert model[3].weight.grad is None


def test_bad_input_says_what_would_do() -> None:
    model, x = mlp((3, 4, 4, 2)), draw(0, 5, 3).float()
    with pytest.raises(TypeError, match=r"nn\.Sequential of blocks, got Linear"):
        depth_convergence(model[1], x)
    with pytest.raises(TypeError, match="floating-point"):
        depth_convergence(model, x.long())
    with pytest.raises(ValueError, match="all finite"):
        depth_convergence(model, x / 0)
    with pytest.raises(ValueError, match="tolerance must be positive"):
        depth_convergence(model, x, tolerance=0.0)
    with pytest.raises(ValueError, match="no block that keeps the shape"):
        depth_convergence(conv_net((1, 4, 4), (2,), 3), torch.zeros(2, 1, 4, 4))
    broken = copy.deepcopy(model)
    broken[1].weight.data.fill_(math.inf)
    with pytest.raises(ValueError, match="layer 2 of stack gives no finite tensor"):
        depth_convergence(broken, x)


@pytest.mark.parametrize("scale", [1e-7, 1e-6, 1e-3])
def test_a_small_branch_does_not_pass_for_another_one(scale: float) -> None:
    stack = seeded(
        lambda: nn.Sequential(Scaled(4), Residual(4, 6, last=False, functional=True)), scale
    ).float()
    with torch.no_grad():
        stack[0].linear.weight.mul_(10)
        stack[0].linear.bias.zero_()
    found = depth_convergence(stack, draw(0, 3, 4).float())
    assert found.bound[0].isnan().all()  # h + W h / 10 is not h + W h
    assert not found.bound[1].isnan().any()


def test_dropout_and_identities_do_not_end_a_run() -> None:
    layers = [lambda: nn.Linear(4, 4), nn.Dropout, nn.ReLU, nn.Identity, nn.Dropout]
    stack = seeded(lambda: nn.Sequential(*(layer() for layer in layers * 3)))
    plain = nn.Sequential(*(part for part in stack if isinstance(part, nn.Linear | nn.ReLU)))
    x = draw(1, 5, 4)
    found, expected = depth_convergence(stack, x), depth_convergence(plain, x)
    assert found.blocks == ("0-2", "5-7", "10-12")
    torch.testing.assert_close(found.movement, expected.movement)
    torch.testing.assert_close(found.bound, expected.bound)


def test_inputs_of_another_type_are_refused() -> None:
    stack = seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    with pytest.raises(TypeError, match=r"x must be in the type.*float64, got torch\.float32"):
        depth_convergence(stack, torch.ones(2, 3))
