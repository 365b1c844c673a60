"""Local SGD on diagonal networks: its steps, its averages, and the fits that it starts from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from undertow.train import diagonal_descent, diagonal_hessian_trace, diagonal_problems


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def problems(*seeds: int, samples: int = 3, width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    return diagonal_problems(samples, width, generators=generators(*seeds))


def loss(layers: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    u, v = layers
    return (inputs @ (u.square() - v.square()) - targets).square().mean() / 2


def end(*seeds: int, start: Tensor | None = None, **options: Any) -> Tensor:
    inputs, targets, layers = problems(*seeds)
    given: dict[str, Any] = {"lr": 0.01, "num_workers": 4, "period": 5, "noise": 1.0}
    given |= {"read_at": [20], "generators": generators(*(seed + 7 for seed in seeds))}
    layers = layers if start is None else start
    (found,) = diagonal_descent(inputs, targets, layers, **(given | options))
    return found


def test_problems_start_from_a_fit() -> None:
    inputs, targets, layers = problems(1, 2)
    for run in range(2):
        assert float(loss(layers[:, run], inputs[run], targets[run])) < 1e-18
    assert problems(2)[2][:, 0].equal(layers[:, 1])


def test_trace_is_that_of_the_hessian_at_a_fit() -> None:
    inputs, targets, layers = problems(1)
    hessian = torch.autograd.functional.hessian(
        lambda place: loss(place, inputs[0], targets[0]), layers[:, 0]
    )
    found = diagonal_hessian_trace(inputs, layers)[0]
    torch.testing.assert_close(found, hessian.reshape(10, 10).trace(), rtol=1e-8, atol=0)


def test_steps_descend_the_loss_of_the_batch() -> None:
    """Of one sample every batch is the whole."""
    inputs, targets, layers = problems(1, samples=1, width=4)
    start = layers + 0.1
    slope = torch.func.grad(loss)(start[:, 0], inputs[0], targets[0])
    for size in (1, 3):
        (found,) = diagonal_descent(
            inputs,
            targets,
            start,
            lr=0.01,
            num_workers=2,
            period=1,
            read_at=[1],
            noise=0.0,
            generators=generators(1),
            batch_size=size,
        )
        torch.testing.assert_close(found[:, 0], start[:, 0] - 0.01 * slope, rtol=1e-5, atol=1e-6)


def test_averaged_at_each_step_workers_are_one_with_the_whole_batch() -> None:
    one = end(1, num_workers=1, batch_size=4)
    torch.testing.assert_close(end(1, period=1), one, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(end(1, period=5), one, rtol=1e-4)


def test_one_worker_has_no_rounds() -> None:
    assert end(1, num_workers=1, period=1).equal(end(1, num_workers=1, period=7))


def test_without_noise_a_fit_stays() -> None:
    _, _, layers = problems(1)
    torch.testing.assert_close(end(1, noise=0.0), layers, rtol=1e-5, atol=1e-6)


def test_a_run_depends_on_its_own_generator_alone() -> None:
    torch.testing.assert_close(end(1, 2)[:, 1], end(2)[:, 0], rtol=1e-6, atol=1e-7)


def test_noise_of_labels_has_mean_zero_and_the_size_that_is_asked_for() -> None:
    """At a fit of one sample, a step of many workers."""
    inputs, targets, layers = problems(1, samples=1, width=4)
    options: dict[str, Any] = {"lr": 0.01, "period": 1, "read_at": [1], "noise": 2.0}
    moves = []
    for seed in range(400):
        (found,) = diagonal_descent(
            inputs, targets, layers, num_workers=1, generators=generators(seed), **options
        )
        moves.append(float((found - layers)[0, 0, 0] / (2 * layers[0, 0, 0] * inputs[0, 0, 0])))
    sizes = {round(abs(move) / 0.01, 2) for move in moves}
    assert sizes == {2.0}
    assert abs(sum(move > 0 for move in moves) - 200) < 50


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="lr must be finite and above 0"):
        end(1, lr=-1.0)
    with pytest.raises(ValueError, match="noise must be finite and at least 0"):
        end(1, noise=-1.0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        end(1, batch_size=0)
    with pytest.raises(ValueError, match="width must be at least 3"):
        problems(1, samples=3, width=2)
