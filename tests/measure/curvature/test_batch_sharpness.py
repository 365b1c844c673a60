"""Batch sharpness against its value over all batches in closed form, and its error bars."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from undertow.measure import batch_sharpness, sharpness
from undertow.objective import Objective


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def regression(samples: int, **kwargs: Any) -> Objective:
    net = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(draw(0, 1, 3))
    return Objective(net, nn.MSELoss(), (draw(1, samples, 3), draw(2, samples, 1)), **kwargs)


def over_all(samples: int, size: int, replacement: bool = False) -> tuple[float, float]:
    """E[g^T H g / g^T g] and E[g^T H g] / E[g^T g], by the matrices of every batch."""
    inputs, targets, weight = draw(1, samples, 3), draw(2, samples, 1)[:, 0], draw(0, 3)
    weight = draw(0, 1, 3)[0]
    every = (
        itertools.product(range(samples), repeat=size)
        if replacement
        else itertools.combinations(range(samples), size)
    )
    curved, square = [], []
    for batch in every:
        own = inputs[list(batch)]
        gradient = 2 / size * own.T @ (own @ weight - targets[list(batch)])
        curved.append(float(gradient @ (2 / size * own.T @ own) @ gradient))
        square.append(float(gradient @ gradient))
    ratios = [c / s for c, s in zip(curved, square, strict=True)]
    return sum(ratios) / len(ratios), sum(curved) / sum(square)


@pytest.mark.parametrize(
    ("samples", "size", "replacement"), [(6, 2, False), (4, 2, True), (7, 7, False), (9, 1, True)]
)
@pytest.mark.parametrize("microbatch", [None, 1, 2])
def test_few_batches_are_all_taken(
    samples: int, size: int, replacement: bool, microbatch: int | None
) -> None:
    objective = regression(samples, microbatch=microbatch)
    found = batch_sharpness(objective, batch_size=size, replacement=replacement)
    value, pooled = over_all(samples, size, replacement)
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.pooled == pytest.approx(pooled, rel=1e-12)
    assert (found.stderr, found.pooled_stderr, found.converged) == (0, 0, True)
    assert found.interval == (found.value, found.value)
    assert "exactly, from all" in repr(found)


@pytest.mark.parametrize("replacement", [False, True])
def test_intervals_cover_the_mean_over_all_batches(replacement: bool) -> None:
    objective = regression(9)
    value, pooled = over_all(9, 3, replacement)
    covered = near = 0
    for seed in range(40):
        found = batch_sharpness(
            objective,
            0.15,
            batch_size=3,
            replacement=replacement,
            generator=torch.Generator().manual_seed(seed),
        )
        assert found.converged
        assert found.stderr <= 0.15 * found.value
        covered += found.interval[0] <= value <= found.interval[1]
        near += abs(found.pooled - pooled) <= 2 * found.pooled_stderr
    assert covered >= 34  # 38 expected
    assert near >= 34


def test_a_step_changes_the_loss_of_its_own_batch_as_the_ratio_says() -> None:
    objective = regression(5)
    whole = batch_sharpness(objective, batch_size=5).value
    gradient = objective.gradient()
    before = float(objective.value())
    for lr, falls in ((2 / whole * 0.999, True), (2 / whole * 1.001, False)):
        moved = regression(5)
        with torch.no_grad():
            moved.model.weight.sub_(lr * gradient)  # type: ignore[operator,union-attr]
        assert (float(moved.value()) < before) is falls


def test_of_one_batch_it_is_the_curvature_along_the_gradient_and_below_the_sharpness() -> None:
    objective = regression(12)
    gradient = objective.gradient()
    found = batch_sharpness(objective, batch_size=12)
    along = gradient @ objective.hvp(gradient[None])[0] / (gradient @ gradient)
    assert found.value == pytest.approx(float(along))
    assert found.value <= float(sharpness(objective).eigenvalues[0])
    small = batch_sharpness(objective, batch_size=1, replacement=True)
    assert small.value > found.value


def test_microbatches_and_forms_of_data_make_no_difference() -> None:
    plain = batch_sharpness(regression(40), batch_size=16, max_batches=24)
    inputs, targets = draw(1, 40, 3), draw(2, 40, 1)
    loader = [(inputs[:17], targets[:17]), (inputs[17:], targets[17:])]
    for other in (
        regression(40, microbatch=5),
        Objective(regression(40).model, nn.MSELoss(), loader),
    ):
        found = batch_sharpness(other, batch_size=16, max_batches=24)
        assert found.value == pytest.approx(plain.value, rel=1e-12)
        assert found.batches == plain.batches


def test_class_weights_count_within_each_batch_as_in_training() -> None:
    net = nn.Linear(3, 2).double()
    labels = torch.tensor([0, 1, 1, 0, 1, 1])
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0]).double())
    inputs = draw(1, 6, 3)
    found = batch_sharpness(Objective(net, loss, (inputs, labels)), batch_size=5)
    ratios = []
    for left_out in range(6):
        chosen = [i for i in range(6) if i != left_out]
        own = Objective(net, loss, (inputs[chosen], labels[chosen]))
        ratios.append(batch_sharpness(own, batch_size=5).value)
    assert found.value == pytest.approx(sum(ratios) / 6)


def test_a_norm_without_running_statistics_has_those_of_each_batch() -> None:
    net = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Tanh(), nn.Linear(4, 1)
    ).double()
    inputs, targets = draw(1, 6, 3), draw(2, 6, 1)
    found = batch_sharpness(Objective(net, nn.MSELoss(), (inputs, targets)), batch_size=5)
    ratios = []
    for left_out in range(6):
        chosen = [i for i in range(6) if i != left_out]
        own = Objective(net, nn.MSELoss(), (inputs[chosen], targets[chosen]))
        ratios.append(batch_sharpness(own, batch_size=5).value)
    assert found.value == pytest.approx(sum(ratios) / 6)


def test_the_same_call_gives_the_same_and_moves_no_random_state(global_rng_untouched: None) -> None:
    with torch.random.fork_rng():
        first, second = (batch_sharpness(regression(30), batch_size=4) for _ in range(2))
    assert first == second


def test_running_out_of_batches_is_said() -> None:
    found = batch_sharpness(regression(60), 1e-3, batch_size=2, max_batches=50)
    assert not found.converged
    assert found.batches == 50
    assert "NOT converged after 50 batches of 2; pooled" in repr(found)
    assert found.as_dict()["batch_size"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 31}, "batch_size must be at most the 30 samples, got 31; or draw with rep"),
        ({"batch_size": 3, "rtol": 0.0}, "rtol must be between 0 and 1"),
        ({"batch_size": 3, "max_batches": 5}, "max_batches must be at least 24, got 5"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch_sharpness(regression(30), **arguments)


def test_a_batch_without_a_gradient_is_refused() -> None:
    net = nn.Linear(3, 1, bias=False).double()
    inputs = draw(1, 30, 3)
    with torch.no_grad():
        fitted = Objective(net, nn.MSELoss(), (inputs, net(inputs)))
    with pytest.raises(ValueError, match=r"a batch of 4 samples has gradient zero.*batch_size"):
        batch_sharpness(fitted, batch_size=4)


def test_other_kinds_are_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"batch_size must be a whole number, got 2\.0"):
        batch_sharpness(regression(30), batch_size=2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"objective must be an undertow\.Objective, got Linear"):
        batch_sharpness(nn.Linear(2, 2), batch_size=1)  # type: ignore[arg-type]


def test_samples_of_several_shapes_are_refused() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(3, 1)).double()
    loader = [(draw(1, 4, 1, 6), draw(2, 4, 1)), (draw(3, 4, 1, 9), draw(4, 4, 1))]
    with pytest.raises(ValueError, match=r"one shape to be drawn together, got \(1, 6\) and"):
        batch_sharpness(Objective(net, nn.MSELoss(), loader), batch_size=2)
