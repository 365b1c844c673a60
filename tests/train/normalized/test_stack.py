"""Stacks of normalised networks against modules, and their invariance."""

from __future__ import annotations

from dataclasses import replace

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
