"""A displacement's parts: shrinkage, drift and noise."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from undertow.measure import displacement
from undertow.models import mlp


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_decay_alone_is_radial() -> None:
    net = mlp((5, 8, 3)).double()
    shrunk = {name: value * 0.9 for name, value in net.state_dict().items()}
    moved = displacement(net, shrunk)
    assert moved.total == pytest.approx(0.1)
    assert moved.radial == pytest.approx(-0.1)
    assert moved.tangential == pytest.approx(0, abs=1e-8)
    assert moved.noise is None


def test_the_parts_are_at_right_angles_and_biases_do_not_count() -> None:
    before = {"weight": draw(0, 4, 3), "bias": draw(1, 4)}
    after = {"weight": draw(2, 4, 3), "bias": draw(3, 4)}
    moved = displacement(before, after)
    step, unit = after["weight"] - before["weight"], before["weight"] / before["weight"].norm()
    along = (step * unit).sum()
    across = (step - along * unit).norm()
    assert moved.total == pytest.approx(float(step.norm() / before["weight"].norm()))
    assert moved.radial == pytest.approx(float(along / before["weight"].norm()))
    assert moved.tangential == pytest.approx(float(across / before["weight"].norm()))
    scaled = displacement(*({"weight": 7 * own["weight"]} for own in (before, after)))
    assert scaled.tangential == pytest.approx(moved.tangential)


def test_noise_is_what_runs_do_not_share_however_many_they_are() -> None:
    before, drift = {"w": draw(0, 30, 30)}, 0.3 * draw(1, 30, 30)
    ends = [{"w": before["w"] + drift + 0.1 * draw(2 + k, 30, 30)} for k in range(40)]
    norm = float(before["w"].norm())
    for count in (3, 40):
        moved = displacement(before, *ends[:count])
        assert moved.noise == pytest.approx(0.1 * 30 / norm, rel=0.1)
        expected = math.hypot(float(drift.norm()), 0.1 * 30) / norm
        assert moved.total == pytest.approx(expected, rel=0.1)
    assert displacement(before, ends[0], ends[0]).noise == 0


def test_the_total_is_the_root_mean_square_over_runs() -> None:
    before, way = {"w": draw(0, 4, 4)}, draw(1, 4, 4)
    one, three = ({"w": before["w"] + factor * way} for factor in (1, 3))
    alone, both = displacement(before, one), displacement(before, one, three)
    assert both.total == pytest.approx(math.sqrt((1 + 9) / 2) * alone.total)
    assert both.radial == pytest.approx(2 * alone.radial)


def test_matrices_can_be_chosen() -> None:
    before = {"one": draw(0, 3, 3), "two": draw(1, 3, 3)}
    after = before | {"two": draw(2, 3, 3)}
    assert displacement(before, after, include=["one"]).total == 0
    assert displacement(before, after, include=["two"]).total > 0


def test_what_is_not_finite_has_no_displacement() -> None:
    before = {"w": draw(0, 3, 3)}
    for bad in (torch.nan, torch.inf):
        moved = displacement(before, {"w": torch.full((3, 3), bad)})
        assert not any(map(math.isfinite, (moved.total, moved.radial, moved.tangential)))


def test_weights_that_cannot_be_compared_are_named() -> None:
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="after must hold the weights"):
        displacement(net)
    with pytest.raises(ValueError, match="after must hold weight of shape"):
        displacement(net, nn.Linear(2, 2))
    with pytest.raises(ValueError, match="not all zero"):
        displacement({"w": torch.zeros(2, 2)}, {"w": torch.ones(2, 2)})
    with pytest.raises(TypeError):
        displacement(net, copy.deepcopy(net).weight)  # type: ignore[arg-type]
