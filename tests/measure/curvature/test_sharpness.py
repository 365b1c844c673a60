"""Sharpness against dense eigenvalues in float64, closed forms, and invariances."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from undertow.measure import Sharpness, SharpnessTracker, sharpness, spherical_sharpness
from undertow.measure.curvature._krylov import Operator, RitzBasis
from undertow.measure.curvature._lanczos import largest_share
from undertow.objective import Objective


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(seed: int = 0) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for number, p in enumerate(net.parameters()):
            p.copy_(0.7 * draw(seed + number, *p.shape))
    return net


def objective(seed: int = 0, **kwargs: Any) -> Objective:
    labels = torch.randint(3, (40,), generator=torch.Generator().manual_seed(seed))
    data = (draw(seed + 10, 40, 6), labels)
    return Objective(network(seed), nn.CrossEntropyLoss(), data, **kwargs)


def matrix(measured: Objective, kind: str = "hessian") -> Tensor:
    units = torch.eye(measured.num_params, dtype=torch.float64)
    return measured.hvp(units) if kind == "hessian" else measured.ggnvp(units)


def regression(seed: int, outputs: int) -> tuple[Objective, Tensor]:
    """Linear regression, and the Hessian's eigenvalues: each of X^T X `outputs` times."""
    net, inputs = nn.Linear(5, outputs, bias=False).double(), draw(seed, 30, 5)
    measured = Objective(net, nn.MSELoss(), (inputs, draw(seed + 1, 30, outputs)))
    values = torch.linalg.eigvalsh(2 * inputs.T @ inputs / (30 * outputs)).flip(0)
    return measured, values.repeat_interleave(outputs)


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("k", [1, 4, 83])
def test_eigenpairs_are_those_of_the_dense_matrix(k: int, curvature: str, which: str) -> None:
    measured = objective(microbatch=16)
    dense = matrix(measured, curvature)
    values = torch.linalg.eigvalsh(dense)
    expected = values.flip(0)[:k] if which == "largest" else values[:k]
    rtol = 1e-6
    found = sharpness(measured, k, rtol, curvature=curvature, which=which)  # type: ignore[arg-type]
    assert found.converged
    scale = float(values.abs().max())
    torch.testing.assert_close(found.eigenvalues, expected, rtol=rtol, atol=1e-11 * scale)
    gram = found.vectors @ found.vectors.T
    torch.testing.assert_close(gram, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-10)
    images = found.vectors @ dense
    true = torch.linalg.vector_norm(images - found.eigenvalues[:, None] * found.vectors, dim=1)
    torch.testing.assert_close(found.residuals, true, rtol=1e-3, atol=1e-12 * scale)
    assert (true <= rtol * found.eigenvalues.abs() + 3e-12 * scale).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), outputs=st.integers(1, 4), k=st.integers(1, 5))
def test_multiple_eigenvalues_are_counted(seed: int, outputs: int, k: int) -> None:
    measured, expected = regression(seed, outputs)
    found = sharpness(measured, k, 1e-8)
    torch.testing.assert_close(found.eigenvalues, expected[:k])


@given(seed=st.integers(0, 1000), size=st.integers(2, 8))
def test_no_more_of_an_eigenvector_is_in_a_start_than_its_lanczos_steps_allow(
    seed: int, size: int
) -> None:
    gaps = 0.5 + torch.rand(size, generator=torch.Generator().manual_seed(seed)).double()
    values = gaps.cumsum(0)  # the last is the largest
    operator = Operator(lambda v: v * values, size, values)
    space = RitzBasis(operator, size, torch.Generator().manual_seed(seed))
    space.extend(draw(seed, 1, size))
    share = float(space.basis[0, -1] ** 2)
    bounds = [1.0]
    for steps in range(1, size):
        direction, length = space.lanczos_direction()
        bounds.append(largest_share(space.projected, length, float(values[-1])))
        assert share <= bounds[-1] * (1 + 1e-9)
        assert bounds[-1] <= bounds[-2] * (1 + 1e-9)
        if steps + 1 < size:
            space.append(direction)
    assert bounds[-1] == pytest.approx(share, rel=1e-5)  # the whole measure is known


