"""Losses of a matrix, and completion by nuclear norm: optimality, limits and certificates."""

from __future__ import annotations

import functools
import itertools
import math
from functools import reduce

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from undertow.train import (
    completion_loss,
    factored_descent,
    gaussian_sensors,
    largest_stable_lr,
    nuclear_norm_completion,
    sensing_loss,
    truncated_svd,
)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some(seed: int, rows: int, cols: int, share: float = 0.6) -> Tensor:
    return torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed)) < share


def shrunk(matrix: Tensor, by: float) -> Tensor:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left * (values - by).clamp_min(0)) @ right


# ---- losses


def test_completion_looks_at_the_observed_entries_alone():
    observed, mask = draw(0, 4, 5), some(1, 4, 5)
    loss = completion_loss(torch.where(mask, observed, math.nan), mask)
    matrix = draw(2, 4, 5)
    assert float(loss(matrix)) == pytest.approx(float((matrix - observed)[mask].square().sum()) / 2)
    gradient = torch.func.grad(loss)(matrix)
    torch.testing.assert_close(gradient, torch.where(mask, matrix - observed, 0.0))


@pytest.mark.parametrize("count", [7, 60])
def test_sensing_is_the_mean_square_with_and_without_compression(count):
    sensors, truth, measured = draw(0, count, 3, 4), draw(1, 3, 4), draw(2, count)
    loss = sensing_loss(sensors, measured)
    matrices = draw(3, 2, 3, 4)
    errors = torch.einsum("mij,bij->bm", sensors, matrices) - measured
    torch.testing.assert_close(loss(matrices), errors.square().mean(1) / 2)
    exact = sensing_loss(sensors, torch.einsum("mij,ij->m", sensors, truth))
    assert float(exact(truth)) < 1e-28
    gradient = torch.func.grad(exact)(matrices[0])
    image = torch.einsum("mij,mkl,kl->ij", sensors, sensors, matrices[0] - truth) / count
    torch.testing.assert_close(gradient, image)


def test_gaussian_sensors_measure_symmetric_matrices_without_distortion_on_average():
    sensors = gaussian_sensors(40_000, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sensors, sensors.mT)
    for matrix in (torch.eye(4).double(), torch.ones(4, 4).double(), draw(1, 4, 4)):
        own = matrix + matrix.T
        mean = torch.einsum("mij,ij->m", sensors, own).square().mean()
        assert float(mean) == pytest.approx(float(own.square().sum()), rel=0.05)


@pytest.mark.usefixtures("global_rng_untouched")
def test_sensors_come_from_the_generator():
    first, second = (
        gaussian_sensors(3, 2, generator=torch.Generator().manual_seed(4)) for _ in range(2)
    )
    assert torch.equal(first, second)


# ---- completion


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), penalty=st.sampled_from([0.05, 0.3, 1.0, 3.0]))
@example(seed=8605, penalty=0.05)  # slow to converge
def test_a_penalised_completion_is_as_near_a_fixed_point_of_soft_impute_as_its_gap_says(
    seed, penalty
):
    """A step of soft-impute moves W by at most sqrt(2 (F(W) - min F))."""
    observed, mask = draw(seed, 6, 5), some(seed + 1, 6, 5)
    mask[0, 0] = True
    found = nuclear_norm_completion(observed, mask, penalty=penalty, max_iterations=3000)
    objective = penalty * found.nuclear_norm + found.residual**2 / 2
    moved = shrunk(torch.where(mask, observed, found.matrix), penalty) - found.matrix
    assert float(moved.norm()) <= math.sqrt(2 * found.gap * objective) + 1e-7
    assert found.gap < 1e-4


def test_a_penalty_of_zero_is_the_limit_of_small_penalties():
    observed, mask = draw(0, 6, 5), some(1, 6, 5)
    limit = nuclear_norm_completion(observed, mask)
    assert limit.residual < 1e-12
    norms = [
        nuclear_norm_completion(observed, mask, penalty=p).nuclear_norm for p in (0.3, 0.03, 0.003)
    ]
    assert norms == sorted(norms)
    assert norms[-1] == pytest.approx(limit.nuclear_norm, rel=0.01)


