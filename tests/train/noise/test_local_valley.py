"""Workers in a valley: their steps, their averages, and the drift that their noise makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from undertow.predict import local_drift_multiplier
from undertow.train import valley_multiplier, valley_paths


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def end(*seeds: int, **options: Any) -> torch.Tensor:
    given: dict[str, Any] = {"lr": 0.1, "num_workers": 3, "period": 4, "noise": (0.3, 1.0)}
    given |= {"read_at": [10], "replicas": 5, "generators": generators(*seeds)}
    (found,) = valley_paths(**(given | options))
    return found


def test_steps_descend_the_loss() -> None:
    place = torch.tensor([0.5, -0.8], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(place[0].exp() * place[1] ** 2 / 2, place)
    found = end(1, read_at=[1], noise=(0.0, 0.0), start=(0.5, -0.8))
    torch.testing.assert_close(found[:, 0, 0], (place - 0.1 * slope).detach())


def test_workers_with_one_noise_are_one_worker() -> None:
    torch.testing.assert_close(end(1, shared=True), end(1, num_workers=1))


def test_one_worker_has_no_rounds() -> None:
    assert end(1, num_workers=1).equal(end(1, num_workers=1, period=1))


def test_averaged_at_each_step_workers_have_the_noise_of_their_mean() -> None:
    places = [end(1, num_workers=k, period=1, read_at=[1], replicas=20_000) for k in (1, 16)]
    spreads = [own.std(2)[:, 0] / 0.1 for own in places]
    for spread in spreads:
        torch.testing.assert_close(spread, torch.tensor([0.3, 1.0]).double(), rtol=0.03, atol=0)


def test_a_run_depends_on_its_own_generator_alone() -> None:
    assert end(1, 2)[:, 1].equal(end(2)[:, 0])


def test_multiplier_is_the_exact_one_at_large_steps() -> None:
    for period, workers in ((1, 3), (2, 3), (9, 5)):
        found = valley_multiplier(
            lr=0.8,
            num_workers=workers,
            period=period,
            steps=400,
            generators=generators(1),
            replicas=400,
        )
        exact = local_drift_multiplier(0.8, 1.0, num_workers=workers, period=period)
        assert float(found) == pytest.approx(exact, rel=0.02)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="lr must be finite and above 0, got 0"):
        end(1, lr=0.0)
    with pytest.raises(ValueError, match="noise must be finite and at least 0"):
        end(1, noise=(-1.0, 0.0))
    with pytest.raises(ValueError, match="period must be at least 1"):
        end(1, period=0)
    with pytest.raises(ValueError, match="lr must be above 0 and below 2"):
        valley_multiplier(
            lr=2.0, num_workers=2, period=2, steps=2, generators=generators(1), replicas=1
        )