def test_residuals_bound_the_error_at_any_tolerance() -> None:
    measured = objective(3)
    values = torch.linalg.eigvalsh(matrix(measured)).flip(0)
    for rtol in (0.3, 0.03, 1e-3):
        found = sharpness(measured, 3, rtol)
        distance = (found.eigenvalues[:, None] - values).abs().amin(1)
        assert (distance <= found.residuals + 1e-12).all()
        assert (found.residuals <= rtol * found.eigenvalues.abs()).all()


def test_a_tiny_loss_scales_the_eigenvalues_exactly() -> None:
    plain = objective(1)
    data = next(iter(plain.batches()))
    tiny = Objective(plain.model, lambda o, t: 1e-9 * nn.functional.cross_entropy(o, t), [data])
    expected, found = sharpness(plain, 3, 1e-6), sharpness(tiny, 3, 1e-6)
    torch.testing.assert_close(found.eigenvalues, 1e-9 * expected.eigenvalues, rtol=1e-9, atol=0)
    assert found.products == expected.products


def test_many_more_steps_than_capacity_give_no_ghosts() -> None:
    values = torch.cat([torch.tensor([3.0, 2.9, 2.8]), torch.linspace(0, 2.7, 297)]).double()
    net = nn.Linear(300, 1, bias=False).double()
    inputs = torch.diag((values * 300 / 2).sqrt())
    measured = Objective(net, nn.MSELoss(), (inputs, torch.zeros(300, 1).double()))
    found = sharpness(measured, 5, 1e-7)
    assert found.products > 40
    torch.testing.assert_close(found.eigenvalues, values.sort().values.flip(0)[:5])


def test_a_warm_start_needs_fewer_products() -> None:
    measured = objective(2)
    cold = sharpness(measured, 3, 1e-4)
    again = sharpness(measured, 3, 1e-4, start=cold)
    assert again.products < cold.products
    torch.testing.assert_close(again.eigenvalues, cold.eigenvalues, rtol=1e-6, atol=0)
    one = sharpness(measured, 1, 1e-4, start=cold.vectors[:1])
    assert one.products == 1


def test_running_out_of_products_is_said() -> None:
    found = sharpness(objective(), 4, 1e-9, max_products=6)
    assert not found.converged
    assert found.products == 6
    assert "NOT converged after 6 products" in repr(found)
    assert "frozen" in repr(found)


def test_a_loss_without_curvature_has_sharpness_zero() -> None:
    net = nn.Linear(3, 1).double()
    measured = Objective(net, lambda o, t: o.flatten(), (draw(0, 5, 3), draw(1, 5)))
    found = sharpness(measured, 2)
    assert found.eigenvalues.tolist() == [0.0, 0.0]
    assert found.converged


def test_same_call_same_result_and_no_random_state_moved(global_rng_untouched: None) -> None:
    # The fixture's state must not be moved by building the networks here either.
    with torch.random.fork_rng():
        first, second = sharpness(objective(), 2), sharpness(objective(), 2)
    assert torch.equal(first.eigenvalues, second.eigenvalues)
    assert torch.equal(first.vectors, second.vectors)


def test_single_precision_reaches_the_default_tolerance() -> None:
    exact = objective(4)
    inputs, labels = next(iter(exact.batches()))
    single = Objective(network(4).float(), nn.CrossEntropyLoss(), (inputs.float(), labels))
    found, expected = sharpness(single, 5), sharpness(exact, 5, 1e-8)
    assert found.converged
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=1e-5, atol=1e-7)


# On the sphere.


