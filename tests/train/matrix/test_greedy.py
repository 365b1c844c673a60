"""Greedy low-rank learning: closed forms, invariances, and where it parts from the nuclear norm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from undertow.train import (
    completion_loss,
    factored_descent,
    gaussian_sensors,
    greedy_low_rank,
    sensing_loss,
    truncated_svd,
)
from undertow.train.matrix._rest import flow_to_rest


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed: int, dim: int) -> Tensor:
    return torch.linalg.qr(draw(seed, dim, dim))[0]


def distance_to(target: Tensor):
    return lambda matrix: (matrix - target).square().sum() / 2


def spectrum(values: list[float], seed: int) -> Tensor:
    basis = rotation(seed, len(values))
    return (basis * torch.tensor(values, dtype=torch.float64)) @ basis.T


def three_by_three(large: float) -> tuple[Tensor, Tensor]:
    """Observe M12 = 1 and M13 = M23 = R; the diagonal is free."""
    known = torch.tensor([[0, 1, large], [1, 0, large], [large, large, 0]], dtype=torch.float64)
    return known, known != 0


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_each_phase_is_a_truncated_svd_where_f_is_a_distance(depth):
    target = draw(0, 4, 3)
    found = greedy_low_rank(distance_to(target), (4, 3), depth=depth)
    singular = torch.linalg.svdvals(target)
    assert found.complete
    assert found.converged
    assert found.rank == 3
    for phase, value in zip(found.phases, singular, strict=True):
        torch.testing.assert_close(
            phase.matrix, truncated_svd(target, phase.rank), atol=1e-9, rtol=0
        )
        assert phase.eigenvalue == pytest.approx(float(value))
        assert phase.loss == pytest.approx(float(singular[phase.rank :].square().sum()) / 2)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3])
def test_symmetric_learns_the_positive_eigenvalues_alone(depth):
    target = spectrum([3.0, 1.5, 0.0, -2.0], 1)
    found = greedy_low_rank(distance_to(target), 4, depth=depth, symmetric=True)
    assert found.rank == 2
    positive = truncated_svd(target, 4, positive=True)
    torch.testing.assert_close(found.matrix, positive, atol=1e-9, rtol=0)
    both_signs = greedy_low_rank(distance_to(target), 4, depth=depth)
    torch.testing.assert_close(both_signs.matrix, target, atol=1e-9, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [True, False])
def test_rotating_the_problem_rotates_every_phase(symmetric):
    sensors = gaussian_sensors(60, 6, generator=torch.Generator().manual_seed(2))
    truth = spectrum([3.0, 2.0, 0, 0, 0, 0], 3)
    turn = rotation(4, 6)
    other = turn if symmetric else rotation(5, 6)
    plain = sensing_loss(sensors, (sensors * truth).sum((1, 2)))
    found = greedy_low_rank(plain, 6, symmetric=symmetric, max_rank=2)
    turned = greedy_low_rank(
        lambda matrix: plain(turn.T @ matrix @ other), 6, symmetric=symmetric, max_rank=2
    )
    for one, two in zip(found.phases, turned.phases, strict=True):
        expected = turn @ one.matrix @ other.T
        torch.testing.assert_close(two.matrix, expected, atol=1e-7, rtol=0)
        assert two.eigenvalue == pytest.approx(one.eigenvalue, rel=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_phase_ends_at_a_minimum_among_matrices_of_its_rank(depth):
    known, mask = three_by_three(2.5)
    loss = completion_loss(known + torch.eye(3).double(), mask | torch.eye(3).bool())
    found = greedy_low_rank(loss, 3, depth=depth)
    for phase in found.phases:
        gradient = torch.func.grad(loss)(phase.matrix)
        assert float((gradient @ phase.matrix.T).norm()) < 1e-8
        assert float((phase.matrix.T @ gradient).norm()) < 1e-8
        for seed in range(20):
            move = torch.linalg.svd(phase.matrix + 0.05 * draw(seed, 3, 3))
            rank = phase.rank
            near = (move.U[:, :rank] * move.S[:rank]) @ move.Vh[:rank]
            assert float(loss(near)) >= phase.loss


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rank_one_where_the_nuclear_norm_would_choose_rank_two(depth, symmetric):
    large = 4.0
    found = greedy_low_rank(
        completion_loss(*three_by_three(large)), 3, depth=depth, symmetric=symmetric
    )
    vector = torch.tensor([1.0, 1.0, large], dtype=torch.float64)
    assert found.complete
    assert found.rank == 1
    torch.testing.assert_close(found.matrix, torch.outer(vector, vector), atol=1e-6, rtol=0)
    assert float(found.matrix.trace()) == pytest.approx(large**2 + 2)  # 4 R - 2 for nuclear norm


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_path_follows_the_end_to_end_flow(depth):
    """Between points of the path, W changes as the flow of its depth says, and f never rises."""
    target = spectrum([3.0, 1.0, 0.4], 6)
    loss = distance_to(target)
    found = greedy_low_rank(loss, 3, depth=depth, symmetric=True, max_rank=1, keep_path=True)
    path = found.phases[0].path
    assert bool((path.losses.diff() <= 1e-12).all())
    middle = int((path.matrices[:, 0, 0] / found.matrix[0, 0] - 0.5).abs().argmin())
    before, after = path.matrices[middle - 1], path.matrices[middle + 1]
    measured = (after - before) / (path.times[middle + 1] - path.times[middle - 1])
    matrix = path.matrices[middle]
    gradient = matrix - target
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)

    def power(exponent: float) -> Tensor:
        return (vectors * values.clamp_min(0) ** exponent) @ vectors.T if exponent else torch.eye(3)

    powers = [2 * part / depth for part in range(depth)]
    expected = -sum(
        power(first).double() @ gradient @ power(second).double()
        for first, second in zip(powers, reversed(powers), strict=True)
    )
    torch.testing.assert_close(measured, expected, atol=0.02 * float(expected.norm()), rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "power"), [(3, 1 / 3), (4, 1 / 2)])
def test_time_to_leave_the_saddle(depth, power):
    """log(1 / scale) / (2 eigenvalue) at depth 2, scale^-(1 - 2/depth) beyond."""

    def half_time(scale: float, layers: int) -> float:
        target = torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64))
        found = greedy_low_rank(
            distance_to(target), 2, depth=layers, max_rank=1, scale=scale, keep_path=True
        )
        path = found.phases[0].path
        return float(path.times[int((path.matrices[:, 0, 0] < 1).sum())])

    slow, fast = half_time(1e-8, 2), half_time(1e-4, 2)
    assert slow - fast == pytest.approx(math.log(1e4) / 4, rel=0.05)
    assert half_time(1e-8, depth) / half_time(1e-6, depth) == pytest.approx(100**power, rel=0.05)


def test_descent_from_a_small_start_comes_closer_to_a_phase_as_the_start_shrinks():
    sensors = gaussian_sensors(200, 5, generator=torch.Generator().manual_seed(7))
    truth = spectrum([3.0, 1.0, 0, 0, 0], 8)
    loss = sensing_loss(sensors, (sensors * truth).sum((1, 2)))
    phase = greedy_low_rank(loss, 5, symmetric=True, max_rank=1).phases[0]
    sizes = torch.tensor([1e-1, 1e-3, 1e-5], dtype=torch.float64)
    nearest = torch.full((3,), math.inf, dtype=torch.float64)

    def observe(step: int, matrix: Tensor) -> None:
        nearest.copy_(torch.minimum(nearest, (matrix - phase.matrix).norm(dim=(1, 2))))

    start = sizes[:, None, None] * draw(9, 5, 5) / math.sqrt(5)
    factored_descent(loss, start, lr=0.02, steps=800, observe=observe)
    assert bool((nearest.diff() < 0).all())
    assert nearest[2] < 0.1 * nearest[0]


def test_a_degenerate_top_is_reported():
    found = greedy_low_rank(distance_to(torch.diag(torch.tensor([2.0, 2, 1]).double())), 3)
    assert [phase.ambiguous for phase in found.phases] == [True, False, False]
    assert "ambiguous direction at rank 1" in repr(found)
    assert found.phases[0].gap == pytest.approx(0, abs=1e-12)


def test_it_stops_at_max_rank_at_its_tolerance_and_where_nothing_descends():
    target = torch.diag(torch.tensor([3.0, 2, 1e-4, 0]).double())
    short = greedy_low_rank(distance_to(target), 4, max_rank=1)
    assert not short.complete
    assert short.eigenvalue == pytest.approx(2)
    assert "NOT complete at rank 1" in repr(short)
    assert greedy_low_rank(distance_to(target), 4, tolerance=1e-3).rank == 2
    nothing = greedy_low_rank(distance_to(-target), 4, symmetric=True)
    assert nothing.complete
    assert nothing.rank == 0
    assert float(nothing.matrix.norm()) == 0


def test_running_out_of_steps_is_said():
    found = greedy_low_rank(distance_to(draw(0, 3, 3)), 3, max_steps=5)
    assert not found.converged
    assert not found.complete
    assert found.rank == 1
    assert "NOT converged" in repr(found.phases[0])


@pytest.mark.parametrize("max_steps", [180, 240, 1000])
def test_a_flow_cut_short_past_a_second_saddle_is_returned_where_it_got_to(max_steps):
    """So near the saddle at (1, 0) that it looks like rest, but the flow goes on to (1, 1)."""
    seen: list[Tensor] = []
    rest = flow_to_rest(
        lambda theta: (theta[0] ** 2 - 1) ** 2 / 4 - theta[1] ** 2 / 2 + theta[1] ** 4 / 4,
        torch.tensor([1e-3, 1e-11], dtype=torch.float64),
        rtol=1e-8,
        atol=1e-12,
        max_steps=max_steps,
        horizon=1e15,
        observe=lambda time, point: seen.append(point),
    )
    assert rest.converged == (max_steps == 1000)
    torch.testing.assert_close(rest.point, seen[-1], atol=1e-5, rtol=0)


@pytest.mark.usefixtures("global_rng_untouched")
def test_it_is_deterministic():
    target = draw(3, 4, 4)
    first, second = (greedy_low_rank(distance_to(target), 4, max_rank=2) for _ in range(2))
    assert torch.equal(first.matrix, second.matrix)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"depth": 1}, "depth must be at least 2"),
        ({"scale": 0.0}, "scale"),
        ({"scale": math.nan}, "scale"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"max_rank": 0}, "max_rank"),
        ({"max_steps": 0}, "max_steps"),
        ({"shape": (2, 3), "symmetric": True}, "square"),
        ({"shape": (2, 3, 4)}, "shape"),
        ({"loss": lambda matrix: matrix.sum() / 0}, "finite at the zero matrix"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong, words):
    given = {"loss": lambda matrix: matrix.square().sum(), "shape": 2} | wrong
    with pytest.raises(ValueError, match=words):
        greedy_low_rank(given.pop("loss"), given.pop("shape"), **given)


@pytest.mark.parametrize("loss", [3, lambda matrix: matrix, lambda matrix: matrix.sum().float()])
def test_a_loss_that_is_no_scalar_function_in_float64_is_refused(loss):
    with pytest.raises(TypeError, match="loss must"):
        greedy_low_rank(loss, 2)
