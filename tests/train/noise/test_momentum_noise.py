"""Momentum under noise that is known, against recursions, closed forms and noise that is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from undertow import predict
from undertow.train import (
    exact_stationary_variance,
    label_noise_imbalances,
    momentum_paths,
    stationary_variance,
)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def ends(momenta: tuple[float, ...], noise: float, steps: tuple[int, ...], **options: Any) -> Any:
    """Paths on x^2 / 2."""
    spread = {"noise": lambda x: torch.full_like(x, noise), "generator": generator()}
    read = momentum_paths(lambda x: x, momenta=momenta, read_at=steps, **spread, **options)
    return list(read)


def test_without_noise_paths_are_the_recursion_of_heavy_ball() -> None:
    plain, slow = ends((0.0, 0.9), 0.0, (30,), lr=0.1, replicas=3)[0]
    assert plain.tolist() == pytest.approx([0.9**30] * 3)
    place, velocity = 1.0, 0.0
    for _ in range(30):
        velocity = 0.9 * velocity + 0.1 * place
        place -= 0.1 * velocity
    assert slow.tolist() == pytest.approx([place] * 3)


def test_the_gap_of_second_moments_is_the_exact_one() -> None:
    lr, momentum = 2.0**-4, 0.7
    steps = tuple(range(8, 33, 8))
    read = ends((0.0, momentum), 1.0, steps, lr=lr, replicas=100_000)
    gaps = [abs(float((row[1] ** 2 - row[0] ** 2).mean())) for row in read]
    assert max(gaps) == pytest.approx(predict.momentum_gap(lr, momentum), rel=0.05)


def test_every_momentum_sees_the_same_coins_and_reads_do_not_change_them() -> None:
    once = ends((0.5, 0.5), 1.0, (20,), lr=0.1, replicas=50)[-1]
    often = ends((0.5,), 1.0, (20, 5, 5, 10), lr=0.1, replicas=50)
    assert len(often) == 3
    assert torch.equal(once[0], once[1])
    assert torch.equal(once[0], often[-1][0])


def regression(noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(96, 4, generator=generator(), dtype=torch.float64)
    inputs[:, 0] *= 2
    teacher, own = torch.ones(4, dtype=torch.float64), torch.Generator().manual_seed(1)
    return inputs, inputs @ teacher + noise * torch.randn(96, generator=own, dtype=torch.float64)


def variance(data: Any, batch_size: int = 8, **options: Any) -> Any:
    rates = {"curvatures": (0.02, 0.5), "batch_size": batch_size, "generator": generator()}
    return stationary_variance(*data, (0.9, 0.0), **(rates | options))


def test_over_independent_batches_the_ratio_is_the_closed_form() -> None:
    found = variance(regression(), batch_size=32, replicas=400, burn_in=600)
    for curvature, (slow, plain) in zip((0.02, 0.5), found.tolist(), strict=True):
        equal = predict.momentum_equivalent(curvature, 0.9, form="ema", sharpness=1.0)
        assert slow / plain == pytest.approx(equal.variance_ratio, rel=0.06)


@pytest.mark.parametrize("curvature", [0.5, 1.0])
def test_where_noise_grows_with_the_weights_the_exact_moments_know(curvature: float) -> None:
    data, few = regression(), {"curvatures": (curvature,), "batch_size": 8}
    exact = exact_stationary_variance(*data, (0.9, 0.0), **few)
    drawn = variance(data, **few, replicas=3000, burn_in=300, steps=200)
    assert drawn.flatten().tolist() == pytest.approx(exact.flatten().tolist(), rel=0.04)
    additive = predict.momentum_equivalent(curvature, 0.9, form="ema", sharpness=1.0)
    assert float(exact[0, 0] / exact[0, 1]) < 0.98 * additive.variance_ratio


def test_in_large_batches_the_exact_moments_are_the_closed_form() -> None:
    exact = exact_stationary_variance(
        *regression(), (0.9, 0.0), curvatures=(0.5,), batch_size=10**9
    )
    additive = predict.momentum_equivalent(0.5, 0.9, form="ema", sharpness=1.0)
    assert float(exact[0, 0] / exact[0, 1]) == pytest.approx(additive.variance_ratio, rel=1e-6)


def test_where_nothing_rests_there_is_no_variance() -> None:
    with pytest.raises(ValueError, match=r"curvatures must be those at which SGD rests, got 1\.9"):
        exact_stationary_variance(*regression(), (0.0,), curvatures=(1.9,), batch_size=1)


def test_over_shuffled_epochs_momentum_keeps_less_of_the_noise() -> None:
    shuffled, independent = (
        variance(regression(), order=order)[0] for order in ("epochs", "replacement")
    )
    assert shuffled[0] / shuffled[1] < 0.8 * independent[0] / independent[1]


def test_at_rest_it_does_not_matter_when_one_looks() -> None:
    soon, late = (variance(regression(), burn_in=wait, replicas=200) for wait in (200, 800))
    assert soon.flatten().tolist() == pytest.approx(late.flatten().tolist(), rel=0.15)


def test_without_noise_the_minimum_is_never_left() -> None:
    exact = variance(regression(noise=0.0), ridge=0.0)
    whole = variance(regression(), batch_size=96, order="epochs")
    assert exact.max() < 1e-20
    assert whole.max() < 1e-20


def test_an_argument_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"momenta must be at least 0 and below 1, got \(1.0,\)"):
        ends((1.0,), 0.0, (1,), lr=0.1)
    with pytest.raises(ValueError, match="batch_size must be at most 96 samples, got 97"):
        variance(regression(), batch_size=97)
    with pytest.raises(ValueError, match="order must be 'replacement' or 'epochs', got 'epoch'"):
        variance(regression(), order="epoch")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        variance(regression(), steps=0)
    with pytest.raises(ValueError, match=r"lr must be finite and above 0, got 0.0"):
        ends((0.5,), 0.0, (1,), lr=0.0)


ALONG_MINIMA = {"noise": 1.0, "product": -0.7, "imbalance": 2.0}


def test_a_step_of_sgd_shrinks_the_imbalance_by_its_residual() -> None:
    lr, replicas = 0.1, 50
    after = label_noise_imbalances(
        (0.0,), lr=lr, steps=1, replicas=replicas, generator=generator(), **ALONG_MINIMA
    )
    # From a minimum the residual is the noise alone, -1 or 1.
    assert after[0].tolist() == pytest.approx([2.0 * (1 - lr**2)] * replicas)


def test_over_one_by_lr_squared_steps_the_imbalance_falls_as_predicted() -> None:
    lr = 1 / 32
    options = {"steps": 32**2, "replicas": 800, "generator": generator(), **ALONG_MINIMA}
    left = label_noise_imbalances((0.0, 0.9), lr=lr, **options) / 2.0
    for own, momentum in zip(left.log().mean(1).tolist(), (0.0, 0.9), strict=True):
        law = predict.label_noise_drift(lr, momentum, time=1.0, **ALONG_MINIMA)
        assert own == pytest.approx(law, abs=0.01)