class Direction(nn.Module):
    """A map that depends on the directions of its two layers only."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Parameter(scale * draw(0, 6, 4))
        self.second = nn.Parameter(draw(1, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(3 * x @ self.first / self.first.norm())
        return hidden @ self.second / self.second.norm()


def on_directions(scale: float = 1.0) -> Objective:
    return Objective(Direction(scale), nn.MSELoss(), (draw(2, 20, 6), draw(3, 20, 2)))


def test_spherical_sharpness_is_the_sharpness_at_the_normalised_weights() -> None:
    measured = on_directions()
    found = spherical_sharpness(measured, 2, 1e-6)
    with torch.no_grad():
        weights = torch.cat([p.flatten() for p in measured.model.parameters()])
        for p in measured.model.parameters():
            p /= weights.norm()
    torch.testing.assert_close(
        found.eigenvalues, sharpness(measured, 2, 1e-6).eigenvalues, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_spherical_sharpness_by_blocks_does_not_depend_on_any_norm(which: str) -> None:
    blocks = [["first"], ["second"]]
    found = [
        spherical_sharpness(on_directions(scale), 1, 1e-7, blocks=blocks, which=which)  # type: ignore[arg-type]
        for scale in (1.0, 30.0)
    ]
    torch.testing.assert_close(found[0].eigenvalues, found[1].eigenvalues)


def test_spherical_sharpness_refuses_what_depends_on_the_norm() -> None:
    with pytest.raises(ValueError, match="depends on the norm of the block"):
        spherical_sharpness(objective())
    with pytest.raises(ValueError, match="blocks must hold each of first, second once"):
        spherical_sharpness(on_directions(), blocks=[["first"]])


# Along training.


def descend(net: nn.Module, learning_rate: float, measured: Objective) -> None:
    gradient = measured.gradient()
    with torch.no_grad():
        for p, step in zip(
            net.parameters(),
            gradient.split([p.numel() for p in net.parameters()]),
            strict=True,
        ):
            p -= learning_rate * step.view_as(p)


@pytest.mark.slow
@pytest.mark.parametrize(("learning_rate", "budget"), [(0.5, 2.5), (1.5, 10.0)])
def test_tracked_sharpness_stays_near_the_truth(learning_rate: float, budget: float) -> None:
    net = network(5)
    targets = nn.functional.one_hot(torch.arange(40) % 3, 3).double()
    measured = Objective(net, nn.MSELoss(), (draw(6, 40, 6), targets))
    tracker = SharpnessTracker(measured)
    for _ in range(150):
        found = tracker.update()
        truth = float(torch.linalg.eigvalsh(matrix(measured))[-1])
        assert float(found.eigenvalues[0]) == pytest.approx(truth, rel=0.02)
        descend(net, learning_rate, measured)
    assert tracker.updates == 150
    assert tracker.products <= budget * 150


def test_tracking_notices_an_eigenvalue_that_overtakes() -> None:
    net = nn.Linear(60, 1, bias=False).double()
    inputs = torch.eye(60, dtype=torch.float64)
    inputs[0, 0] = 2.0
    measured = Objective(net, nn.MSELoss(), (inputs, torch.zeros(60, 1).double()))
    tracker = SharpnessTracker(measured)
    assert float(tracker.update().eigenvalues[0]) == pytest.approx(8 / 60)
    inputs[1, 1] = 4.0
    values = [float(tracker.update().eigenvalues[0]) for _ in range(30)]
    assert values[-1] == pytest.approx(32 / 60, rel=0.02)


# Refusing.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"k": 84}, "k must be at most the 83 parameters, got 84"),
        ({"rtol": 0.0}, "rtol must be between 0 and 1"),
        ({"rtol": math.nan}, "rtol must be between 0 and 1"),
        ({"curvature": "fisher"}, "curvature must be 'hessian' or 'ggn', got 'fisher'"),
        ({"which": "both"}, "which must be 'largest' or 'smallest'"),
        ({"max_products": 0}, "max_products must be at least 1"),
        ({"start": torch.ones(83)}, "start must hold directions"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sharpness(objective(), **arguments)


def test_other_kinds_of_arguments_are_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"objective must be an undertow\.Objective, got Linear"):
        sharpness(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="start must be a Sharpness or a tensor"):
        sharpness(objective(), start=[1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"k must be a whole number, got 1\.0"):
        sharpness(objective(), k=1.0)  # type: ignore[arg-type]


def test_the_result_reads_like_a_sentence() -> None:
    found = sharpness(objective(), 2)
    assert isinstance(found, Sharpness)
    assert repr(found).startswith("Sharpness ")
    assert "converged after" in repr(found)