def test_a_fully_observed_matrix_is_shrunk_once():
    observed = draw(0, 5, 4)
    everything = torch.ones(5, 4, dtype=torch.bool)
    found = nuclear_norm_completion(observed, everything, penalty=0.5, rtol=1e-12)
    torch.testing.assert_close(found.matrix, shrunk(observed, 0.5), atol=1e-5, rtol=0)


def test_enough_entries_of_a_low_rank_matrix_give_it_back():
    truth, mask = draw(0, 20, 2) @ draw(1, 2, 20), some(2, 20, 20, 0.85)
    found = nuclear_norm_completion(truth, mask)
    assert found.converged
    torch.testing.assert_close(found.matrix, truth, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("large", "trace"), [(4.0, 14.0), (3.0, 10.0), (1.5, 4.25)])
def test_the_least_trace_of_a_positive_completion(large, trace):
    """4 R - 2 for R > 2 and R^2 + 2 up to there, where M12 = 1 and M13 = M23 = R."""
    known = torch.tensor([[0, 1, large], [1, 0, large], [large, large, 0]], dtype=torch.float64)
    found = nuclear_norm_completion(known, known != 0, positive=True)
    assert found.converged
    assert found.nuclear_norm == pytest.approx(trace, rel=1e-5)
    assert float(torch.linalg.eigvalsh(found.matrix)[0]) > -1e-5


def test_running_out_of_iterations_is_said():
    found = nuclear_norm_completion(draw(0, 6, 5), some(1, 6, 5), max_iterations=3)
    assert not found.converged
    assert found.iterations == 3
    assert "NOT converged" in repr(found)


def test_nothing_observed_but_zeros_is_completed_by_zeros():
    found = nuclear_norm_completion(torch.zeros(3, 2), torch.ones(3, 2, dtype=torch.bool))
    assert found.nuclear_norm == 0
    assert found.converged


# ---- truncation


@pytest.mark.parametrize("rank", [0, 1, 3, 9])
def test_truncation_misses_what_the_spectrum_has_beyond_the_rank(rank):
    matrix = draw(0, 4, 5)
    cut = truncated_svd(matrix, rank)
    rest = torch.linalg.svdvals(matrix)[rank:]
    assert float((matrix - cut).norm()) == pytest.approx(float(rest.norm()), abs=1e-12)


