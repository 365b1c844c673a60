"""Is a job in the rule's regime? Cases where the answer is known."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import undertow as ut
from undertow import apply


def regression(noise: float) -> ut.Objective:
    """Linear regression from a start away from the solution."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 6, generator=generator)
    targets = inputs @ torch.ones(6, 1) + noise * torch.randn(512, 1, generator=generator)
    model = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    return ut.Objective(model, nn.functional.mse_loss, (inputs, targets))


def test_small_steps_follow_the_linear_rule() -> None:
    objective = regression(noise=0.3)
    before = copy.deepcopy(objective.model.state_dict())
    found = apply.rescale(
        {"lr": 5e-3}, from_batch=16, to_batch=32, optimizer="sgd", objective=objective
    )
    verification = found.verification
    assert verification is not None
    assert verification.answer == "holds"
    assert verification.sharpness == pytest.approx(2.0, rel=0.3)
    assert all(torch.equal(before[k], v) for k, v in objective.model.state_dict().items())
    assert "the rule holds" in repr(verification)
    json.dumps(found.as_json(), allow_nan=False)


def test_steps_at_the_edge_do_not() -> None:
    found = apply.rescale(
        {"lr": 0.15}, from_batch=4, to_batch=32, optimizer="sgd", objective=regression(noise=1.0)
    )
    assert found.verification is not None
    assert found.verification.answer == "does not hold"
    assert any("curvature-dominated" in warning for warning in found.warnings)


def test_a_batch_larger_than_the_data_is_measured_only() -> None:
    found = apply.rescale(
        {"lr": 1e-3}, from_batch=4, to_batch=1024, optimizer="sgd", objective=regression(noise=1.0)
    )
    assert found.verification is not None
    assert found.verification.answer == "cannot be told"
    assert "larger than the 512 samples" in found.verification.notes[0]
    assert found.verification.noise_scale > 0


def test_a_loss_that_curves_downwards_is_no_error() -> None:
    objective = regression(noise=0.3)
    assert objective.loss is not None

    def upside_down(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 1000 - nn.functional.mse_loss(outputs, targets)

    flipped = ut.Objective(objective.model, upside_down, next(iter(objective.batches())))
    found = apply.rescale(
        {"lr": 1e-3}, from_batch=16, to_batch=32, optimizer="sgd", objective=flipped
    )
    assert found.verification is not None
    assert found.verification.sharpness < 0


def test_runs_that_diverge_are_still_json() -> None:
    found = apply.rescale(
        {"lr": 30.0}, from_batch=4, to_batch=8, optimizer="sgd", objective=regression(noise=1.0)
    )
    assert found.verification is not None
    assert found.verification.answer == "does not hold"
    json.dumps(found.as_json(), allow_nan=False)


@pytest.mark.slow
def test_defaults_are_those_of_every_run() -> None:
    whole = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
    one, other = (
        apply.rescale(
            hyper, from_batch=16, to_batch=32, optimizer="adamw", objective=regression(noise=1.0)
        ).verification
        for hyper in ({"lr": 1e-3}, whole)
    )
    assert one is not None
    assert other is not None
    assert one.losses == other.losses
