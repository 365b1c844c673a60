"""Stacks of normalised networks against modules, and their invariance."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from undertow import measure
from undertow.train import NormalizedNetworks, normalized_networks


def few(dtype: torch.dtype = torch.float64) -> NormalizedNetworks:
    drawn = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 12, 6, generator=drawn, dtype=dtype)
    targets = torch.randn(3, 12, 2, generator=drawn, dtype=dtype)
    return normalized_networks((6, 5, 2), (1, 2, 3), inputs, targets, lr=0.5, weight_decay=0.01)


def test_a_stack_trains_as_its_module_does() -> None:
    networks = few()
    after = networks.trained(3)
    for place in range(3):
        objective = networks.objective(place)
        weights = torch.cat([weight.flatten() for weight in objective.model.parameters()]).detach()
        parts = list(objective.model.parameters())
        for _ in range(3):
            weights = 0.995 * weights - 0.5 * objective.gradient()
            sizes = [weight.numel() for weight in parts]
            for weight, own in zip(parts, weights.split(sizes), strict=True):
                weight.data = own.view_as(weight)
        found = torch.cat([weight[place].flatten() for weight in after.weights])
        torch.testing.assert_close(found, weights, rtol=1e-9, atol=1e-12)
        assert torch.equal(networks.weights[0], few().weights[0])


def test_the_length_of_its_weights_does_not_change_what_a_stack_is() -> None:
    networks = few()
    longer = replace(networks, weights=[3 * weight for weight in networks.weights])
    torch.testing.assert_close(longer.losses(longer.weights), networks.losses(networks.weights))
    values, _, _ = networks.sharpness(100)
    again, _, _ = longer.sharpness(100)
    torch.testing.assert_close(again, values, rtol=1e-6, atol=0)
    torch.testing.assert_close(longer.effective_lr * 9, networks.effective_lr)


def test_power_iteration_finds_the_spherical_sharpness() -> None:
    networks = few().trained(300)
    values, residuals, _ = networks.sharpness(300)
    assert float(residuals.max()) < 1e-2
    for place in range(3):
        found = measure.spherical_sharpness(networks.objective(place)).eigenvalues
        assert float(values[place]) == pytest.approx(float(found[0]), rel=1e-3)


def test_held_out_inputs_are_normalised_by_the_training_inputs() -> None:
    networks = few()
    same = networks.outputs(networks.inputs)
    torch.testing.assert_close(same, networks.outputs())
    part: Tensor = networks.inputs[:, :1]
    alone = networks.outputs(part)
    torch.testing.assert_close(alone, same[:, :1])


def test_branches_differ_by_their_decay_alone() -> None:
    networks = few()
    branches = networks.branched((0.01, 0.0))
    assert branches.weight_decay.tolist() == pytest.approx([0.01] * 3 + [0.0] * 3)
    after = branches.trained(2)
    for weight, own in zip(after.weights, networks.trained(2).weights, strict=True):
        torch.testing.assert_close(weight[:3], own)
        assert not torch.allclose(weight[3:], own)


def test_what_settles_is_at_rest() -> None:
    networks = few().trained(400)
    before, after = (
        own.objective(0).gradient().norm() for own in (networks, networks.settled(400))
    )
    assert after < before / 2


def test_what_does_not_belong_together_is_refused() -> None:
    inputs, targets = torch.zeros(2, 4, 3), torch.zeros(2, 4, 1)
    for sizes, seeds, message in (
        ((3, 1), (0,), "one for each seed"),
        ((4, 1), (0, 1), "sizes must run from 3 inputs to 1 outputs"),
    ):
        with pytest.raises(ValueError, match=message):
            normalized_networks(sizes, seeds, inputs, targets, lr=1.0, weight_decay=0.0)


def made(**changed: Any) -> NormalizedNetworks:
    given = {"sizes": (3, 2), "seeds": (1,), "inputs": torch.randn(1, 6, 3)}
    given |= {"targets": torch.randn(1, 6, 2), "lr": 0.5, "weight_decay": 0.1}
    return normalized_networks(**(given | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"targets": torch.ones(1, 6, 2)}, "targets must differ between samples"),
        ({"targets": torch.ones(1, 5, 2)}, "the same two samples or more, got 6 and 5"),
        ({"inputs": torch.full((1, 6, 3), math.nan)}, "inputs must be floating and finite"),
        ({"inputs": torch.ones(1, 6, 3).long()}, "inputs must be floating and finite"),
        ({"sizes": (3, 0, 2)}, "sizes must be at least 1, got 0"),
        ({"lr": -1.0}, "lr must be a finite number above 0"),
        ({"lr": 5.0, "weight_decay": 0.2}, "weight_decay must be from 0 to below 1 / lr = 0.2"),
        ({"weight_decay": math.nan}, "weight_decay must be from 0"),
    ],
)
def test_bad_input_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**changed)


def test_runs_that_are_none_are_refused() -> None:
    networks = few()
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        networks.trained(-1)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        networks.sharpness(0)
    with pytest.raises(ValueError, match="decays must hold at least one"):
        networks.branched([])
    with pytest.raises(ValueError, match="weight_decay must be from 0"):
        networks.branched([0.0, -0.1])
    with pytest.raises(ValueError, match="one for each of the 3 networks, got 1 and 1"):
        networks.accuracies([torch.ones(4, 6)], [torch.ones(4).long()])
    with pytest.raises(ValueError, match="several outputs, got one output"):
        made(sizes=(3, 1), targets=torch.randn(1, 6, 1)).accuracies([], [])
    with pytest.raises(TypeError, match="inputs must be a tensor, got list"):
        made(inputs=[1.0])


def test_training_leaves_a_stack_as_it_was_and_needs_no_grad_mode() -> None:
    networks = few()
    with torch.no_grad():
        quiet = networks.trained(2)
        quiet.sharpness(2)
    assert not any(weight.requires_grad for weight in networks.weights)
    for one, other in zip(quiet.weights, networks.trained(2).weights, strict=True):
        assert torch.equal(one, other)