def test_positive_truncation_drops_negative_eigenvalues():
    matrix = torch.diag(torch.tensor([2.0, -3.0, 1.0]))
    expected = torch.diag(torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(truncated_svd(matrix, 2, positive=True), expected)


# ---- descent on factors


def test_descent_takes_the_steps_that_it_says_run_by_run():
    sensors = gaussian_sensors(30, 4, generator=torch.Generator().manual_seed(0))
    truth = draw(1, 4, 2)
    loss = sensing_loss(sensors, (sensors * (truth @ truth.T)).sum((1, 2)))
    starts = 0.1 * draw(2, 3, 4, 4)
    seen = []
    ended = factored_descent(
        loss, starts, lr=0.01, steps=50, observe=lambda step, matrix: seen.append(step)
    )
    assert seen == list(range(51))
    for start, end in zip(starts, ended, strict=True):
        own = start.clone().requires_grad_()
        for _ in range(50):
            (gradient,) = torch.autograd.grad(loss(own @ own.T) / 2, own)
            own = (own - 0.01 * gradient).detach().requires_grad_()
        torch.testing.assert_close(end, own.detach())


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_descent_moves_all_factors_at_once(depth):
    sizes = itertools.pairwise([4, *[3] * (depth - 1), 5])
    starts = [0.5 * draw(place, 2, *shape) for place, shape in enumerate(sizes)]
    target = draw(9, 4, 5)
    loss = lambda matrix: (matrix - target).square().sum((-2, -1)) / 2  # noqa: E731
    ended = factored_descent(loss, starts, lr=0.02, steps=30)
    own = [start.clone().requires_grad_() for start in starts]
    for _ in range(30):
        gradients = torch.autograd.grad(loss(functools.reduce(torch.matmul, own)).sum(), own)
        own = [
            (factor - 0.02 * gradient).detach().requires_grad_()
            for factor, gradient in zip(own, gradients, strict=True)
        ]
    torch.testing.assert_close(ended, [factor.detach() for factor in own])


def test_descent_stops_when_told_and_leaves_its_start_alone():
    start = draw(0, 3, 3)
    kept = start.clone()
    moved = factored_descent(
        lambda matrix: matrix.square().sum((-2, -1)),
        start,
        lr=0.01,
        steps=10,
        observe=lambda step, matrix: step == 0,
    )
    assert torch.equal(moved, start)
    assert torch.equal(start, kept)


def test_divergence_is_an_error():
    with pytest.raises(FloatingPointError, match="lower lr"):
        factored_descent(
            lambda matrix: matrix.square().sum((-2, -1)), draw(0, 3, 3), lr=10.0, steps=50
        )


# ---- what is refused


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: completion_loss(draw(0, 2, 2), torch.ones(2, 2).bool()[:1]), "one shape"),
        (lambda: completion_loss(draw(0, 2, 2), torch.zeros(2, 2).bool()), "at least one"),
        (lambda: completion_loss(torch.full((2, 2), math.nan), torch.ones(2, 2).bool()), "NaN"),
        (lambda: sensing_loss(draw(0, 3, 2, 2), draw(1, 2)), "one measurement each"),
        (lambda: sensing_loss(draw(0, 1, 2, 2), torch.full((1,), math.inf)), "measurements hold"),
        (lambda: gaussian_sensors(0, 2, generator=torch.Generator()), "count"),
        (lambda: truncated_svd(draw(0, 3), 1), "two dimensions"),
        (lambda: truncated_svd(draw(0, 3, 3), 1, positive=True), "symmetric"),
        (lambda: truncated_svd(1e-9 * draw(0, 3, 3), 1, positive=True), "symmetric"),
        (lambda: truncated_svd(draw(0, 3, 3), -1), "rank"),
        (lambda: factored_descent(lambda w: w.sum(), draw(0, 2, 2), lr=0.0, steps=1), "lr"),
        (lambda: factored_descent(lambda w: w.sum(), draw(0, 2), lr=0.1, steps=1), "start"),
        (lambda: factored_descent(lambda w: w.sum(), [], lr=0.1, steps=1), "start"),
        (lambda: factored_descent(lambda w: w.sum(), [draw(0, 2, 3)] * 2, lr=0.1, steps=1), "mult"),
    ],
)
def test_what_cannot_be_meant_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    "wrong", [{"penalty": -1.0}, {"rtol": 0.0}, {"max_iterations": 0}, {"positive": True}]
)
def test_a_completion_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        nuclear_norm_completion(draw(0, 3, 3), torch.ones(3, 3).bool(), **wrong)


def test_a_mask_of_numbers_is_refused():
    with pytest.raises(TypeError, match="boolean"):
        completion_loss(draw(0, 2, 2), torch.ones(2, 2))


@pytest.mark.parametrize("depth", [None, 2, 3, 4])
def test_descent_leaves_a_solution_beyond_the_largest_stable_lr(depth: int | None) -> None:
    target = torch.diag(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    seen = torch.ones(3, 3, dtype=torch.bool)
    loss = completion_loss(target, seen)
    solution = target[:, :1] if depth is None else [target] * depth
    lr = largest_stable_lr(loss, solution)
    assert lr == pytest.approx(1.0 if depth is None else 2 / depth)
    near = 1e-4 * draw(5, 3, 3)
    start = target[:, :1] + near[:, :1] if depth is None else [one + near for one in solution]

    def missed(rate: float) -> float:
        ended = factored_descent(loss, start, lr=rate, steps=60)
        matrix = ended @ ended.mT if depth is None else reduce(torch.matmul, ended)
        return float(loss(matrix))

    begun = missed(1e-9)
    assert missed(0.9 * lr) < 1e-2 * begun
    assert missed(1.1 * lr) > 10 * begun


def test_a_solution_that_is_flat_has_no_stable_lr() -> None:
    with pytest.raises(ValueError, match="solution must be curved upwards"):
        largest_stable_lr(lambda w: 0 * w.sum(), torch.ones(2, 1, dtype=torch.float64))
